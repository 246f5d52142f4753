"""Capture: a disk goes through the pump (``pieces.py``) into one image of a set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from imagefs.block.devices import DeviceReader
from imagefs.block.foreign import ForeignImage, identify
from imagefs.block.rescue import Rescue
from imagefs.block.snapshot import SnapshotReader
from imagefs.block.views import BytesReader
from imagefs.errors import FormatError, SourceError, StoreFull, UsageError
from imagefs.format.fields import encode_facts
from imagefs.format.header import Header, Kind, Mode
from imagefs.format.trailer import Summary
from imagefs.image.again import AmendingWriter, FirstPass
from imagefs.image.catalog import Catalog, ImageInfo, image_name, read_info, scan
from imagefs.image.disk import VirtualDisk
from imagefs.image.resume import resumed_writer
from imagefs.image.writer import ImageWriter, abort_on_error
from imagefs.interfaces import NoProgress, ObjectStore, ObjectWriter, Progress
from imagefs.ops.estimate import Estimate, check_room, estimate, estimate_text
from imagefs.ops.linear import LinearDigests
from imagefs.ops.pieces import CaptureJob, Source
from imagefs.ops.plan import CaptureOptions, SourceFacts, make_header, make_plan
from imagefs.ops.pump import BATCH_BYTES, default_threads
from imagefs.ops.resume import (
    check_skips,
    check_source,
    feed_again,
    find_parent,
    newest_partial,
    partial_of,
    resumed_options,
    unreadable,
)
from imagefs.ops.skips import NOTHING, Skips
from imagefs.ops.source import describe_source
from imagefs.ops.usedblocks import VolumeUse, find_skips

#: Consistency, as the summary keeps it (FORMAT.md, 6).
NOBODY_KNOWS, OFFLINE, SNAPSHOT, LIVE = 0, 1, 2, 3
#: Bytes of the summary's facts kept free for what is known only at the end.
_ROOM = 2048


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What a capture made: ``stored_bytes`` is the size of the image object; of ``read_bytes`` the
    ``read_before`` were read by the runs that this one went on from, outside of ``seconds``."""

    info: ImageInfo
    read_bytes: int
    stored_bytes: int
    seconds: float
    warnings: tuple[str, ...]
    estimate: Estimate | None = None
    read_before: int = 0

    @property
    def digests(self) -> dict[str, str]:
        """The linear digests by name, in hex."""
        return dict(self.info.summary.facts.get("digests", {}))

    @property
    def uses(self) -> list[dict[str, Any]]:
        """What was taken of each volume in mode used: id, used bytes, source of the map, or why whole."""
        return list(self.info.summary.facts.get("allocation", []))

    @property
    def unreadable_bytes(self) -> int:
        """What the source could not read."""
        return int(self.info.summary.facts.get("errors", {}).get("bytes", 0))


def capture(
    source: Source,
    store: ObjectStore,
    options: CaptureOptions,
    progress: Progress | None = None,
) -> CaptureResult:
    """Make one image of ``source`` in ``store``. Takes the set's lock.

    Raises SourceError, StoreError, ChainError, UsageError; the set is then as it was before. What was
    stopped by a signal, a full store or a failing device leaves a partial that ``options.resume`` goes
    on with, once there is a checkpoint.
    """
    lock = store.lock()
    try:
        work = _resume if options.resume else _capture
        return work(source, scan(store), options, progress or NoProgress())
    finally:
        lock.release()


def _capture(source: Source, catalog: Catalog, options: CaptureOptions, progress: Progress) -> CaptureResult:
    begun = time.monotonic()
    first, head = _look_at(source, options)
    if not options.raw:
        _refuse_foreign(identify(head), source.path)
    facts, volumes = _facts(source, head)
    plan = make_plan(catalog, options, facts)
    taken = source.snapshot.kind if isinstance(source, SnapshotReader) else "live" if options.live else ""
    header = make_header(plan, catalog, options, facts, snapshot=taken)
    skips, uses = _skips(source, header, options, progress)
    summary = _summary(header, _consistency(source, options), volumes, uses)
    name, live = image_name(header), isinstance(source, DeviceReader) and options.live
    # Of a source in use only the second pass makes digests: its bytes are those of the image.
    first_options = replace(options, hashes=()) if live else options
    with (
        _parent_disk(catalog, plan.parent) as disk,
        _job(source, header, disk, first_options, skips, progress) as (job, digests),
    ):
        guess = _estimated(source, header, disk, skips, options, catalog, progress)
        out = catalog.store.create(name)
        with _kept_or_gone(out, job) as keep:
            writer = keep.writer = ImageWriter(out, header)
            job.run(writer, first)
            again = live and writer.suspend(checkpoint=True)
            if not again:
                progress.start("finish", None)
                writer.finish(_finished(summary, job, digests))
        if again:
            job = _read_again(source, catalog, disk, name, options, progress, summary, skips, job)
    made = _result(catalog, name, job, begun, (*plan.warnings, *_said(source)))
    return replace(made, estimate=guess)


def _estimated(
    source: Source,
    header: Header,
    parent: VirtualDisk | None,
    skips: Skips,
    options: CaptureOptions,
    catalog: Catalog,
    progress: Progress,
) -> Estimate | None:
    """What it will take, told before it starts, and that the set's disk may be too small."""
    if not options.estimate or not isinstance(source, DeviceReader):
        return None
    progress.start("estimate", None)
    threads = options.threads or default_threads()
    guess = estimate(source, header, parent, skips, threads=threads, rate=options.rate)
    if guess is None:
        return None
    progress.note(estimate_text(guess))
    warning = check_room(guess, catalog.store, full=header.kind is Kind.FULL)
    if warning:
        progress.note(f"warning: {warning}")
    return guess


def _said(source: Source) -> tuple[str, ...]:
    """What a snapshot had to say at its end."""
    return tuple(source.warnings) if isinstance(source, SnapshotReader) else ()


def _read_again(
    source: Source,
    catalog: Catalog,
    parent: VirtualDisk | None,
    name: str,
    options: CaptureOptions,
    progress: Progress,
    summary: Summary,
    skips: Skips,
    job: CaptureJob,
) -> CaptureJob:
    """The second pass over a source in use: what changed during the first is read and written anew."""
    assert isinstance(source, DeviceReader)
    with closing(partial_of(catalog, name, source.size)) as partial:
        before = FirstPass(partial, parent, source.size)
        with _job(source, partial.header, before, options, skips, progress) as (second, digests):
            second.label = "changes"
            out = catalog.store.reopen(partial.name, partial.end)
            with _kept_or_gone(out, second) as keep:
                writer = keep.writer = AmendingWriter(out, partial, before)
                second.run(writer)
                progress.start("finish", None)
                done = _finished(summary, second, digests)
                writer.finish(replace(done, facts={**done.facts, "changed_chunks": writer.changed}))
    second.read_bytes += job.read_bytes
    return second


def _resume(source: Source, catalog: Catalog, options: CaptureOptions, progress: Progress) -> CaptureResult:
    """Go on with the newest unfinished capture of the set."""
    begun = time.monotonic()
    if not isinstance(source, DeviceReader):
        raise UsageError(
            "standard input cannot be resumed: its beginning is gone", hint="start a new capture"
        )
    facts, volumes = _facts(source, source)
    partial = newest_partial(catalog, facts)
    try:
        header, options = partial.header, resumed_options(options, partial)
        parent = find_parent(catalog, partial)
        skips, uses = _skips(source, header, options, progress)
        check_skips(source, partial, skips)
        summary = _summary(header, _consistency(source, options), volumes, uses)
        with (
            _parent_disk(catalog, parent) as disk,
            _job(source, header, disk, options, skips, progress) as (job, digests),
        ):
            check_source(source, partial, disk, facts)
            job.take_up(partial.next_chunk, unreadable(partial))
            resumed = {"at": time.time_ns(), "byte": job.done}
            summary = replace(summary, facts={**summary.facts, "resumed": resumed})
            if digests is not None:
                progress.start("digests", None)
                feed_again(digests, partial, disk, source.size, options.check_stop)
            out = catalog.store.reopen(partial.name, partial.end)
            with _kept_or_gone(out, job) as keep:
                writer = keep.writer = resumed_writer(partial, out, disk)
                job.run(writer)
                progress.start("finish", None)
                writer.finish(_finished(summary, job, digests))
    finally:
        partial.close()
    return _result(catalog, image_name(header), job, begun, _said(source))


def _facts(source: Source, head: DeviceReader | BytesReader) -> tuple[SourceFacts, list[dict[str, Any]]]:
    size, sector_size = (source.size, source.sector_size) if isinstance(source, DeviceReader) else (None, 512)
    identity, volumes = describe_source(head, sector_size=sector_size)
    return SourceFacts(identity, size, sector_size), volumes


def _result(
    catalog: Catalog, name: str, job: CaptureJob, begun: float, warnings: tuple[str, ...]
) -> CaptureResult:
    made = read_info(catalog.store, name)
    return CaptureResult(
        made,
        job.read_bytes,
        made.tail.size,
        time.monotonic() - begun,
        warnings,
        read_before=job.read_before,
    )


@contextmanager
def _parent_disk(catalog: Catalog, parent: ImageInfo | None) -> Iterator[VirtualDisk | None]:
    if parent is None:
        yield None
        return
    with closing(catalog.open_disk(parent)) as disk:
        yield disk


@contextmanager
def _job(
    source: Source,
    header: Header,
    parent: VirtualDisk | FirstPass | None,
    options: CaptureOptions,
    skips: Skips,
    progress: Progress,
) -> Iterator[tuple[CaptureJob, LinearDigests | None]]:
    """The pump with what it reads through, closed again on every way out."""
    digests = LinearDigests(options.hashes) if options.hashes else None
    rescue = None
    try:
        if isinstance(source, DeviceReader):
            rescue = Rescue(source, max_errors=options.max_errors, known_bad=options.known_bad)
        yield (
            CaptureJob(
                source,
                header,
                parent,
                threads=options.threads or default_threads(),
                progress=progress,
                skips=skips,
                rescue=rescue,
                digests=digests,
                throttle=options.throttle,
                rate=options.rate,
                check_stop=options.check_stop,
                moving=options.live,
            ),
            digests,
        )
    finally:
        for each in (digests, rescue):
            if each is not None:
                each.close()


@dataclass(slots=True)
class _Kept:
    """The writer of an image under way, once there is one."""

    writer: ImageWriter | None = None


@contextmanager
def _kept_or_gone(out: ObjectWriter, job: CaptureJob) -> Iterator[_Kept]:
    """On an error the partial is kept where it can be resumed, else removed.

    A signal (no Exception) and a failing device get a last checkpoint; a full store leaves the last
    one there is. After any other error the partial is not worth going on with.
    """
    kept = _Kept()
    try:
        yield kept
    except BaseException as error:
        told = _name_space(error, job, out.position) if isinstance(error, StoreFull) else error
        worth = (
            not isinstance(error, Exception)
            or isinstance(error, StoreFull)
            or (isinstance(error, SourceError) and "errno" in error.data)
        )
        resumable = worth and job.can_resume and kept.writer is not None
        full = isinstance(error, StoreFull)
        if not (resumable and kept.writer and kept.writer.suspend(checkpoint=not full)):
            abort_on_error(out, told)
        if told is not error:
            raise told from error
        raise


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


def _skips(
    source: Source, header: Header, options: CaptureOptions, progress: Progress
) -> tuple[Skips, list[VolumeUse]]:
    if header.mode is not Mode.USED or not isinstance(source, DeviceReader):
        return NOTHING, []
    progress.start("used blocks", None)
    changing = "it may change while it is captured" if options.live else ""
    if isinstance(source, SnapshotReader) and not source.snapshot.settled:
        changing = "it was in use and could not be held still for the snapshot"
    return find_skips(source, sector_size=header.sector_size, keep_swap=options.keep_swap, changing=changing)


def _consistency(source: Source, options: CaptureOptions) -> int:
    if isinstance(source, SnapshotReader):
        return SNAPSHOT
    return LIVE if options.live else OFFLINE if isinstance(source, DeviceReader) else NOBODY_KNOWS


def _summary(
    header: Header, consistency: int, volumes: list[dict[str, Any]], uses: list[VolumeUse]
) -> Summary:
    facts: dict[str, Any] = {"volumes": volumes}
    if uses:
        facts["allocation"] = [
            {"id": use.volume, "used": use.used_bytes, "source": use.source, "whole": use.reason[:160]}
            for use in uses
        ]
    _make_fit(facts)
    return Summary(0, header.created, 0, bytes(32), consistency=consistency, facts=facts)


def _make_fit(facts: dict[str, Any]) -> None:
    """The tail has room for so much; the volumes can be looked at again in the image itself."""
    for name in ("allocation", "volumes"):
        try:
            encode_facts({**facts, "room": "x" * _ROOM})
        except FormatError:
            facts[name] = facts.get(name, [])[:8]


def _finished(summary: Summary, job: CaptureJob, digests: LinearDigests | None) -> Summary:
    facts = dict(summary.facts)
    if digests is not None:
        facts["digests"] = digests.finish()
    if job.unreadable_bytes:
        facts["errors"] = {"bytes": job.unreadable_bytes, **job.tried()}
    return replace(summary, disk_size=job.done, read_bytes=job.read_bytes, ended=time.time_ns(), facts=facts)


def _name_space(error: StoreFull, job: CaptureJob, position: int) -> StoreFull:
    """Say how much room the whole image would take, going by what had been done."""
    guess = f"at least {position} bytes are needed"
    if job.size and job.reached:
        total = max(position, position * job.size // min(job.reached, job.size))
        guess = f"about {total} bytes are needed for this image, {position} were written"
    return StoreFull(f"{error.message}: {guess}", hint=error.hint, **error.data, written=position)
