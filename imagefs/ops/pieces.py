"""The pump of a capture: from batches of the source to calls of the image writer.

source → chunks → zero? → digest → same as the parent's? → compress → writer, in disk order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from imagefs.block.devices import DeviceReader, StreamSource
from imagefs.block.rescue import Rescue
from imagefs.block.snapshot import SnapshotReader
from imagefs.block.views import extents_of
from imagefs.format.codec import digest_of, make_frame
from imagefs.format.header import Header
from imagefs.image.again import FirstPass
from imagefs.image.disk import VirtualDisk
from imagefs.image.writer import ImageWriter
from imagefs.interfaces import Progress, State
from imagefs.ops.linear import LinearDigests
from imagefs.ops.pump import BATCH_BYTES, ordered_map, read_ahead
from imagefs.ops.skips import NOTHING, Skips

Source = DeviceReader | StreamSource
#: A batch of a device: larger than a stream's, which has to come first, so fewer are handed over.
_DEVICE_BATCH = 4 * BATCH_BYTES
#: Chunk sizes are powers of two, so it is whole chunks, or less than one.
_READ_BYTES = 512 * 1024
#: With a limit on the rate, so many seconds of it are one batch.
_BATCH_SECONDS = 0.25
_STORED, _ABSENT = bytes([State.STORED]), bytes([State.ABSENT])


@dataclass(frozen=True, slots=True)
class Batch:
    """``count`` chunks from ``first`` on, ``length`` bytes of the disk.

    ``state`` says what is known beforehand: STORED is to be read, ZERO a hole, SKIPPED not wanted.
    ``data`` is what a stream gave. Of a device the worker reads it, piece by piece, so that each is
    hashed while it is in that core's cache.
    """

    first: int
    count: int
    length: int
    data: bytes | None = None
    state: State = State.STORED


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


@dataclass(slots=True)
class Done:
    """A batch after its worker: the pieces in order, what could not be read (offset, length), and
    the bytes themselves where linear digests want them."""

    batch: Batch
    pieces: list[Piece] = field(default_factory=list)
    bad: list[tuple[int, int]] = field(default_factory=list)
    plain: list[bytes | bytearray] = field(default_factory=list)
    retries: int = 0


class CaptureJob:
    """One capture under way.

    ``skips`` are left out, ``rescue`` reads a device around its bad sectors, ``digests`` are fed with
    every byte in order. A ``moving`` source may change its content, but not its size.
    """

    def __init__(
        self,
        source: Source,
        header: Header,
        parent: VirtualDisk | FirstPass | None,
        *,
        threads: int,
        progress: Progress,
        skips: Skips = NOTHING,
        rescue: Rescue | None = None,
        digests: LinearDigests | None = None,
        throttle: Callable[[int], None] | None = None,
        rate: float | None = None,
        check_stop: Callable[[], None] | None = None,
        moving: bool = False,
    ) -> None:
        self.label = "capture"
        self._moving = moving
        self._source = source
        self._header = header
        self._parent = parent
        self._threads = threads
        self._progress = progress
        self._skips = skips
        self._rescue = rescue
        self._digests = digests
        self._throttle, self._rate = throttle, rate
        self._check_stop = check_stop
        self._chunk = header.chunk_size
        self._zeros = bytes(self._chunk)
        self._slow_down(bad=False)
        self.size = source.size if isinstance(source, DeviceReader) else None
        self.done = self.reached = 0
        self._chunks = dict.fromkeys(State, 0)
        self.read_bytes = self.read_before = self.unreadable_bytes = self.reads_around = 0

    def take_up(self, next_chunk: int, bad: list[tuple[int, int]]) -> None:
        """Go on from ``next_chunk``; ``bad`` (offset, length) is what could not be read until there."""
        known = (batch.length for batch in self._device_batches(0, next_chunk) if batch.state is State.STORED)
        self.read_bytes = self.read_before = sum(known)
        self.done = min(next_chunk * self._chunk, self.size or 0)
        self.unreadable_bytes = sum(length for _, length in bad)
        if self._rescue is not None:
            self._rescue.take_up(bad)

    @property
    def can_resume(self) -> bool:
        """A stream is gone when it has been read, a snapshot when its capture ends."""
        return isinstance(self._source, DeviceReader) and not isinstance(self._source, SnapshotReader)

    def tried(self) -> dict[str, int]:
        """How hard bad places were tried: reads around them, further attempts at each bad sector, and the
        bytes that were known to be bad and not tried at all."""
        if self._rescue is None:
            return {}
        untried = self._rescue.untried(self.done)
        return {"reads": self.reads_around, "retries": self._rescue.retries, "untried": untried}

    def run(self, writer: ImageWriter, first: bytes = b"") -> None:
        """Every batch from where the writer stands to the end of the source."""
        chunk = self._chunk
        if self.size is None:
            self._progress.start(self.label, None)
            batches: Iterator[Batch] = read_ahead(self._stream_batches(first))
        else:
            self.done = min(writer.next_chunk * chunk, self.size)
            begin = writer.next_chunk
            skipped = self._skips.chunks(chunk, self.size)
            left_out = sum(end - max(start, begin) for start, end in skipped if end > begin) * chunk
            self._progress.start(self.label, max(0, self.size - self.done - left_out))
            batches = self._device_batches(begin)
        give_up = self._rescue.stop if self._rescue is not None else None
        results = ordered_map(self.work, batches, threads=self._threads, give_up=give_up)
        try:
            for done in results:
                self._take(writer, done)
                writer.checkpoint_if_due()
                if self._check_stop is not None:
                    self._check_stop()
        finally:
            results.close()
        if isinstance(self._source, DeviceReader):
            self._source.check_unchanged(content=not self._moving)

    def _take(self, writer: ImageWriter, done: Done) -> None:
        """One batch into the image, in its place."""
        batch = done.batch
        for piece in done.pieces:
            self._write(writer, piece)
        self._write_ranges(writer, done)
        if self._digests is not None:
            self._digests.feed(*done.plain)
            if batch.state is not State.STORED:
                self._digests.feed_zeros(batch.length)
        self.done += batch.length
        self.unreadable_bytes += sum(length for _, length in done.bad)
        self.reads_around += done.retries
        self._slow_down(bool(done.bad))
        self.read_bytes += batch.length if batch.state is State.STORED else 0
        self._progress.tell(self._counts())
        if batch.state is not State.SKIPPED:
            self._progress.advance(batch.length)

    def _slow_down(self, bad: bool) -> None:
        """Small batches while the source is slow: what is under way is lost when the machine fails."""
        most = _READ_BYTES if bad else _DEVICE_BATCH
        self._batch_bytes = most if self._rate is None else min(most, int(self._rate * _BATCH_SECONDS))

    def _counts(self) -> dict[str, int]:
        """Bytes by state of this layer, those unreadable to the sector, and how many sectors that are."""
        size = self._source.sector_size if isinstance(self._source, DeviceReader) else 512
        told = {state.name.lower(): count * self._chunk for state, count in self._chunks.items() if count}
        return told | {"unreadable": self.unreadable_bytes, "errors": -(-self.unreadable_bytes // size)}

    def _write(self, writer: ImageWriter, piece: Piece) -> None:
        self.reached = (piece.first + piece.count) * self._chunk
        self._chunks[State.ABSENT if piece.absent else piece.state] += piece.count
        if piece.absent:
            writer.inherit(piece.state, piece.first, piece.count, piece.digests)
        elif piece.state is State.STORED:
            writer.store(piece.first, piece.codec, piece.frame, piece.digests)
        else:
            writer.mark(piece.state, piece.first, piece.count)

    def _write_ranges(self, writer: ImageWriter, done: Done) -> None:
        """What of this batch was skipped or could not be read, to the byte."""
        start = done.batch.first * self._chunk
        rows = [(a, b - a, State.SKIPPED) for a, b in self._skips.within(start, start + done.batch.length)]
        rows += [(offset, length, State.UNREADABLE) for offset, length in done.bad]
        for offset, length, state in sorted(rows):
            writer.add_range(state, offset, length)

    def _device_batches(self, position: int, last: int | None = None) -> Iterator[Batch]:
        """The whole disk in order from chunk ``position`` (to before ``last``); skipped chunks and holes
        are not read."""
        assert self.size is not None
        chunks = -(-self.size // self._chunk) if last is None else last
        for first, end in self._skips.chunks(self._chunk, self.size):
            if end <= position or first >= chunks:
                continue
            yield from self._read_batches(position, first)
            position = max(position, first)
            yield self._batch(position, min(end, chunks), State.SKIPPED)
            position = end
        yield from self._read_batches(position, chunks)

    def _read_batches(self, position: int, last: int) -> Iterator[Batch]:
        """Chunks ``position`` to before ``last``; stretches that the source knows to be zero are holes."""
        assert isinstance(self._source, DeviceReader)
        chunk = self._chunk
        if position >= last:
            return
        for extent in extents_of(self._source, position * chunk, (last - position) * chunk):
            if extent.state is not State.STORED:
                continue
            first, end = extent.offset // chunk, min(last, -(-(extent.offset + extent.length) // chunk))
            if first > position:
                yield self._batch(position, first, State.ZERO)
            position = max(first, position)
            while position < end:
                stop = min(position + max(1, self._batch_bytes // chunk), end)
                yield self._batch(position, stop)
                position = stop
        if position < last:
            yield self._batch(position, last, State.ZERO)

    def _batch(self, first: int, end: int, state: State = State.STORED) -> Batch:
        """Chunks ``first`` to before ``end`` of a device."""
        assert self.size is not None
        length = min(end * self._chunk, self.size) - first * self._chunk
        return Batch(first, end - first, length, state=state)

    def _stream_batches(self, data: bytes) -> Iterator[Batch]:
        assert isinstance(self._source, StreamSource)
        size = max(BATCH_BYTES, self._chunk)
        data += self._source.read(size - len(data)) if len(data) < size else b""
        position = 0
        while data:
            yield Batch(position, -(-len(data) // self._chunk), len(data), data)
            position += len(data) // self._chunk
            data = self._source.read(size)

    def work(self, batch: Batch) -> Done:
        """Runs on a worker: what becomes of each chunk of ``batch``."""
        done = Done(batch)
        if batch.state is State.ZERO:
            done.pieces = list(self._zero_pieces(Piece(State.ZERO, batch.first, batch.count)))
        elif batch.state is State.SKIPPED:
            done.pieces = [Piece(State.SKIPPED, batch.first, batch.count)]
        else:
            done.pieces = list(_joined(self._pieces(done)))
        return done

    def _read(self, done: Done) -> Iterator[bytes | bytearray]:
        """Whole chunks of a device, in pieces that stay in a core's cache until they are hashed.

        What is skipped comes as zeros; what cannot be read too, and is noted in ``done``.
        """
        start, rest = done.batch.first * self._chunk, done.batch.length
        step = max(_READ_BYTES, self._chunk)
        for at in range(start, start + rest, step):
            length = min(step, start + rest - at)
            if self._throttle is not None:
                self._throttle(length)
            yield self._read_piece(done, at, length)

    def _read_piece(self, done: Done, at: int, length: int) -> bytes | bytearray:
        assert isinstance(self._source, DeviceReader)
        skipped = self._skips.within(at, at + length) if len(self._skips) else []
        if self._rescue is None:
            data: bytes | bytearray = self._source.read_at(at, length)
        else:
            found = self._rescue.read(at, length, _between(skipped, at, at + length) if skipped else None)
            data = found.data
            done.bad += found.bad
            done.retries += found.retries
        if skipped:
            data = bytearray(data)
            for first, end in skipped:
                data[first - at : end - at] = bytes(end - first)
        return data

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

    def _pieces(self, done: Done) -> Iterator[Piece]:
        """The pieces of a batch in order: read now, or cut out of what the stream gave."""
        chunk, batch = self._chunk, done.batch
        states, known = self._parents(batch.first, batch.count)
        at = 0
        for data in self._read(done) if batch.data is None else (batch.data,):
            if self._digests is not None:
                done.plain.append(data)
            view, end = memoryview(data), at - (-len(data) // chunk)
            plains = [view[start : start + chunk] for start in range(0, len(view), chunk)]
            first, beside = batch.first + at, states[at:end]
            if done.bad:
                yield from self._with_lost(done, first, plains, beside, known[32 * at : 32 * end])
            else:
                yield from self._compared(first, plains, beside, known[32 * at : 32 * end])
            at = end

    def _with_lost(
        self, done: Done, first: int, plains: list[memoryview], states: bytes, known: bytes
    ) -> Iterator[Piece]:
        """As ``_compared``, with the chunks of which not a byte could be read kept apart."""

        def lost(i: int) -> bool:
            start = (first + i) * self._chunk
            stop = start + len(plains[i])
            bad = [(max(a, start), min(a + n, stop)) for a, n in done.bad if a < stop and a + n > start]
            gone = bad + self._skips.within(start, stop)
            return bool(bad) and sum(b - a for a, b in gone) == stop - start

        for gone, group in groupby(range(len(plains)), lost):
            i, *others = group
            end = i + 1 + len(others)
            if gone:
                yield Piece(State.UNREADABLE, first + i, end - i)
            else:
                yield from self._compared(first + i, plains[i:end], states[i:end], known[32 * i : 32 * end])

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


def _between(skipped: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """(offset, length) of what lies between ``skipped`` ranges from ``start`` to ``stop``."""
    wanted, at = [], start
    for first, end in [*skipped, (stop, stop)]:
        if first > at:
            wanted.append((at, first - at))
        at = end
    return wanted
