"""Where two images may differ, against the bytes of both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imagefs.format.header import Kind
from imagefs.image.catalog import scan
from imagefs.image.changes import changes_between, changes_of_child, is_child
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, capture_bytes, disk_bytes, noise


def chunks_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for first, end in ranges for number in range(first // CHUNK, -(-end // CHUNK))}


def differing(old: bytes, new: bytes) -> set[int]:
    size = max(len(old), len(new))
    return {at // CHUNK for at in range(0, size, CHUNK) if old[at : at + CHUNK] != new[at : at + CHUNK]}


@pytest.mark.parametrize("seed", range(4))
def test_exactly_what_differs(tmp_path: Path, seed: int) -> None:
    """Fulls, incrementals and differentials, forth and back, of a disk that grows."""
    dice, store = random.Random(seed), MemoryStore()
    data = bytearray(noise(20 * CHUNK, seed) + bytes(20 * CHUNK) + noise(9 * CHUNK + 777, seed + 50))
    kinds = [Kind.FULL, Kind.INCREMENTAL, Kind.INCREMENTAL, Kind.DIFFERENTIAL, Kind.FULL, Kind.INCREMENTAL]
    for kind in kinds:
        capture_bytes(store, bytes(data), tmp_path / "disk", kind=kind)
        for _ in range(dice.randrange(6)):
            at = dice.randrange(48) * CHUNK + dice.randrange(CHUNK)
            data[at : at + 5] = dice.choice([bytes(5), dice.randbytes(5)])
        at = dice.randrange(40) * CHUNK
        data[at : at + CHUNK] = bytes(CHUNK)
        if dice.random() < 0.3:
            data += dice.randbytes(dice.randrange(2 * CHUNK))
    catalog = scan(store)
    plain = [disk_bytes(catalog, info) for info in catalog.images]
    for i, old in enumerate(catalog.images):
        for k, new in enumerate(catalog.images):
            one, other = catalog.open_disk(old), catalog.open_disk(new)
            found = chunks_of(changes_between(one, other))
            assert found == differing(plain[i], plain[k])
            if is_child(old, new):
                assert found <= chunks_of(changes_of_child(catalog, old, new))
            one.close()
            other.close()
