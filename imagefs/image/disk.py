"""The virtual disk: any point of any chain as one Reader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from imagefs.block.views import clamp
from imagefs.errors import ImagefsError, StoreError
from imagefs.format.extents import ViewHasher
from imagefs.image.chain import Chain
from imagefs.image.runs import Run, RunFinder
from imagefs.image.shared import CHUNK_CACHE, Shared, chunk_cache
from imagefs.interfaces import HOLES, Extent, State

#: Chunks that one piece of read-ahead decodes.
GROUP = 8


class VirtualDisk:
    """A Reader and Extents over a chain. A read costs the same whatever the chain's length.

    ``close`` closes the chain's images too. ``shared`` has the cache of chunks that other disks use too.
    """

    def __init__(self, chain: Chain, *, cache_bytes: int = CHUNK_CACHE, shared: Shared | None = None) -> None:
        self.chain = chain
        self._shared = shared
        self.size = chain.leaf.disk_size
        self.chunk_size = chain.leaf.header.chunk_size
        self.sector_size = chain.leaf.header.sector_size
        self._finder = RunFinder(chain.table)
        self._shift = self.chunk_size.bit_length() - 1
        self._last = (self.size - 1) >> self._shift  # the one that may be short
        self._cache = shared.chunks if shared else chunk_cache(cache_bytes)
        self._seals = [info.tail.seal for info in chain.infos]
        self._closed = False
        if shared:
            shared.add_table(chain.infos, chain.table)

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if self._closed:
            raise StoreError(f"{self.chain.leaf.name} is closed")
        if count == 0:
            return b""
        shift = self._shift
        first, last = offset >> shift, (offset + count - 1) >> shift
        inside = offset - (first << shift)
        if first == last:
            run = self._finder.find(first)
            if run.state is not State.STORED:
                return bytes(count)
            return self.chunk(first, run)[inside : inside + count]
        return self._gather(first, last, inside, count)

    def _gather(self, first: int, last: int, inside: int, count: int) -> bytes:
        """``count`` bytes from ``inside`` chunk ``first``, over several chunks up to ``last``."""
        parts: list[bytes | memoryview] = []
        while first <= last:
            run = self._finder.find(first)
            end = min(last + 1, run.first + run.count)
            if run.state is not State.STORED:
                parts.append(bytes((end - first) * self.chunk_size))
                first = end
                continue
            parts += [self.chunk(chunk_no, run) for chunk_no in range(first, end)]
            first = end
        # Only the ends can be too long: the first by what lies before, the last by what lies after.
        parts[0] = memoryview(parts[0])[inside:]
        surplus = sum(map(len, parts)) - count
        if surplus:
            parts[-1] = memoryview(parts[-1])[:-surplus]
        return b"".join(parts)

    def chunk(self, chunk_no: int, run: Run) -> bytes:
        """The plain bytes of a stored chunk, from the cache or decoded and checked."""
        plain = self._cache.get((self._seals[run.layer], chunk_no), lambda: self._decode(chunk_no, run))
        if len(plain) != self.chunk_size or chunk_no == self._last:
            expected = min(self.chunk_size, self.size - chunk_no * self.chunk_size)
            if len(plain) != expected:
                layer = self.chain.layers[run.layer]
                raise layer.bad(chunk_no, f"it is {len(plain)} bytes long instead of {expected}")
        return plain

    def _decode(self, chunk_no: int, run: Run) -> bytes:
        return self.chain.layers[run.layer].read_chunk(chunk_no, run.row + chunk_no - run.first)

    @property
    def block_size(self) -> int:
        """For read-ahead: its blocks are our chunks."""
        return self.chunk_size

    def wanted(self, first: int, end: int, /) -> Iterator[tuple[int, int]]:
        """Groups (first, end) of chunks in that range that are stored and not decoded yet."""
        for run in self.runs(first, end):
            if run.state is not State.STORED:
                continue
            for start in range(run.first, run.first + run.count, GROUP):
                stop = min(start + GROUP, run.first + run.count)
                seal = self._seals[run.layer]
                if (seal, start) not in self._cache or (seal, stop - 1) not in self._cache:
                    yield start, stop

    def make(self, first: int, end: int, /) -> None:
        """Decode a group that ``wanted`` gave into the cache; damage is told to the read that needs it."""
        run = self._finder.find(first)
        for chunk_no in range(first, end):
            with contextlib.suppress(ImagefsError):
                self.chunk(chunk_no, run)

    def run_of(self, chunk_no: int) -> Run:
        return self._finder.find(chunk_no)

    def runs(self, first: int = 0, end: int | None = None) -> Iterator[Run]:
        """The runs of the resolved view from chunk ``first`` to before ``end``."""
        return self.chain.table.between(first, self.chain.leaf.chunks if end is None else end)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        count = clamp(self.size, offset, length)
        if not count:
            return iter(())
        only = self._finder.find(offset >> self._shift)
        if offset + count <= (only.first + only.count) << self._shift:  # as for nearly every file
            return iter((Extent(only.state, offset, count),))
        return self._extents(offset, offset + count)

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        held: Extent | None = None
        for run in self.runs(offset >> self._shift, ((end - 1) >> self._shift) + 1):
            start = max(offset, run.first << self._shift)
            stop = min(end, (run.first + run.count) << self._shift)
            if held is not None and held.state is run.state:
                held = Extent(held.state, held.offset, stop - held.offset)
                continue
            if held is not None:
                yield held
            held = Extent(run.state, start, stop - start)
        if held is not None:
            yield held

    def hole_bytes(self, offset: int, length: int, /) -> int:
        """How much of a range ``extents`` promises to be zeros, without looking at each of them."""
        end = offset + clamp(self.size, offset, length)
        return self.chain.table.length_in(HOLES, offset, end, shift=self._shift)

    def states_and_digests(
        self, first: int, count: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """States (count,) of the chunks from ``first``, digests (count, 32): zeros where not stored."""
        states = np.zeros(count, np.uint8)
        digests = np.zeros((count, 32), np.uint8)
        for run in self.runs(first, first + count):
            at = slice(run.first - first, run.first - first + run.count)
            states[at] = run.state
            if run.state is State.STORED:
                found = self.chain.layers[run.layer].digests(run.row, run.count)
                digests[at] = np.frombuffer(found, np.uint8).reshape(-1, 32)
        return states, digests

    def view_digest(self) -> bytes:
        """The view digest as the resolved chain gives it (FORMAT.md, 7)."""
        hasher = ViewHasher(self.chunk_size)
        for run in self.runs():
            step = 65_536 if run.state is State.STORED else run.count
            for start in range(0, run.count, step):
                count = min(step, run.count - start)
                stored = run.state is State.STORED
                digests = self.chain.layers[run.layer].digests(run.row + start, count) if stored else b""
                hasher.add(run.state, run.first + start, count, digests)
        return hasher.digest(self.size)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._shared:
                self._shared.drop_table(self.chain.infos)
            else:
                self._cache.clear()
            self.chain.close()
