"""What a capture is asked for and what it comes to: kind, parent, mode, header."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from imagefs.errors import ChainError, FormatError, SourceError, UsageError
from imagefs.format.codec import digest_of
from imagefs.format.fields import check_chunk_size
from imagefs.format.header import Header, Kind, Mode
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.ops.source import difference
from imagefs.ops.verify import verify_image
from imagefs.version import VERSION

DEFAULT_LEVEL = 4
KIB, TIB = 1024, 2**40
#: Chunk size by disk size, largest first (the table in FORMAT.md tells why).
CHUNK_SIZES = ((4 * TIB, 256 * KIB), (1 * TIB, 128 * KIB), (0, 64 * KIB))


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the user chose. ``kind`` None means auto; ``chunk_size`` None means by disk size.

    ``mode`` None is that of the set's newest image, else used; ``keep_swap`` keeps what swap holds;
    ``estimate`` takes samples first.
    ``hashes`` are linear digests of the whole device
    (``linear.ALGORITHMS``), ``case`` and ``host`` what an examiner's report tells of case and machine;
    both are text by name. More than ``max_errors`` unreadable sectors end it; ``known_bad`` (offset, length)
    are not even tried. ``throttle`` is told how many bytes are about to be read, ``rate`` is how many a
    second it lets pass; ``check_stop`` is
    called between batches and raises to stop. ``resume`` goes on with an unfinished capture. ``live`` says that
    the source was in use and the user knows; ``raw`` captures the bytes of a file even where they are
    another program's image.
    """

    kind: Kind | None = None
    mode: Mode | None = None
    keep_swap: bool = False
    estimate: bool = False
    level: int = DEFAULT_LEVEL
    chunk_size: int | None = None
    threads: int | None = None
    note: str = ""
    new_source: bool = False
    live: bool = False
    raw: bool = False
    hashes: tuple[str, ...] = ()
    case: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, str] = field(default_factory=dict)
    max_errors: int | None = None
    known_bad: tuple[tuple[int, int], ...] = ()
    throttle: Callable[[int], None] | None = None
    rate: float | None = None
    check_stop: Callable[[], None] | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What is known of a source before it is read; ``disk_size`` is None of a stream."""

    identity: dict[str, Any]
    disk_size: int | None
    sector_size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of image is made, on which parent, in which mode, and what is to be told about that."""

    kind: Kind
    parent: ImageInfo | None
    mode: Mode = Mode.ALL
    warnings: tuple[str, ...] = ()


def choose_mode(catalog: Catalog, options: CaptureOptions, *, stream: bool) -> Mode:
    """Whether every sector is captured or only what file systems use. Raises UsageError."""
    newest = catalog.newest()
    why = "standard input cannot be looked into first" if stream else ""
    why = why or ("case data ask for every sector" if options.case else "")
    usual = newest.header.mode if newest else Mode.USED
    mode = options.mode or (Mode.ALL if why or options.hashes else usual)
    if mode is Mode.USED and why:
        raise UsageError(f"--mode used cannot be had: {why}", hint="use --mode all")
    if mode is Mode.USED and options.hashes:
        raise UsageError(
            "digests of the whole device need every sector, and this capture leaves out unallocated space",
            hint="add --mode all",
        )
    return mode


def make_plan(catalog: Catalog, options: CaptureOptions, source: SourceFacts) -> Plan:
    """Full, incremental or differential, and on which parent. Raises where the wish cannot be met."""
    newest, mode = catalog.newest(), choose_mode(catalog, options, stream=source.disk_size is None)
    if newest is not None and not options.new_source:
        _check_same_source(newest, source.identity, source.disk_size)
    if options.kind is Kind.FULL or options.new_source or (options.kind is None and newest is None):
        if options.new_source and options.kind not in (None, Kind.FULL):
            raise UsageError("--new-source starts a new full image", hint="leave --kind out")
        return Plan(Kind.FULL, None, mode, _unreadable(catalog) if options.kind is None else ())
    parent = catalog.newest_full() if options.kind is Kind.DIFFERENTIAL else newest
    if parent is None:
        raise ChainError("the set has no full image to build on", hint="capture with --kind full first")
    if options.chunk_size not in (None, parent.header.chunk_size):
        raise UsageError(
            f"the chain's chunk size is {parent.header.chunk_size}, a child cannot have {options.chunk_size}",
            hint="leave --chunk-size out, or start a new chain with --kind full",
        )
    reason = unfit(catalog, parent, source.sector_size)
    if not reason:
        return Plan(options.kind or Kind.INCREMENTAL, parent, mode, _unreadable(catalog))
    if options.kind is not None:
        raise ChainError(
            f"{parent.name} cannot be built on: {reason}", hint="start a new chain with --kind full"
        )
    return Plan(Kind.FULL, None, mode, (f"a full image is taken, because {reason}",))


def _unreadable(catalog: Catalog) -> tuple[str, ...]:
    """What the choice was made without: the newest image may be among these."""
    return tuple(f"{found.name} was left aside: {error.message}" for found, error in catalog.damaged)


def unfit(catalog: Catalog, parent: ImageInfo, sector_size: int) -> str:
    """Why no child may be made of ``parent``; empty when it is sound."""
    if parent.header.sector_size != sector_size:
        return f"the sector size is {sector_size}, in the chain it was {parent.header.sector_size}"
    findings = verify_image(catalog, parent, level="quick").findings
    errors = [finding.message for finding in findings if finding.severity == "error"]
    return f"the chain of {parent.name} is damaged: {errors[0]}" if errors else ""


def _check_same_source(newest: ImageInfo, identity: dict[str, Any], disk_size: int | None) -> None:
    old = newest.header.facts.get("source")
    reason = difference(
        old if isinstance(old, dict) else {},
        identity,
        old_size=newest.summary.disk_size,
        new_size=disk_size,
    )
    if reason:
        raise SourceError(
            f"this is not the disk the set was made from: {reason}",
            hint="use another set for it, or --new-source to start a new full image in this one",
        )


def make_header(
    plan: Plan, catalog: Catalog, options: CaptureOptions, source: SourceFacts, *, snapshot: str = ""
) -> Header:
    """``snapshot`` is ``lvm``, ``reflink`` or ``live`` where the source was in use."""
    newest, parent = catalog.newest(), plan.parent
    after = max((info.created for info in (newest, parent) if info is not None), default=0)
    facts: dict[str, Any] = {"tool": f"imagefs {VERSION}", "source": source.identity}
    if options.note:
        facts |= header_text({"note": options.note})
    if snapshot:
        facts["snapshot"] = snapshot
    if options.hashes:
        facts["hashes"] = list(options.hashes)
    if options.host:
        facts["host"] = dict(options.host)
    if options.case:
        facts["case"] = header_text(options.case)
    if options.known_bad:
        facts["mapfile"] = known_bad_digest(options)
    return Header(
        image=uuid4(),
        set=newest.header.set if newest else uuid4(),
        kind=plan.kind,
        created=max(time.time_ns(), after + 1),
        chunk_size=parent.header.chunk_size if parent else _chunk_size(options, source.disk_size),
        sector_size=source.sector_size,
        parent=parent.uuid if parent else None,
        parent_seal=parent.tail.seal if parent else bytes(32),
        parent_view=parent.summary.view if parent else bytes(32),
        mode=plan.mode,
        level=options.level,
        facts=facts,
    )


def header_text(words: Mapping[str, str]) -> dict[str, str]:
    """Raw bytes of the command line that are no text cannot be kept as they are."""
    return {name: value.encode("utf-8", "replace").decode() for name, value in words.items()}


def known_bad_digest(options: CaptureOptions) -> str:
    """What shows whether another run was given the same mapfile; empty for none."""
    return digest_of(repr(list(options.known_bad)).encode()).hex() if options.known_bad else ""


def _chunk_size(options: CaptureOptions, disk_size: int | None) -> int:
    if options.chunk_size is not None:
        try:
            check_chunk_size(options.chunk_size)
        except FormatError as error:
            raise UsageError(error.message, hint="leave --chunk-size out to have it chosen") from error
        return options.chunk_size
    return next(size for least, size in CHUNK_SIZES if (disk_size or 0) >= least)
