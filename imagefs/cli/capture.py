"""``imagefs capture``."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

import click

from imagefs.block.devices import DeviceReader, StreamSource, open_source
from imagefs.block.hidden import hidden_areas
from imagefs.block.mapfile import not_rescued, read_mapfile
from imagefs.block.nice import RateLimit, be_nice
from imagefs.block.snapshot import WISHES, Snapshot, clear_leftovers, in_use, open_snapshot, take_snapshot
from imagefs.block.usage import check_not_mounted_rw, lies_on
from imagefs.cli.command import Terminated, common
from imagefs.cli.console import Console, default_set
from imagefs.cli.report import CASE_WORDS, describe_host, report_text, resume_command
from imagefs.cli.text import size_text, use_text
from imagefs.errors import ImagefsError, SourceError, StoreError, UsageError, worst_exit
from imagefs.format.codec import MAX_LEVEL, MIN_LEVEL
from imagefs.format.header import Kind, Mode
from imagefs.image.catalog import REPORT_SUFFIX, SUFFIX, scan
from imagefs.interfaces import ObjectInfo
from imagefs.ops.capture import CaptureResult
from imagefs.ops.capture import capture as run_capture
from imagefs.ops.linear import ALGORITHMS, FORENSIC
from imagefs.ops.plan import DEFAULT_LEVEL, CaptureOptions
from imagefs.ops.verify import check_digests, verify_image
from imagefs.store import LocalStore
from imagefs.store.local import is_being_written

KINDS = {
    "auto": None,
    "full": Kind.FULL,
    "incr": Kind.INCREMENTAL,
    "incremental": Kind.INCREMENTAL,
    "diff": Kind.DIFFERENTIAL,
    "differential": Kind.DIFFERENTIAL,
}
UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
#: Case data: option, key, longest text in bytes.
CASE_OPTIONS = {"case": 256, "evidence": 256, "examiner": 256, "description": 1024, "notes": 4096}


def parse_size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """``65536``, ``64K``, ``64KiB``, ``1M`` → bytes."""
    if text is None:
        return None
    digits = text.removesuffix("/s").rstrip("kKmMgGiIbB")
    unit = text.removesuffix("/s")[len(digits) :].lower().removesuffix("b").removesuffix("i")
    if not digits.isascii() or not digits.isdigit() or unit not in UNITS:
        raise click.BadParameter(f"{text!r} is not a size; write 64K or 65536")
    if not int(digits):
        raise click.BadParameter(f"{text!r} is nothing; write 64K or 65536")
    return int(digits) * UNITS[unit]


def parse_hashes(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """``md5,SHA-256`` → names of hashlib, each once."""
    names = [name.strip().lower().replace("-", "") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise click.BadParameter(f"{name!r} is not a digest; there are {known}")
    return tuple(dict.fromkeys(names))


def case_options(command: Any) -> Any:
    """Add an option for each kind of case data."""
    for name in reversed(CASE_OPTIONS):
        text = f"Case data: {CASE_WORDS[name].lower()}. Implies --forensic."
        command = click.option(f"--{name}", default="", metavar="TEXT", help=text)(command)
    return command


@click.command()
@click.argument("source", type=click.Path(allow_dash=True))
@click.argument("set_", metavar="[SET]", required=False, type=click.Path())
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    default="auto",
    show_default=True,
    help="auto: full if the set has none that fits, else incremental.",
)
@click.option(
    "--mode",
    type=click.Choice(["used", "all"]),
    help="used: leave out what file systems do not use. Default: as the newest image of the set, else used.",
)
@click.option(
    "--keep-swap", is_flag=True, help="Keep the contents of swap areas, pagefile.sys and hiberfil.sys."
)
@click.option(
    "--snapshot",
    type=click.Choice(list(WISHES)),
    default="auto",
    show_default=True,
    help="Of a source in use. auto: an LVM snapshot or a clone of the file (reflink), else refuse; "
    "live: as it is, what changed read twice.",
)
@click.option("--note", default="", metavar="TEXT", help="Kept in the image.")
@click.option(
    "--hash",
    "hashes",
    callback=parse_hashes,
    default="",
    metavar="LIST",
    help="Digests of the whole device: md5, sha1, sha256, sha512.",
)
@click.option(
    "--forensic", is_flag=True, help="Every sector, MD5, SHA-1 and SHA-256, and a report IMAGE.txt."
)
@case_options
@click.option(
    "--verify/--no-verify",
    "then_verify",
    default=None,
    help="Re-read and check the finished image, its chain and its digests. Default with case data.",
)
@click.option(
    "--compression",
    "level",
    type=click.IntRange(MIN_LEVEL, MAX_LEVEL),
    default=DEFAULT_LEVEL,
    show_default=True,
    help="zstd level.",
)
@click.option(
    "--estimate/--no-estimate",
    default=True,
    show_default=True,
    help="Tell size and time from samples before it starts, and refuse what does not fit the set's disk.",
)
@click.option(
    "--chunk-size",
    callback=parse_size,
    metavar="SIZE",
    help="16K to 4M, a power of two; by default by disk size. A child has its chain's.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Default: all cores.")
@click.option("--max-errors", type=click.IntRange(0), metavar="N", help="Give up after so many bad sectors.")
@click.option(
    "--mapfile", type=click.Path(), help="A ddrescue mapfile: what it calls bad or not tried is not read."
)
@click.option("--rate", callback=parse_size, metavar="SIZE", help="Read at most so many bytes a second: 50M.")
@click.option("--nice", "nicely", is_flag=True, help="Run when nobody else wants processor or disk.")
@click.option("--resume", is_flag=True, help="Go on with the capture that was interrupted last.")
@click.option("--new-source", is_flag=True, help="Another disk than the set's: start a new full image.")
@click.option(
    "--raw", is_flag=True, help="Capture the bytes of a file even if it is an image of another program."
)
@common
def capture(
    console: Console,
    source: str,
    set_: str | None,
    kind: str,
    mode: str | None,
    keep_swap: bool,
    estimate: bool,
    snapshot: str,
    note: str,
    hashes: tuple[str, ...],
    forensic: bool,
    then_verify: bool | None,
    level: int,
    chunk_size: int | None,
    threads: int | None,
    max_errors: int | None,
    mapfile: str | None,
    rate: int | None,
    nicely: bool,
    resume: bool,
    new_source: bool,
    raw: bool,
    **case: str,
) -> None:  # fmt: skip
    """Make an image of SOURCE (a block device, a raw file, or - for standard input) in SET.

    SET is a folder; its last part is made when missing.
    """
    folder = set_ or default_set()
    told = _case_data(case)
    forensic = forensic or bool(told)
    if nicely:
        be_nice()
    limit = RateLimit(rate) if rate else None
    options = CaptureOptions(
        kind=KINDS[kind],
        mode=Mode[mode.upper()] if mode else Mode.ALL if forensic else None,
        keep_swap=keep_swap,
        estimate=estimate,
        level=level,
        chunk_size=chunk_size,
        threads=threads,
        note=_bounded(note),
        new_source=new_source,
        live=snapshot == "live",
        raw=raw,
        hashes=tuple(dict.fromkeys((*hashes, *FORENSIC))) if forensic else hashes,
        case=told,
        max_errors=max_errors,
        known_bad=not_rescued(read_mapfile(mapfile)) if mapfile else (),
        throttle=limit.take if limit else None,
        rate=rate,
        resume=resume,
    )
    opened, taken = _open(console, source, snapshot)
    partials = _Partials(folder, named=set_ is not None)
    try:
        if isinstance(opened, DeviceReader) and lies_on(folder, source):
            raise SourceError(
                f"the set {folder} lies on the source {source} itself", hint="use a set on another disk"
            )
        store = LocalStore(folder, suffix=SUFFIX)
        store.make()
        partials.look(store)
        if forensic:
            options = replace(options, host=_host(console, opened))
        with console.progress() as progress, _stopping(console, opened, limit) as check_stop:
            result = run_capture(opened, store, replace(options, check_stop=check_stop), progress)
    except BaseException as error:
        partials.tell(console, untouched=resume and not isinstance(error, Exception))
        raise
    finally:
        if limit:
            limit.stop()
        if isinstance(opened, DeviceReader):
            opened.close()
        for warning in taken.remove() if taken else ():
            console.warn(warning)
    facts = result.info.header.facts
    verify = "case" in facts if then_verify is None else then_verify
    if "host" in facts:
        _write_report(console, store, result, report_text(result.info, None, pending=verify))
    # Whatever happens from here on, the image is there.
    console.kept = f"the image {os.path.join(store.url, result.info.name)} is finished, but not verified"
    verified = _verify(console, store, result, threads) if verify else None
    console.kept = ""
    if "host" in facts and verify:
        text = report_text(result.info, verified, verify_ended=time.time_ns())
        _write_report(console, store, result, text)
    _report(console, store, result, verified)


def _write_report(console: Console, store: LocalStore, result: CaptureResult, text: str) -> None:
    try:
        store.write_text(result.info.name + REPORT_SUFFIX, text)
    except StoreError as error:  # the image is made all the same, and has to be told of
        console.warn(error.message)
        console.exit_code = worst_exit([console.exit_code, error.exit_code])


class _Partials:
    """Which unfinished images this run leaves behind; those of others are not its business."""

    def __init__(self, folder: str, *, named: bool) -> None:
        self._folder, self._named = folder, named
        self._store: LocalStore | None = None
        self._before: set[ObjectInfo] = set()

    def look(self, store: LocalStore) -> None:
        """What there is before anything is done."""
        self._store, self._before = store, set(store.partials())

    def tell(self, console: Console, *, untouched: bool) -> None:
        """How to go on with what was left; ``untouched`` takes what was there before for that too."""
        with contextlib.suppress(ImagefsError):
            for found in self._store.partials() if self._store else ():
                ours = untouched or found not in self._before
                if ours and not is_being_written(os.path.join(self._folder, found.name)):
                    console.kept = "what was done is kept"
                    console.resume = resume_command(self._folder, named=self._named)


@contextlib.contextmanager
def _stopping(
    console: Console, opened: DeviceReader | StreamSource, limit: RateLimit | None
) -> Iterator[Callable[[], None] | None]:
    """While a device is captured a signal is heeded between two batches, so that a checkpoint can be
    written; a second one stops at once. A stream cannot be resumed, and may never say anything more."""
    if isinstance(opened, StreamSource):
        yield None
        return
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        if heard:
            raise _stop(number)
        heard.append(number)
        if limit is not None:
            limit.stop()  # or what is under way would wait for its turn
        lead = "\n" if sys.stderr.isatty() else ""  # the line of progress and the ^C stay above
        console.note(f"{lead}imagefs: stopping; once more to stop at once")

    def check_stop() -> None:
        if heard:
            raise _stop(heard[0])

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, hear) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield check_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _case_data(given: dict[str, str]) -> dict[str, str]:
    """What the user said of the case; UsageError for what the header has no room for."""
    for name, text in given.items():
        if len(text.encode("utf-8", "replace")) > CASE_OPTIONS[name]:
            raise UsageError(f"--{name} is longer than {CASE_OPTIONS[name]} bytes", hint="keep it shorter")
    return {name: text for name, text in given.items() if text}


def _host(console: Console, opened: DeviceReader | StreamSource) -> dict[str, str]:
    device = isinstance(opened, DeviceReader) and opened.is_device
    hidden = hidden_areas(opened.path) if device else {}
    for name, told in hidden.items():
        if told != "none":
            console.warn(f"{opened.path}: {told} ({name.upper()}), which are not in the image")
    return describe_host(read_only=_read_only(opened), hidden=hidden)


def _read_only(opened: DeviceReader | StreamSource) -> bool | None:
    """Whether the kernel keeps everybody from writing to the device; None where it is none."""
    return opened.read_only if isinstance(opened, DeviceReader) and opened.is_device else None


def _bounded(note: str) -> str:
    if len(note.encode("utf-8", "replace")) > 4096:
        raise UsageError("the note is longer than 4096 bytes", hint="keep it shorter")
    return note


def _open(console: Console, source: str, wish: str) -> tuple[DeviceReader | StreamSource, Snapshot | None]:
    """The source, or a snapshot of one in use, after everything that can be refused before reading it."""
    if source == "-":
        if sys.stdin.isatty():
            raise SourceError("standard input is a terminal", hint="feed a disk in, or name a device or file")
        return StreamSource(sys.stdin.fileno()), None
    for line in clear_leftovers(source):
        console.warn(line)
    if wish in ("lvm", "reflink") or (wish == "auto" and in_use(source)):
        taken = take_snapshot(source, wish)
        if taken is not None:
            try:
                return open_snapshot(taken), taken
            except BaseException:
                taken.remove()
                raise
        check_not_mounted_rw(source)
        raise SourceError(
            f"{source} is open for writing, and no snapshot of it can be had",
            hint="close what writes to it, or take it as it is with --snapshot live",
        )
    opened = open_source(source)
    try:
        if wish != "live":
            check_not_mounted_rw(source)
    except ImagefsError:
        opened.close()
        raise
    return opened, None


def _report(
    console: Console, store: LocalStore, result: CaptureResult, verified: dict[str, bool] | None
) -> None:
    for warning in result.warnings:
        console.warn(warning)
    info = result.info
    path = os.path.join(store.url, info.name)
    kind = info.header.kind.name.lower()
    document = {
        "id": info.id,
        "kind": kind,
        "mode": info.header.mode.name.lower(),
        "path": path,
        "parent": info.header.parent.hex if info.header.parent else None,
        "disk_size": info.summary.disk_size,
        "read_bytes": result.read_bytes,
        "resumed_bytes": result.read_before,
        "stored_bytes": result.stored_bytes,
        "seconds": round(result.seconds, 3),
        "digests": result.digests,
        "estimate": asdict(result.estimate) if result.estimate else None,
        "unreadable_bytes": result.unreadable_bytes,
        "volumes": result.uses,
        "warnings": list(result.warnings),
    }
    if verified is not None:
        document["verification"] = {name: "MATCH" if same else "MISMATCH" for name, same in verified.items()}
    console.document(document)
    now = result.read_bytes - result.read_before
    rate = size_text(int(now / max(result.seconds, 0.001)))
    before = f" ({size_text(result.read_before)} of them before it was resumed)" if result.read_before else ""
    console.line(f"{path}: {kind} image of {size_text(info.summary.disk_size)}")
    console.line(
        f"  {size_text(result.read_bytes)} read{before}, {size_text(result.stored_bytes)} stored, "
        f"in {result.seconds:.1f} s ({rate}/s)"
    )
    for use in result.uses:
        console.line(f"  {use['id']:<4} {use_text(use)}")
    if result.unreadable_bytes:
        console.exit_code = worst_exit([console.exit_code, 3])
        where = f"`imagefs info {shlex.quote(path)}` lists them"
        counted = ", and count as zeros in the digests" if result.digests else ""
        console.warn(
            f"{result.unreadable_bytes} bytes could not be read; they are zeros in the image{counted}; {where}"
        )
    for name, digest in result.digests.items():
        said = "" if verified is None else "  MATCH" if verified.get(name) else "  MISMATCH"
        console.line(f"  {name:<7} {digest}{said}")
    if verified is not None and all(verified.values()) and console.exit_code in (0, 3):
        console.line("  verified: every chunk of its chain decodes and has its digest")
    if info.header.mode is Mode.USED and not all(use["whole"] for use in result.uses):
        console.line(
            "  unallocated space, so most deleted files, is not in this image; --mode all takes it too"
        )


def _verify(
    console: Console, store: LocalStore, result: CaptureResult, threads: int | None
) -> dict[str, bool]:
    """Read the finished image again; what that shows of each linear digest."""
    catalog = scan(store)
    found = catalog.by_uuid[result.info.uuid]
    with console.progress() as progress:
        report = verify_image(catalog, found, level="data", threads=threads, progress=progress)
        verified = dict.fromkeys(result.digests, False)
        if report.ok and result.digests:
            disk = catalog.open_disk(found)
            try:
                verified = check_digests(disk, result.digests, threads=threads, progress=progress)
            finally:
                disk.close()
    console.findings(report.findings, report.dropped)
    if not report.ok or not all(verified.values()):
        console.exit_code = worst_exit([console.exit_code, 4])
        console.warn(f"{found.name} does not read back as it was captured")
    return verified
