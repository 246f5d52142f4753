"""Capture: a disk goes through the pump (``pieces.py``) into one image of a set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from imagefs.block.devices import DeviceReader
from imagefs.block.foreign import ForeignImage, identify
from imagefs.block.views import BytesReader
from imagefs.errors import FormatError, SourceError, StoreFull
from imagefs.format.fields import encode_facts
from imagefs.format.header import Header
from imagefs.format.trailer import Summary
from imagefs.image.catalog import Catalog, ImageInfo, image_name, read_info, scan
from imagefs.image.writer import ImageWriter, abort_on_error
from imagefs.interfaces import NoProgress, ObjectStore, Progress
from imagefs.ops.linear import LinearDigests
from imagefs.ops.pieces import CaptureJob, Source
from imagefs.ops.plan import CaptureOptions, Plan, SourceFacts, make_header, make_plan
from imagefs.ops.pump import BATCH_BYTES, default_threads
from imagefs.ops.source import describe_source

#: Consistency, as the summary keeps it (FORMAT.md, 6).
NOBODY_KNOWS, OFFLINE, LIVE = 0, 1, 3
#: Bytes of the summary's facts kept free for what is known only at the end.
_ROOM = 2048


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What a capture made: ``stored_bytes`` is the size of the image object."""

    info: ImageInfo
    read_bytes: int
    stored_bytes: int
    seconds: float
    warnings: tuple[str, ...]

    @property
    def digests(self) -> dict[str, str]:
        """The linear digests by name, in hex."""
        return dict(self.info.summary.facts.get("digests", {}))


def capture(
    source: Source,
    store: ObjectStore,
    options: CaptureOptions,
    progress: Progress | None = None,
) -> CaptureResult:
    """Make one image of ``source`` in ``store``. Takes the set's lock; leaves all or nothing.

    Raises SourceError, StoreError, ChainError, UsageError; the set is then as it was before.
    """
    lock = store.lock()
    try:
        return _capture(source, scan(store), options, progress or NoProgress())
    finally:
        lock.release()


def _capture(source: Source, catalog: Catalog, options: CaptureOptions, progress: Progress) -> CaptureResult:
    begun = time.monotonic()
    first, head = _look_at(source, options)
    if not options.raw:
        _refuse_foreign(identify(head), source.path)
    sector_size = _sector_size(source)
    identity, volumes = describe_source(head, sector_size=sector_size)
    disk_size = source.size if isinstance(source, DeviceReader) else None
    facts = SourceFacts(identity, disk_size, sector_size)
    plan = make_plan(catalog, options, facts)
    header = make_header(plan, catalog, options, facts)
    summary = _summary(header, options, volumes, stream=disk_size is None)
    with _job(source, header, plan, catalog, options, progress) as (job, digests):
        name = _write_image(catalog, header, job, digests, summary, first, progress)
    made = read_info(catalog.store, name)
    seconds = time.monotonic() - begun
    return CaptureResult(
        made,
        job.read_bytes,
        made.tail.size,
        seconds,
        plan.warnings,
    )


@contextmanager
def _job(
    source: Source,
    header: Header,
    plan: Plan,
    catalog: Catalog,
    options: CaptureOptions,
    progress: Progress,
) -> Iterator[tuple[CaptureJob, LinearDigests | None]]:
    """The pump with all it reads through, closed again on every way out."""
    parent = catalog.open_disk(plan.parent) if plan.parent else None
    digests = LinearDigests(options.hashes) if options.hashes else None
    try:
        yield (
            CaptureJob(
                source,
                header,
                parent,
                threads=options.threads or default_threads(),
                progress=progress,
                digests=digests,
                throttle=options.throttle,
            ),
            digests,
        )
    finally:
        for each in (parent, digests):
            if each is not None:
                each.close()


def _write_image(
    catalog: Catalog,
    header: Header,
    job: CaptureJob,
    digests: LinearDigests | None,
    summary: Summary,
    first: bytes,
    progress: Progress,
) -> str:
    """The image from its header to its commit; gives its object's name. All or nothing."""
    name = image_name(header)
    out = catalog.store.create(name)
    try:
        writer = ImageWriter(out, header)
        job.run(writer, first)
        progress.start("finish", None)
        writer.finish(_finished(summary, job, digests))
    except StoreFull as error:
        told = _name_space(error, job, out.position)
        abort_on_error(out, told)
        raise told from error
    except BaseException as error:
        abort_on_error(out, error)
        raise
    return name


def _look_at(source: Source, options: CaptureOptions) -> tuple[bytes, DeviceReader | BytesReader]:
    """(bytes already taken from a stream, something to look at the source's beginning through)."""
    if isinstance(source, DeviceReader):
        return b"", source
    size = max(BATCH_BYTES, options.chunk_size or 0)
    first = source.read(size)
    return first, BytesReader(first)


def _refuse_foreign(found: ForeignImage | None, path: str) -> None:
    if found is not None and found.refuse:
        hint = f"{found.hint(path)}; or capture its bytes with --raw"
        raise SourceError(f"{path} is {found.name}, not a raw disk", hint=hint, kind=found.kind)


def _sector_size(source: Source) -> int:
    return source.sector_size if isinstance(source, DeviceReader) else 512


def _summary(
    header: Header,
    options: CaptureOptions,
    volumes: list[dict[str, Any]],
    *,
    stream: bool,
) -> Summary:
    consistency = LIVE if options.live else NOBODY_KNOWS if stream else OFFLINE
    facts: dict[str, Any] = {"volumes": volumes}
    if options.host:
        facts["host"] = dict(options.host)
    _make_fit(facts)
    return Summary(0, header.created, 0, bytes(32), consistency=consistency, facts=facts)


def _make_fit(facts: dict[str, Any]) -> None:
    """The tail has room for so much; the volumes can be looked at again in the image itself."""
    try:
        encode_facts({**facts, "room": "x" * _ROOM})
    except FormatError:
        facts["volumes"] = facts["volumes"][:8]


def _finished(summary: Summary, job: CaptureJob, digests: LinearDigests | None) -> Summary:
    facts = dict(summary.facts)
    if digests is not None:
        facts["digests"] = digests.finish()
    return replace(summary, disk_size=job.done, read_bytes=job.read_bytes, ended=time.time_ns(), facts=facts)


def _name_space(error: StoreFull, job: CaptureJob, position: int) -> StoreFull:
    """Say how much room the whole image would take, going by what had been done."""
    guess = f"at least {position} bytes are needed"
    if job.size and job.reached:
        total = max(position, position * job.size // min(job.reached, job.size))
        guess = f"about {total} bytes are needed for this image, {position} were written"
    return StoreFull(f"{error.message}: {guess}", hint=error.hint, **error.data, written=position)
