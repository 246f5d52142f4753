"""Writes one image, chunk by chunk in disk order, into one store object.

Nothing exists under the image's name before ``finish``. After any failure the writer takes nothing
more, and ``abort`` leaves no trace.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from imagefs.errors import ImagefsError, IntegrityError, StoreError
from imagefs.format.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from imagefs.format.codec import FRAME_SIZE, digest_of
from imagefs.format.extents import Runs, ViewHasher, decode_runs, encode_runs
from imagefs.format.fields import MAX_DISK_SIZE
from imagefs.format.header import Header, decode_header, encode_header
from imagefs.format.index import DirectoryEntry, Rows, decode_block, encode_block, encode_directory, make_rows
from imagefs.format.trailer import (
    DIRECTORY,
    EXTENTS,
    FOOTER_SIZE,
    HEADER_COPY,
    RANGES,
    STANDS_FOR_TYPE,
    SUMMARY_TYPE,
    Footer,
    Section,
    StandsFor,
    Summary,
    decode_footer,
    decode_summary,
    decode_table,
    encode_footer,
    encode_stands_for,
    encode_summary,
    encode_table,
    seal_of,
)
from imagefs.interfaces import ObjectWriter, State

#: Rows per index block: 850 KB, hashed in well under a millisecond when first used.
BLOCK_ROWS = 16_384
#: At a checkpoint a block is closed early from this many rows on, so that few rows are written twice.
EARLY_ROWS = 4_096
CHECKPOINT_BYTES = 2**30
#: The first one, so that a small disk or set that fills up leaves something to go on with; the next ones
#: come whenever as much again has been done.
FIRST_CHECKPOINT = 16 * 2**20
CHECKPOINT_SECONDS = 30.0


@dataclass(slots=True)
class PendingRows:
    """Index rows not yet in a block; plain lists, because they arrive one by one."""

    chunk_no: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    stored_length: list[int] = field(default_factory=list)
    codec: bytearray = field(default_factory=bytearray)
    digest: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.chunk_no)

    def add(self, rows: Rows) -> None:
        self.chunk_no += rows.chunk_no.tolist()
        self.offset += rows.offset.tolist()
        self.stored_length += rows.stored_length.tolist()
        self.codec += rows.codec.tobytes()
        self.digest += rows.digest.tobytes()

    def rows(self, start: int = 0) -> Rows:
        return make_rows(
            self.chunk_no[start:],
            self.offset[start:],
            self.stored_length[start:],
            bytes(self.codec[start:]),
            bytes(self.digest[32 * start :]),
        )


class RunList:
    """Runs (first, count, state) as they come; 17 bytes each, however many there are."""

    def __init__(self) -> None:
        self._first, self._count, self._state = array("q"), array("q"), array("B")

    def __len__(self) -> int:
        return len(self._first)

    def add(self, first: int, count: int, state: State, *, fixed: int) -> None:
        """Append a run, or lengthen the last one if it follows on; the first ``fixed`` stay as they are."""
        last = len(self._first) - 1
        if last >= fixed and self._state[last] == state and self._first[last] + self._count[last] == first:
            self._count[last] += count
            return
        self._first.append(first)
        self._count.append(count)
        self._state.append(state)

    def take(self, runs: Runs) -> None:
        """Append runs as they are."""
        self._first.extend(runs.first.tolist())
        self._count.extend(runs.count.tolist())
        self._state.extend(runs.state.tolist())

    def runs(self, start: int = 0) -> Runs:
        """Those from number ``start`` on."""
        return Runs(
            np.array(self._first[start:], "<i8"),
            np.array(self._count[start:], "<i8"),
            np.array(self._state[start:], "u1"),
        )


class ImageWriter:
    """Takes chunks in ascending order and makes an image of them.

    ``clock`` gives monotonic seconds for the checkpoints. The resolved view is told chunk by chunk
    too (``store``, ``mark``, ``inherit``), so that its digest is ready at the end of the same pass.
    """

    def __init__(
        self,
        out: ObjectWriter,
        header: Header,
        *,
        clock: Callable[[], float] = time.monotonic,
        fresh: bool = True,
    ) -> None:
        self.header = header
        self._out = out
        self._clock = clock
        self._view = ViewHasher(header.chunk_size)
        self._counts = dict.fromkeys(State, 0)
        self._pending = PendingRows()
        self._blocks: list[DirectoryEntry] = []
        self._runs = RunList()
        self._ranges = RunList()
        self._frame_bytes = 0
        self.next_chunk = 0
        self._point = _LastPoint(clock())
        self._sound = True
        self._header_bytes = encode_header(header)
        _same(decode_header(self._header_bytes), header, "header")
        if fresh:
            self._out.append(self._header_bytes)

    @property
    def position(self) -> int:
        """Bytes of the image so far."""
        return self._out.position

    def store(self, chunk_no: int, codec: int, frame: bytes, digest: bytes) -> None:
        """The next chunk is stored: ``frame`` is header and stored bytes as ``make_frame`` gives them."""
        offset = self._out.position
        self._begin(State.STORED, chunk_no, 1)
        self._out.append(frame)
        self._add_row(chunk_no, codec, offset, len(frame) - FRAME_SIZE, digest)

    def add_row(self, chunk_no: int, codec: int, offset: int, stored_length: int, digest: bytes) -> None:
        """The next chunk is stored, in a frame that lies at ``offset`` of this object already."""
        self._begin(State.STORED, chunk_no, 1)
        self._add_row(chunk_no, codec, offset, stored_length, digest)

    def _add_row(self, chunk_no: int, codec: int, offset: int, stored_length: int, digest: bytes) -> None:
        pending = self._pending
        pending.chunk_no.append(chunk_no)
        pending.offset.append(offset)
        pending.stored_length.append(stored_length)
        pending.codec.append(codec)
        pending.digest += digest
        self._frame_bytes += FRAME_SIZE + stored_length
        self._view.add(State.STORED, chunk_no, 1, digest)
        if len(pending) >= BLOCK_ROWS:
            self._write_block()
        self._sound = True

    def mark(self, state: State, first: int, count: int) -> None:
        """The next ``count`` chunks are zero, skipped or unreadable."""
        self._begin(state, first, count)
        self._runs.add(first, count, state, fixed=self._point.runs)
        self._view.add(state, first, count)
        self._sound = True

    def inherit(self, state: State, first: int, count: int, digests: bytes = b"") -> None:
        """The next ``count`` chunks are absent: the parent's ``state`` (and ``digests``) hold for them."""
        self._begin(State.ABSENT, first, count)
        self._view.add(state, first, count, digests)
        self._sound = True

    def add_range(self, state: State, offset: int, length: int) -> None:
        """A skipped or unreadable range in bytes, also inside stored chunks; in ascending order."""
        self._ranges.add(offset, length, state, fixed=self._point.ranges)

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint when 1 GiB of source or 30 seconds have passed since the last, or half of all."""
        before = self._point.chunk * self.header.chunk_size
        done = self.next_chunk * self.header.chunk_size - before
        if (
            done >= min(CHECKPOINT_BYTES, max(FIRST_CHECKPOINT, before))
            or self._clock() - self._point.time >= CHECKPOINT_SECONDS
        ):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write down how far the capture has come (FORMAT.md, 8)."""
        self._enter()
        if len(self._pending) >= EARLY_ROWS:
            self._write_block()
        last = self._point
        point = Checkpoint(
            last.number + 1,
            last.offset,
            self.next_chunk,
            tuple(self._blocks[last.blocks :]),
            self._pending.rows(last.rows if last.blocks == len(self._blocks) else 0),
            self._runs.runs(last.runs),
            self._ranges.runs(last.ranges),
        )
        offset, data = self._out.position, encode_checkpoint(point)
        decode_checkpoint(data, offset=offset)
        self._out.append(data)
        # Only the frames behind the checkpoint before can be lost with the machine.
        self._out.sync()
        self._set_point(point.number, offset)
        self._sound = True

    def take_up(self, points: Sequence[Checkpoint], told: Iterable[Told], *, offset: int) -> None:
        """Go on behind the last of ``points``, which lies at ``offset``, in a writer made with ``fresh=False``.

        ``told`` is everything that was written until then, in disk order.
        """
        self._enter()
        for point in points:
            if point.blocks:  # then the rows are all that were in no block yet
                self._blocks += point.blocks
                self._pending = PendingRows()
            self._pending.add(point.rows)
            self._runs.take(point.runs)
            self._ranges.take(point.ranges)
        for part in told:
            self._counts[part.state] += part.count
            self._frame_bytes += part.frame_bytes
            self._view.add(part.shown, part.first, part.count, part.digests)
            self.next_chunk += part.count
        last = points[-1]
        if self.next_chunk != last.next_chunk:
            raise IntegrityError("the checkpoints of the unfinished image do not describe all of it")
        self._set_point(last.number, offset)
        self._sound = True

    def _set_point(self, number: int, offset: int) -> None:
        self._point = _LastPoint(
            self._clock(),
            number,
            offset,
            self.next_chunk,
            len(self._blocks),
            len(self._pending),
            len(self._runs),
            len(self._ranges),
        )

    def suspend(self, *, checkpoint: bool) -> bool:
        """Leave a partial that can be taken up again, with a last checkpoint where the writer is sound.

        False when there is none to go on from; then nothing was done.
        """
        if checkpoint and self._sound and self.next_chunk > self._point.chunk:
            with contextlib.suppress(ImagefsError):
                self.checkpoint()
        if not self._point.number:
            return False
        self._sound = False
        self._out.suspend()
        return True

    def finish(self, summary: Summary, stands_for: Sequence[StandsFor] = ()) -> Summary:
        """Write sections and footer and commit. Gives the summary as it stands in the image.

        Of ``summary`` the counts and the view digest are filled in here.
        """
        self._enter()
        if self._pending:
            self._write_block()
        summary = self._complete(summary)
        sections = [
            self._section(DIRECTORY, encode_directory(self._blocks)),
            self._section(EXTENTS, self._encode_runs(self._runs, MAX_DISK_SIZE)),
            self._section(RANGES, self._encode_runs(self._ranges, summary.disk_size)),
        ]
        if stands_for:
            sections.append(self._section(STANDS_FOR_TYPE, encode_stands_for(stands_for)))
        data = encode_summary(summary)
        _same(decode_summary(data), summary, "summary")
        sections += [self._section(SUMMARY_TYPE, data), self._section(HEADER_COPY, self._header_bytes)]
        self._write_trailer(sections)
        self._out.commit()
        return summary

    def abort(self) -> None:
        """Leave nothing behind. Safe at any time, any number of times."""
        self._out.abort()

    def _enter(self) -> None:
        """Until the call under way has come to its end, the writer counts as broken."""
        if not self._sound:
            raise StoreError("the image takes no more data after a failure or its end")
        self._sound = False

    def _begin(self, state: State, first: int, count: int) -> None:
        self._enter()
        if first != self.next_chunk or count < 1:
            raise StoreError(f"chunk {first} was written out of order, {self.next_chunk} was next")
        self.next_chunk += count
        self._counts[state] += count

    def _write_block(self) -> None:
        rows = self._pending.rows()
        data = encode_block(rows)
        entry = DirectoryEntry(
            int(rows.chunk_no[0]), self._out.position, len(data), len(rows), digest_of(data)
        )
        decode_block(data, entry)
        self._out.append(data)
        self._blocks.append(entry)
        self._pending = PendingRows()

    def _complete(self, summary: Summary) -> Summary:
        counts = self._counts
        chunks = -(-summary.disk_size // self.header.chunk_size)
        if self.next_chunk != chunks:
            raise StoreError(f"{self.next_chunk} of {chunks} chunks were written")
        return replace(
            summary,
            view=self._view.digest(summary.disk_size),
            stored=counts[State.STORED],
            zero=counts[State.ZERO],
            skipped=counts[State.SKIPPED],
            unreadable=counts[State.UNREADABLE],
            absent=counts[State.ABSENT],
            frame_bytes=self._frame_bytes,
        )

    def _encode_runs(self, rows: RunList, limit: int) -> bytes:
        data = encode_runs(rows.runs())
        decode_runs(data, limit=limit)
        return data

    def _section(self, type_: bytes, data: bytes) -> Section:
        section = Section(type_, self._out.position, len(data), digest_of(data))
        self._out.append(data)
        return section

    def _write_trailer(self, sections: list[Section]) -> None:
        table = encode_table(sections)
        offset = self._out.position
        _same(decode_table(table, offset), sections, "section table")
        footer = Footer(
            offset + len(table) + FOOTER_SIZE,
            offset,
            len(table),
            seal_of(self._header_bytes, table),
            self.header.image,
        )
        data = encode_footer(footer)
        _same(decode_footer(data, footer.object_size), footer, "footer")
        self._out.append(table + data)


@dataclass(frozen=True, slots=True)
class Told:
    """A stretch of an unfinished image: ``state`` in this layer, ``shown`` in the view it resolves to."""

    state: State
    shown: State
    first: int
    count: int
    digests: bytes = b""
    frame_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _LastPoint:
    """Where the last checkpoint stood: counts of what had been written by then."""

    time: float
    number: int = 0
    offset: int = 0
    chunk: int = 0
    blocks: int = 0
    rows: int = 0
    runs: int = 0
    ranges: int = 0


def _same(found: object, meant: object, what: str) -> None:
    """Every write is decoded again before it counts; a difference is our bug or broken memory."""
    if found != meant:
        raise IntegrityError(f"the {what} does not read back as it was written")


def abort_on_error(writer: ImageWriter | ObjectWriter, error: BaseException) -> None:
    """Clean up after ``error``; what goes wrong while cleaning up is told beside it, not instead."""
    try:
        writer.abort()
    except ImagefsError as second:
        error.add_note(f"and then: {second}")
