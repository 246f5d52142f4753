"""``imagefs capture``."""

from __future__ import annotations

import os
import sys

import click

from imagefs.block.devices import DeviceReader, StreamSource, open_source
from imagefs.block.usage import check_not_mounted_rw, lies_on
from imagefs.cli.command import common
from imagefs.cli.console import Console, default_set
from imagefs.cli.text import size_text
from imagefs.errors import ImagefsError, SourceError, UsageError
from imagefs.format.codec import MAX_LEVEL, MIN_LEVEL
from imagefs.format.header import Kind
from imagefs.image.catalog import SUFFIX, scan
from imagefs.ops.capture import DEFAULT_LEVEL, CaptureOptions, CaptureResult
from imagefs.ops.capture import capture as run_capture
from imagefs.ops.verify import verify_image
from imagefs.store import LocalStore

KINDS = {
    "auto": None,
    "full": Kind.FULL,
    "incr": Kind.INCREMENTAL,
    "incremental": Kind.INCREMENTAL,
    "diff": Kind.DIFFERENTIAL,
    "differential": Kind.DIFFERENTIAL,
}
UNITS = {"": 1, "k": 1024, "kib": 1024, "m": 1024**2, "mib": 1024**2}


def parse_size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """``65536``, ``64K``, ``64KiB``, ``1M`` → bytes."""
    if text is None:
        return None
    digits = text.rstrip("kKmMiIbB")
    unit = text[len(digits) :].lower()
    if not digits.isascii() or not digits.isdigit() or unit not in UNITS:
        raise click.BadParameter(f"{text!r} is not a size; write 64K or 65536")
    return int(digits) * UNITS[unit]


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
    "--mode", type=click.Choice(["all"]), default="all", show_default=True, help="Capture every sector."
)
@click.option(
    "--snapshot",
    type=click.Choice(["none", "live"]),
    default="none",
    show_default=True,
    help="live: take a device that is mounted read-write as it is.",
)
@click.option("--note", default="", metavar="TEXT", help="Kept in the image.")
@click.option(
    "--verify", "then_verify", is_flag=True, help="Re-read and check the finished image and its chain."
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
    "--chunk-size",
    callback=parse_size,
    metavar="SIZE",
    help="16K to 4M, a power of two; by default by disk size. A child has its chain's.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Default: all cores.")
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
    mode: str,
    snapshot: str,
    note: str,
    then_verify: bool,
    level: int,
    chunk_size: int | None,
    threads: int | None,
    new_source: bool,
    raw: bool,
) -> None:  # fmt: skip
    """Make an image of SOURCE (a block device, a raw file, or - for standard input) in SET.

    SET is a folder; its last part is made when missing. Every sector is captured.
    """
    folder = set_ or default_set()
    options = CaptureOptions(
        kind=KINDS[kind],
        level=level,
        chunk_size=chunk_size,
        threads=threads,
        note=_bounded(note),
        new_source=new_source,
        live=snapshot == "live",
        raw=raw,
    )
    opened = _open(source, live=options.live)
    try:
        if isinstance(opened, DeviceReader) and lies_on(folder, source):
            raise SourceError(
                f"the set {folder} lies on the source {source} itself", hint="use a set on another disk"
            )
        store = LocalStore(folder, suffix=SUFFIX)
        store.make()
        with console.progress() as progress:
            result = run_capture(opened, store, options, progress)
    finally:
        if isinstance(opened, DeviceReader):
            opened.close()
    _report(console, store, result)
    if then_verify:
        _verify(console, store, result, threads)


def _bounded(note: str) -> str:
    if len(note.encode("utf-8", "replace")) > 4096:
        raise UsageError("the note is longer than 4096 bytes", hint="keep it shorter")
    return note


def _open(source: str, *, live: bool) -> DeviceReader | StreamSource:
    """The source, after everything that can be refused before reading it."""
    if source == "-":
        if sys.stdin.isatty():
            raise SourceError("standard input is a terminal", hint="feed a disk in, or name a device or file")
        return StreamSource(sys.stdin.fileno())
    opened = open_source(source)
    try:
        if not live:
            check_not_mounted_rw(source)
    except ImagefsError:
        opened.close()
        raise
    return opened


def _report(console: Console, store: LocalStore, result: CaptureResult) -> None:
    for warning in result.warnings:
        console.warn(warning)
    info = result.info
    path = os.path.join(store.url, info.name)
    kind = info.header.kind.name.lower()
    console.document(
        {
            "id": info.id,
            "kind": kind,
            "path": path,
            "parent": info.header.parent.hex if info.header.parent else None,
            "disk_size": info.summary.disk_size,
            "read_bytes": result.read_bytes,
            "stored_bytes": result.stored_bytes,
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        }
    )
    rate = size_text(int(result.read_bytes / max(result.seconds, 0.001)))
    console.line(f"{path}: {kind} image of {size_text(info.summary.disk_size)}")
    console.line(
        f"  {size_text(result.read_bytes)} read, {size_text(result.stored_bytes)} stored, "
        f"in {result.seconds:.1f} s ({rate}/s)"
    )


def _verify(console: Console, store: LocalStore, result: CaptureResult, threads: int | None) -> None:
    with console.progress() as progress:
        catalog = scan(store)
        report = verify_image(
            catalog, catalog.by_uuid[result.info.uuid], level="data", threads=threads, progress=progress
        )
    console.findings(report.findings, report.dropped)
    if not report.ok:
        console.exit_code = 4
    else:
        console.line("  verified: every chunk of its chain decodes and has its digest")
