"""A second pass over a source that changed while it was captured: what is still the same is kept, what is
not is written anew behind it, and the index names the newer frame.

What the first pass wrote is held in memory: 47 bytes for each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from imagefs.image.disk import VirtualDisk
from imagefs.image.resume import Partial, stretches
from imagefs.image.runs import Run
from imagefs.image.writer import ImageWriter
from imagefs.interfaces import ObjectWriter, State

U8 = npt.NDArray[np.uint8]


class FirstPass:
    """The disk as an unfinished image, whole but for its end, shows it; to be compared with, chunk by chunk.

    ``parent`` is what the image builds on. Has the face of a ``VirtualDisk`` that a capture needs.
    """

    def __init__(self, partial: Partial, parent: VirtualDisk | None, size: int) -> None:
        chunks = partial.next_chunk
        self.size = size
        self.chunk_size = partial.header.chunk_size
        self.layer = np.zeros(chunks, np.uint8)
        self.shown = np.zeros(chunks, np.uint8)
        self.digest = np.zeros((chunks, 32), np.uint8)
        self.offset = np.zeros(chunks, np.int64)
        self.stored_length = np.zeros(chunks, np.int64)
        self.codec = np.zeros(chunks, np.uint8)
        for state, first, count, rows in stretches(partial):
            part = slice(first, first + count)
            self.layer[part] = self.shown[part] = state
            if rows is not None:
                self.digest[part], self.codec[part] = rows.digest, rows.codec
                self.offset[part], self.stored_length[part] = rows.offset, rows.stored_length
            elif state is State.ABSENT and parent is not None:
                self.shown[part], self.digest[part] = parent.states_and_digests(first, count)

    def states_and_digests(self, first: int, count: int) -> tuple[U8, U8]:
        return self.shown[first : first + count], self.digest[first : first + count]

    def runs(self, first: int, end: int) -> Iterator[Run]:
        """Chunks ``first`` to before ``end`` by state; layer and row are of no meaning."""
        for start, stop in _equal(self.shown, first, end):
            yield Run(start, stop - start, State(int(self.shown[start])), 0, -1)


class AmendingWriter(ImageWriter):
    """Writes the second pass behind the first one: what is inherited, is inherited from that."""

    def __init__(self, out: ObjectWriter, partial: Partial, before: FirstPass) -> None:
        super().__init__(out, partial.header, fresh=False)
        self._before = before
        self.changed = 0

    def store(self, chunk_no: int, codec: int, frame: bytes, digest: bytes) -> None:
        super().store(chunk_no, codec, frame, digest)
        self.changed += 1

    def mark(self, state: State, first: int, count: int) -> None:
        super().mark(state, first, count)
        self.changed += int(np.count_nonzero(self._before.shown[first : first + count] != state))

    def inherit(self, state: State, first: int, count: int, digests: bytes = b"") -> None:
        """The next ``count`` chunks are as the first pass left them."""
        before = self._before
        for start, stop in _equal(before.layer, first, first + count):
            layer = State(int(before.layer[start]))
            if layer is State.STORED:
                for number in range(start, stop):
                    self._repeat(number)
            elif layer is State.ABSENT:
                part = digests[32 * (start - first) : 32 * (stop - first)]
                super().inherit(state, start, stop - start, part)
            else:
                super().mark(layer, start, stop - start)

    def _repeat(self, chunk_no: int) -> None:
        before = self._before
        self.add_row(
            chunk_no,
            int(before.codec[chunk_no]),
            int(before.offset[chunk_no]),
            int(before.stored_length[chunk_no]),
            before.digest[chunk_no].tobytes(),
        )


def _equal(column: U8, first: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of neighbours that are the same in ``column``."""
    cuts = np.flatnonzero(np.diff(column[first:end].astype(np.int16))) + 1 + first
    yield from zip([first, *cuts.tolist()], [*cuts.tolist(), end], strict=True) if end > first else ()
