"""Restore and clone: a Reader goes to a Sink. Restore is a clone whose reader is a chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imagefs.block.views import extents_of
from imagefs.interfaces import NoProgress, Progress, Reader, Sink, State
from imagefs.ops.pump import BATCH_BYTES, default_threads, ordered_map

#: Within data, whole stretches of zeros of this size are left to the sink's ``zero_at``.
GRAIN = 64 * 1024


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Bytes written as data, and bytes made zero."""

    data_bytes: int
    zero_bytes: int


def transfer(
    reader: Reader,
    sink: Sink,
    *,
    label: str,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TransferResult:
    """Write all of ``reader`` to ``sink`` from byte 0 and finish it. Zeros are promised, not assumed.

    Raises what reader and sink raise; the target is then incomplete, and the sink not finished.
    """
    progress = progress or NoProgress()
    progress.start(label, reader.size)
    data = zero = 0
    pieces = ordered_map(lambda job: _load(reader, job), _jobs(reader), threads=threads or default_threads())
    try:
        for parts in pieces:
            for offset, length, content in parts:
                if content is None:
                    sink.zero_at(offset, length)
                    zero += length
                else:
                    sink.write_at(offset, content)
                    data += length
                progress.advance(length)
    finally:
        pieces.close()
    progress.start("finish", None)
    sink.finish(reader.size)
    return TransferResult(data, zero)


Job = tuple[State, int, int]
Part = tuple[int, int, bytes | memoryview | None]


def _jobs(reader: Reader) -> Iterator[Job]:
    for extent in extents_of(reader, 0, reader.size):
        if extent.state is not State.STORED:
            yield extent.state, extent.offset, extent.length
            continue
        stop = extent.offset + extent.length
        for offset in range(extent.offset, stop, BATCH_BYTES):
            yield extent.state, offset, min(BATCH_BYTES, stop - offset)


def _load(reader: Reader, job: Job) -> list[Part]:
    """The parts of one job in order: (offset, length, bytes or None for zeros)."""
    state, offset, length = job
    if state is not State.STORED:
        return [(offset, length, None)]
    data = reader.read_at(offset, length)
    parts: list[Part] = []
    start, was_zero = 0, None
    for at in range(0, length, GRAIN):
        is_zero = _is_zero(data, at)
        if was_zero is not None and is_zero is not was_zero:
            parts.append(_part(data, offset, start, at, was_zero))
            start = at
        was_zero = is_zero
    parts.append(_part(data, offset, start, length, bool(was_zero)))
    return parts


def _part(data: bytes, offset: int, start: int, stop: int, zero: bool) -> Part:
    return offset + start, stop - start, None if zero else memoryview(data)[start:stop]


_ZEROS = bytes(GRAIN)


def _is_zero(data: bytes, at: int) -> bool:
    # The first byte settles most pieces without a copy.
    return not data[at] and data[at : at + GRAIN] == _ZEROS[: min(GRAIN, len(data) - at)]
