"""Runs of state: chunk extents and the finer byte ranges (FORMAT.md, 5), and the view digest (7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from imagefs.format.fields import MAX_DISK_SIZE, check
from imagefs.interfaces import State

RUN_SIZE = 17
LISTED = (State.ZERO, State.SKIPPED, State.UNREADABLE)
VIEW_HEAD = struct.Struct("<QI")
VIEW_RUN = struct.Struct("<BQQ")
EMPTY_VIEW = bytes(32)

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of equal state as columns of length n: ``first`` and ``count`` int64, ``state`` uint8.

    Sorted by ``first``, not overlapping. The unit is the chunk in the extents section, the byte
    in the ranges section.
    """

    first: I64
    count: I64
    state: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def total(self) -> int:
        return int(self.count.sum())


def make_runs(rows: list[tuple[int, int, int]]) -> Runs:
    """Runs from (first, count, state) tuples, as they are."""
    first, count, state = zip(*rows, strict=True) if rows else ((), (), ())
    return Runs(np.array(first, "<i8"), np.array(count, "<i8"), np.array(state, "u1"))


def encode_runs(runs: Runs) -> bytes:
    return runs.first.astype("<u8").tobytes() + runs.count.astype("<u8").tobytes() + runs.state.tobytes()


def decode_runs(data: bytes, *, limit: int, states: tuple[State, ...] = LISTED) -> Runs:
    """The runs in ``data``; FormatError unless sorted, disjoint, of known state and below ``limit``."""
    check(len(data) % RUN_SIZE == 0, "a list of extents has a broken length")
    n = len(data) // RUN_SIZE
    first = np.frombuffer(data, "<u8", n, 0)
    count = np.frombuffer(data, "<u8", n, 8 * n)
    state = np.frombuffer(data, "u1", n, 16 * n)
    if n:
        check(
            int(first.max()) <= MAX_DISK_SIZE and int(count.max()) <= MAX_DISK_SIZE, "an extent is too large"
        )
        check(int(count.min()) > 0, "an extent is empty")
        check(bool(np.isin(state, states).all()), "an extent has an unknown state")
    runs = Runs(first.astype(np.int64), count.astype(np.int64), state)
    if n:
        # Neither sum can overflow once both are below 2^63 and compared by subtraction.
        check(bool((runs.first[1:] - runs.first[:-1] >= runs.count[:-1]).all()), "extents overlap")
        check(int(runs.count[-1]) <= limit - int(runs.first[-1]), "an extent runs past the end of the disk")
    return runs


class ViewHasher:
    """The view digest, fed in disk order.

    BLAKE3 over disk size and chunk size, then for each maximal run (state, first, count) and, where
    the run is stored, the BLAKE3 over the digests of its chunks: a run of any length streams, and
    the disk size need be known only at the end. Memory follows the number of runs.
    """

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._records = bytearray()
        self._state: State | None = None
        self._first = self._count = 0
        self._digests = blake3()
        self._waiting = bytearray()

    def add(self, state: State, first: int, count: int, digests: bytes = b"") -> None:
        """The next ``count`` chunks are in ``state``; stored ones bring their digests (32 bytes each)."""
        if state is not self._state:
            self._close_run()
            self._state, self._first, self._count = state, first, 0
            self._digests = blake3()
        self._count += count
        if state is State.STORED:
            # Many small updates cost more than the hashing: collect some first.
            self._waiting += digests
            if len(self._waiting) >= 65_536:
                self._hash_waiting()

    def digest(self, disk_size: int) -> bytes:
        """The 32 bytes; nothing may be added after."""
        self._close_run()
        self._state = None
        return blake3(VIEW_HEAD.pack(disk_size, self._chunk_size)).update(self._records).digest()

    def _close_run(self) -> None:
        if self._state is None:
            return
        self._records += VIEW_RUN.pack(self._state, self._first, self._count)
        if self._state is State.STORED:
            self._hash_waiting()
            self._records += self._digests.digest()

    def _hash_waiting(self) -> None:
        self._digests.update(self._waiting)
        self._waiting = bytearray()
