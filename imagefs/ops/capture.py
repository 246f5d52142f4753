"""Capture: a disk goes through the pump into one image of a set.

source → chunks → zero? → digest → same as the parent's? → compress → writer, in disk order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any
from uuid import uuid4

from imagefs.block.devices import DeviceReader, StreamSource
from imagefs.block.foreign import ForeignImage, identify
from imagefs.block.views import BytesReader, extents_of
from imagefs.errors import ChainError, FormatError, SourceError, StoreFull, UsageError
from imagefs.format.codec import digest_of, make_frame
from imagefs.format.fields import check_chunk_size
from imagefs.format.header import Header, Kind, Mode
from imagefs.format.trailer import Summary
from imagefs.image.catalog import Catalog, ImageInfo, image_name, read_info, scan
from imagefs.image.disk import VirtualDisk
from imagefs.image.writer import ImageWriter, abort_on_error
from imagefs.interfaces import NoProgress, ObjectStore, Progress, State
from imagefs.ops.pump import BATCH_BYTES, default_threads, ordered_map, read_ahead
from imagefs.ops.source import describe_source, difference
from imagefs.ops.verify import verify_image
from imagefs.version import VERSION

DEFAULT_LEVEL = 4
KIB, TIB = 1024, 2**40
#: Chunk size by disk size, largest first (the table in FORMAT.md tells why).
CHUNK_SIZES = ((4 * TIB, 256 * KIB), (1 * TIB, 128 * KIB), (0, 64 * KIB))

Source = DeviceReader | StreamSource
#: A batch of a device: larger than a stream's, which has to come first, so fewer are handed over.
_DEVICE_BATCH = 4 * BATCH_BYTES
#: Chunk sizes are powers of two, so it is whole chunks, or less than one.
_READ_BYTES = 512 * KIB
_STORED, _ABSENT = bytes([State.STORED]), bytes([State.ABSENT])


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the user chose. ``kind`` None means auto; ``chunk_size`` None means by disk size.

    ``live`` says that the source was in use and the user knows; ``raw`` captures the bytes of a
    file even where they are another program's image.
    """

    kind: Kind | None = None
    mode: Mode = Mode.ALL
    level: int = DEFAULT_LEVEL
    chunk_size: int | None = None
    threads: int | None = None
    note: str = ""
    new_source: bool = False
    live: bool = False
    raw: bool = False


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """What a capture made: ``stored_bytes`` is the size of the image object."""

    info: ImageInfo
    read_bytes: int
    stored_bytes: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of image is made, on which parent, and what is to be told about that choice."""

    kind: Kind
    parent: ImageInfo | None
    warnings: tuple[str, ...] = ()


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
    identity, volumes = describe_source(head, sector_size=_sector_size(source))
    disk_size = source.size if isinstance(source, DeviceReader) else None
    sector_size = _sector_size(source)
    plan = make_plan(catalog, options, identity=identity, disk_size=disk_size, sector_size=sector_size)
    header = _header(plan, catalog, options, identity, disk_size=disk_size, sector_size=sector_size)
    name = image_name(header)
    parent = catalog.open_disk(plan.parent) if plan.parent else None
    try:
        job = _Job(source, header, parent, options.threads or default_threads(), progress)
        out = catalog.store.create(name)
        try:
            summary = _summary(header, options, volumes)
            job.run(ImageWriter(out, header), summary, first)
        except StoreFull as error:
            told = _name_space(error, job, out.position)
            abort_on_error(out, told)
            raise told from error
        except BaseException as error:
            abort_on_error(out, error)
            raise
    finally:
        if parent:
            parent.close()
    made = read_info(catalog.store, name)
    seconds = time.monotonic() - begun
    return CaptureResult(made, job.read_bytes, made.tail.size, seconds, plan.warnings)


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


# -- what kind of image ---------------------------------------------------------------------------


def make_plan(
    catalog: Catalog,
    options: CaptureOptions,
    *,
    identity: dict[str, Any],
    disk_size: int | None,
    sector_size: int,
) -> Plan:
    """Full, incremental or differential, and on which parent. Raises where the wish cannot be met."""
    newest = catalog.newest()
    if newest is not None and not options.new_source:
        _check_same_source(newest, identity, disk_size)
    if options.kind is Kind.FULL or options.new_source or (options.kind is None and newest is None):
        if options.new_source and options.kind not in (None, Kind.FULL):
            raise UsageError("--new-source starts a new full image", hint="leave --kind out")
        return Plan(Kind.FULL, None, _unreadable(catalog) if options.kind is None else ())
    parent = catalog.newest_full() if options.kind is Kind.DIFFERENTIAL else newest
    if parent is None:
        raise ChainError("the set has no full image to build on", hint="capture with --kind full first")
    if options.chunk_size not in (None, parent.header.chunk_size):
        raise UsageError(
            f"the chain's chunk size is {parent.header.chunk_size}, a child cannot have {options.chunk_size}",
            hint="leave --chunk-size out, or start a new chain with --kind full",
        )
    reason = unfit(catalog, parent, sector_size)
    if not reason:
        return Plan(options.kind or Kind.INCREMENTAL, parent, _unreadable(catalog))
    if options.kind is not None:
        raise ChainError(
            f"{parent.name} cannot be built on: {reason}", hint="start a new chain with --kind full"
        )
    return Plan(Kind.FULL, None, (f"a full image is taken, because {reason}",))


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


def _header(
    plan: Plan,
    catalog: Catalog,
    options: CaptureOptions,
    identity: dict[str, Any],
    *,
    disk_size: int | None,
    sector_size: int,
) -> Header:
    newest, parent = catalog.newest(), plan.parent
    after = max((info.created for info in (newest, parent) if info is not None), default=0)
    facts: dict[str, Any] = {"tool": f"imagefs {VERSION}", "source": identity}
    if options.note:
        # Raw bytes of the command line that are no text cannot be kept as they are.
        facts["note"] = options.note.encode("utf-8", "replace").decode()
    return Header(
        image=uuid4(),
        set=newest.header.set if newest else uuid4(),
        kind=plan.kind,
        created=max(time.time_ns(), after + 1),
        chunk_size=parent.header.chunk_size if parent else _chunk_size(options, disk_size),
        sector_size=sector_size,
        parent=parent.uuid if parent else None,
        parent_seal=parent.tail.seal if parent else bytes(32),
        parent_view=parent.summary.view if parent else bytes(32),
        mode=options.mode,
        level=options.level,
        facts=facts,
    )


def _chunk_size(options: CaptureOptions, disk_size: int | None) -> int:
    if options.chunk_size is not None:
        try:
            check_chunk_size(options.chunk_size)
        except FormatError as error:
            raise UsageError(error.message, hint="leave --chunk-size out to have it chosen") from error
        return options.chunk_size
    return next(size for least, size in CHUNK_SIZES if (disk_size or 0) >= least)


def _summary(header: Header, options: CaptureOptions, volumes: list[dict[str, Any]]) -> Summary:
    return Summary(
        disk_size=0,
        started=header.created,
        ended=0,
        view=bytes(32),
        consistency=3 if options.live else 1,
        facts={"volumes": volumes},
    )


# -- the pump -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """``count`` chunks from ``first`` on, ``length`` bytes of the disk.

    ``data`` is what a stream gave. Of a device the worker reads it, piece by piece, so that each is
    hashed while it is in that core's cache; ``holes`` says that all of it is known to be zero.
    """

    first: int
    count: int
    length: int
    data: bytes | None = None
    holes: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What became of ``count`` chunks: ``frame`` and ``codec`` for one that is stored.

    ``state`` is that of the view; ``absent`` says that the parent holds the same; ``alone`` marks a
    last chunk that is shorter than the others.
    """

    state: State
    first: int
    count: int
    absent: bool = False
    alone: bool = False
    digests: bytes = b""
    codec: int = 0
    frame: bytes = b""


class _Job:
    """One capture under way: from batches of the source to calls of the writer."""

    def __init__(
        self, source: Source, header: Header, parent: VirtualDisk | None, threads: int, progress: Progress
    ) -> None:
        self._source = source
        self._header = header
        self._parent = parent
        self._threads = threads
        self._progress = progress
        self._chunk = header.chunk_size
        self._zeros = bytes(self._chunk)
        self.size = source.size if isinstance(source, DeviceReader) else None
        self.done = self.reached = 0
        self.read_bytes = 0

    def run(self, writer: ImageWriter, summary: Summary, first: bytes) -> None:
        """Everything from the first batch to the commit."""
        self._progress.start("capture", self.size)
        streams = self.size is None
        batches = read_ahead(self._stream_batches(first)) if streams else self._device_batches()
        results = ordered_map(self.work, batches, threads=self._threads)
        try:
            for batch, pieces in results:
                for piece in pieces:
                    self._write(writer, piece)
                writer.checkpoint_if_due()
                self.done += batch.length
                self.read_bytes += 0 if batch.holes else batch.length
                self._progress.advance(batch.length)
        finally:
            results.close()
        if isinstance(self._source, DeviceReader):
            self._source.check_unchanged()
        summary = replace(summary, disk_size=self.done, read_bytes=self.read_bytes, ended=time.time_ns())
        self._progress.start("finish", None)
        writer.finish(summary)

    def _write(self, writer: ImageWriter, piece: Piece) -> None:
        self.reached = (piece.first + piece.count) * self._chunk
        if piece.absent:
            writer.inherit(piece.state, piece.first, piece.count, piece.digests)
        elif piece.state is State.STORED:
            writer.store(piece.first, piece.codec, piece.frame, piece.digests)
        else:
            writer.mark(piece.state, piece.first, piece.count)

    def _device_batches(self) -> Iterator[Batch]:
        """The whole disk in order; stretches that the source knows to be zero are not read."""
        assert isinstance(self._source, DeviceReader)
        size, chunk = self._source.size, self._chunk
        chunks, per_batch = -(-size // chunk), max(1, _DEVICE_BATCH // chunk)
        position = 0
        for extent in extents_of(self._source, 0, size):
            if extent.state is not State.STORED:
                continue
            first, end = extent.offset // chunk, -(-(extent.offset + extent.length) // chunk)
            if first > position:
                yield self._batch(position, first, holes=True)
            for start in range(max(first, position), end, per_batch):
                yield self._batch(start, min(start + per_batch, end))
            position = max(position, end)
        if position < chunks:
            yield self._batch(position, chunks, holes=True)

    def _batch(self, first: int, end: int, *, holes: bool = False) -> Batch:
        """Chunks ``first`` to before ``end`` of a device."""
        assert self.size is not None
        length = min(end * self._chunk, self.size) - first * self._chunk
        return Batch(first, end - first, length, holes=holes)

    def _stream_batches(self, data: bytes) -> Iterator[Batch]:
        assert isinstance(self._source, StreamSource)
        size = max(BATCH_BYTES, self._chunk)
        data += self._source.read(size - len(data)) if len(data) < size else b""
        position = 0
        while data:
            yield Batch(position, -(-len(data) // self._chunk), len(data), data)
            position += len(data) // self._chunk
            data = self._source.read(size)

    def work(self, batch: Batch) -> tuple[Batch, list[Piece]]:
        """Runs on a worker: what becomes of each chunk of ``batch``."""
        if batch.holes:
            return batch, list(self._zero_pieces(Piece(State.ZERO, batch.first, batch.count)))
        return batch, list(_joined(self._pieces(batch)))

    def _read(self, start: int, length: int) -> Iterator[bytes]:
        """Whole chunks of a device, in pieces that stay in a core's cache until they are hashed."""
        assert isinstance(self._source, DeviceReader)
        step = max(_READ_BYTES, self._chunk)
        for at in range(0, length, step):
            yield self._source.read_at(start + at, min(step, length - at))

    def _zero_pieces(self, zeros: Piece) -> Iterator[Piece]:
        """Zero chunks, split where the parent's are zero too and where they are not."""
        position, end = zeros.first, zeros.first + zeros.count
        # The short last chunk of a stream: only with the size known can the parent's be as long.
        if self._parent is not None and not (zeros.alone and self.size is None):
            for run in self._parent.runs(position, max(position, min(end, self._shared()))):
                yield Piece(State.ZERO, run.first, run.count, absent=run.state is State.ZERO)
                position = run.first + run.count
        if position < end:
            yield Piece(State.ZERO, position, end - position)

    def _shared(self) -> int:
        """Chunks below this number are equally long in both disks, so may be absent."""
        if self._parent is None:
            return 0
        if self.size == self._parent.size:
            return -(-self._parent.size // self._chunk)
        # Of a stream the size shows only at its end; whole chunks of the parent are still safe,
        # because a shorter last chunk has another digest.
        return min(self._parent.size, 2**63 if self.size is None else self.size) // self._chunk

    def _pieces(self, batch: Batch) -> Iterator[Piece]:
        """The pieces of a batch in order: read now, or cut out of what the stream gave."""
        chunk, first = self._chunk, batch.first
        states, known = self._parents(first, batch.count)
        read = self._read(first * chunk, batch.length) if batch.data is None else (batch.data,)
        at = 0
        for data in read:
            view, end = memoryview(data), at - (-len(data) // chunk)
            plains = [view[start : start + chunk] for start in range(0, len(view), chunk)]
            yield from self._compared(first + at, plains, states[at:end], known[32 * at : 32 * end])
            at = end

    def _compared(self, first: int, plains: list[memoryview], states: bytes, known: bytes) -> Iterator[Piece]:
        """Chunks from ``first`` beside the parent's ``states`` and digests ``known``; one piece if all
        are the same."""
        count = len(plains)
        if states == _STORED * count:
            digests = [digest_of(plain) for plain in plains]
            joined = b"".join(digests)
            if joined == known:
                yield Piece(State.STORED, first, count, absent=True, digests=joined)
                return
        else:
            digests = [
                b"" if state != State.STORED and self._is_zero(plain) else digest_of(plain)
                for state, plain in zip(states, plains, strict=True)
            ]
        same = [
            state == State.STORED and digest == known[32 * i : 32 * i + 32]
            for i, (state, digest) in enumerate(zip(states, digests, strict=True))
        ]
        yield from self._told_apart(first, plains, digests, same)

    def _told_apart(
        self, first: int, plains: list[memoryview], digests: list[bytes], same: list[bool]
    ) -> Iterator[Piece]:
        """Absent, zero and stored chunks of a batch; neighbours that are absent or zero are joined."""

        def kind(i: int) -> tuple[bool, bool, bool]:
            zero = not same[i] and (not digests[i] or self._is_zero(plains[i]))
            return same[i], zero, zero and len(plains[i]) < self._chunk

        for (absent, zero, alone), group in groupby(range(len(plains)), kind):
            numbers = list(group)
            start, count = first + numbers[0], len(numbers)
            if zero:
                yield from self._zero_pieces(Piece(State.ZERO, start, count, alone=alone))
            elif absent:
                joined = b"".join(digests[i] for i in numbers)
                yield Piece(State.STORED, start, count, absent=True, digests=joined)
            else:
                for i in numbers:
                    codec, frame = make_frame(first + i, plains[i], digests[i], self._header.level)
                    yield Piece(State.STORED, first + i, 1, digests=digests[i], codec=codec, frame=frame)

    def _is_zero(self, plain: memoryview) -> bool:
        """Whether a chunk is all zeros; two bytes settle nearly all that are not."""
        if plain[0] or plain[len(plain) // 2]:
            return False
        return bytes(plain) == (self._zeros if len(plain) == self._chunk else bytes(len(plain)))

    def _parents(self, first: int, count: int) -> tuple[bytes, bytes]:
        """The parent's states of the chunks (a byte each; ABSENT where none may be inherited) and
        their digests (32 bytes each)."""
        shared = max(0, min(count, self._shared() - first))
        if self._parent is None or not shared:
            return _ABSENT * count, bytes(32 * count)
        states, digests = self._parent.states_and_digests(first, shared)
        rest = count - shared
        return states.tobytes() + _ABSENT * rest, digests.tobytes() + bytes(32 * rest)


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, neighbours that the parent holds too as one: the fewer, the less there is to write."""
    for (absent, state), group in groupby(pieces, lambda piece: (piece.absent, piece.state)):
        if not (absent and state is State.STORED):
            yield from group
            continue
        parts = list(group)
        count, digests = sum(part.count for part in parts), b"".join(part.digests for part in parts)
        yield Piece(State.STORED, parts[0].first, count, absent=True, digests=digests)


def _name_space(error: StoreFull, job: _Job, position: int) -> StoreFull:
    """Say how much room the whole image would take, going by what had been done."""
    guess = f"at least {position} bytes are needed"
    if job.size and job.reached:
        total = max(position, position * job.size // min(job.reached, job.size))
        guess = f"about {total} bytes are needed for this image, {position} were written"
    return StoreFull(f"{error.message}: {guess}", hint=error.hint, **error.data, written=position)
