"""Which sectors differ, against a look at every byte."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from imagefs.block.ranges import Range
from imagefs.block.views import BytesReader
from imagefs.ops import compare
from imagefs.ops.compare import narrowed
from tests.browse.disks import BreakingReader

SIZE = 3 << 20


def two_volumes(seed: int) -> tuple[bytes, bytes, list[Range]]:
    """Two volumes, and ranges outside of which they are the same."""
    dice = random.Random(seed)
    one = dice.randbytes(SIZE)
    other, ranges = bytearray(one), []
    for first in range(0, SIZE, 1 << 16):
        if dice.random() < 0.4:
            ranges.append((first, first + (1 << 16)))
            for _ in range(dice.randrange(5)):
                other[first + dice.randrange(1 << 16)] ^= dice.randrange(256)
    return one, bytes(other), ranges


@pytest.mark.parametrize("seed", range(6))
def test_the_sectors_that_differ(seed: int) -> None:
    one, other, ranges = two_volumes(seed)
    wanted = [at for at in range(0, SIZE, 512) if one[at : at + 512] != other[at : at + 512]]
    found = narrowed(BytesReader(one), BytesReader(other), ranges)
    assert [at for first, end in found for at in range(first, end, 512)] == wanted
    assert wanted
    assert all(end < first for (_, end), (first, _) in pairwise(found)), "not joined"


def test_what_only_one_has_differs() -> None:
    """A volume that grew, and one that ends within a sector."""
    one, other = bytes(1 << 20), bytes((2 << 20) + 100)
    assert narrowed(BytesReader(one), BytesReader(other), [(0, 4096), (1 << 20, len(other))]) == [
        (1 << 20, len(other))
    ]
    assert narrowed(BytesReader(other), BytesReader(other), [(2 << 20, len(other))]) == [
        (2 << 20, len(other))
    ]


def test_what_cannot_be_read_differs() -> None:
    same = BytesReader(bytes(SIZE))
    broken = BreakingReader(same, 70_000, 70_001)
    assert narrowed(same, broken, [(0, 4096), (65_536, 131_072)]) == [(65_536, 131_072)]


def test_what_is_too_much_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_MOST", 4096)
    reader = BreakingReader(BytesReader(bytes(SIZE)), 0, SIZE)
    assert narrowed(reader, reader, [(0, 4096), (8192, 8193)]) == [(0, 4096), (8192, 8193)]
