"""Where the bytes of a volume lie, held against what changes in it when bytes of the disk do."""

from __future__ import annotations

import random

import pytest

from imagefs.block.joined import JoinedReader, LostReader, StripedReader
from imagefs.block.ranges import without
from imagefs.block.sectorcipher import DecryptedReader, SectorCipher
from imagefs.block.views import BytesReader, RefusingReader, SliceReader
from imagefs.interfaces import Reader
from imagefs.ops.located import Located, locate
from tests.support.images import noise

SIZE = 40_960
KEY = noise(32, seed=9)


def volumes(disk: Reader) -> tuple[dict[str, Reader], dict[int, tuple[int, int]]]:
    """Volumes over two partitions, whose first bytes are 1,000 and 20,000 of the disk."""
    one, other = SliceReader(disk, 1000, 16_384), SliceReader(disk, 20_000, 16_384)
    parts = [SliceReader(one, 512, 3072), SliceReader(other, 1024, 4096), SliceReader(one, 8192, 2048)]
    joined = JoinedReader(parts)
    striped = StripedReader([SliceReader(one, 0, 8192), SliceReader(other, 4096, 8192)], 1024)
    secret = DecryptedReader(
        SliceReader(joined, 512, 8192),
        SectorCipher("aes-cbc-plain64", KEY),  # where a byte changes its neighbours too
        start=512,
        size=7168,
        sector=3,
        sector_size=1024,
    )
    inside = JoinedReader([SliceReader(secret, 704, 900), SliceReader(secret, 4000, 2000)])
    found = {
        "slice": RefusingReader(LostReader(SliceReader(one, 100, 5000), list), [], [], ""),
        "joined": joined,
        "striped": striped,
        "secret": secret,
        "inside": inside,
        "loose": LostReader(SliceReader(joined, 0, 4096), list, joined),
    }
    return found, {id(one): (1000, one.size), id(other): (20_000, other.size)}


@pytest.mark.parametrize("name", ["slice", "joined", "striped", "secret", "inside", "loose"])
def test_what_changes_with_a_byte_of_the_disk(name: str) -> None:
    data, dice = noise(SIZE), random.Random(4)
    readers, partitions = volumes(BytesReader(data))
    where = locate(readers[name], partitions)
    plain = readers[name].read_at(0, SIZE)
    assert where.size == len(plain)
    edges = [
        max(0, edge)
        for each in where.pieces
        for edge in (each.place - 1, each.place, each.place + each.length)
    ]
    for at in [*dice.sample(range(SIZE), 150), *edges, SIZE - 1]:
        other = bytearray(data)
        other[at] ^= 255
        changed = volumes(BytesReader(bytes(other)))[0][name].read_at(0, SIZE)
        differ = [i for i in range(len(plain)) if plain[i] != changed[i]]
        said = where.in_volume([(at, at + 1)])
        assert not differ or without([(i, i + 1) for i in differ], said) == []
        if name in ("slice", "joined", "striped"):
            assert [i for first, end in said for i in range(first, end)] == differ
        elif name != "loose":  # a sector at once, of which a part may lie outside
            assert sum(end - first for first, end in said) <= 1024
            assert bool(said) >= bool(differ)


@pytest.mark.parametrize("name", ["slice", "joined", "striped"])
def test_bytes_lie_where_it_says(name: str) -> None:
    data, dice = noise(SIZE), random.Random(5)
    readers, partitions = volumes(BytesReader(data))
    where = locate(readers[name], partitions)
    for _ in range(50):
        first, end = sorted(dice.sample(range(where.size + 1), 2))
        found = b"".join(data[low:high] for low, high in where.on_disk(first, end))
        assert found == readers[name].read_at(first, end - first)


def test_a_volume_that_moved_in_part() -> None:
    """It grew by another segment; or one segment of it was moved; or all; or another key decrypts it."""
    disk = BytesReader(noise(SIZE))
    whole = SliceReader(disk, 0, SIZE)

    def made(*places: tuple[int, int]) -> Located:
        parts = [SliceReader(whole, start, length) for start, length in places]
        return locate(JoinedReader(parts), {id(whole): (0, SIZE)})

    old = made((0, 1000), (5000, 1000))
    changes = [(900, 950), (5100, 5200), (8000, 9000)]
    assert old.changed(old, changes) == [(900, 950), (1100, 1200)]
    assert made((0, 1000), (5000, 1000), (8000, 500)).changed(old, changes) == [
        (900, 950),
        (1100, 1200),
        (2000, 2500),
    ]
    assert made((0, 1000), (7000, 1000)).changed(old, changes) == [(900, 950), (1000, 2000)]
    assert made((0, 1500)).changed(old, []) == [(1000, 2000)]
    assert made((1, 1000), (7000, 1000)).changed(old, []) is None
    secrets = [
        DecryptedReader(
            whole, SectorCipher("aes-xts-plain64", key), start=0, size=4096, sector=0, sector_size=512
        )
        for key in (KEY, noise(32, seed=10))
    ]
    one, other = (locate(each, {id(whole): (0, SIZE)}) for each in secrets)
    assert one.changed(other, []) is None
    assert one.changed(one, [(700, 701)]) == [(512, 1024)]
