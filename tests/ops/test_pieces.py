"""The pump with ranges left out and ranges that cannot be read: states, ranges and bytes of the image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.devices import DeviceReader, open_source
from imagefs.format.header import Header, Kind, Mode
from imagefs.format.trailer import Summary
from imagefs.image.catalog import read_info, scan
from imagefs.image.writer import ImageWriter
from imagefs.interfaces import NoProgress, State
from imagefs.ops.linear import LinearDigests
from imagefs.ops.pieces import CaptureJob
from imagefs.ops.skips import Skips
from imagefs.ops.verify import verify_image
from imagefs.store import MemoryStore
from tests.support.images import CHUNK, SET, disk_bytes, noise, write_disk

SECTOR = 512
NAME = "x.imagefs"


@dataclass
class Found:
    data: bytes
    bad: list[tuple[int, int]]
    retries: int = 0


class BadSectors:
    """Reads around ``bad`` sectors, as a failing disk has them."""

    def __init__(self, source: DeviceReader, bad: set[int]) -> None:
        self._source, self._bad = source, bad

    def read(self, offset: int, length: int, wanted: Sequence[tuple[int, int]] | None) -> Found:
        data = bytearray(self._source.read_at(offset, length))
        lost = []
        for at in range(offset, offset + length, SECTOR):
            asked = wanted is None or any(a < at + SECTOR and at < a + n for a, n in wanted)
            if at // SECTOR in self._bad and asked:
                data[at - offset : at - offset + SECTOR] = bytes(SECTOR)
                lost.append((at, SECTOR))
        return Found(bytes(data[:length]), lost)

    def stop(self) -> None:
        raise AssertionError("nothing goes wrong here")


def captured(path: Path, skips: list[tuple[int, int]], bad: set[int]) -> tuple[MemoryStore, dict[str, str]]:
    store, source = MemoryStore(), open_source(os.fspath(path))
    columns = np.array(skips, np.int64).reshape(-1, 2).T
    header = Header(uuid4(), SET, Kind.FULL, 10**18, CHUNK, 512, mode=Mode.USED)
    digests = LinearDigests(["sha256"])
    job = CaptureJob(
        source,
        header,
        None,
        threads=2,
        progress=NoProgress(),
        skips=Skips(columns[0], columns[1]),
        rescue=BadSectors(source, bad),  # type: ignore[arg-type]
        digests=digests,
    )
    writer = ImageWriter(store.create(NAME), header)
    job.run(writer)
    writer.finish(Summary(job.done, 0, 1, bytes(32)))
    source.close()
    return store, digests.finish()


def expected(data: bytes, skips: list[tuple[int, int]], bad: set[int]) -> tuple[bytes, list[int]]:
    """The bytes of the view, and what each sector is: 1 there, 3 skipped, 4 unreadable."""
    view, state = bytearray(data), [1] * (len(data) // SECTOR)
    for first, end in skips:
        view[first:end] = bytes(end - first)
        state[first // SECTOR : end // SECTOR] = [3] * ((end - first) // SECTOR)
    for sector in bad:
        if state[sector] == 1:
            state[sector] = 4
            view[sector * SECTOR : (sector + 1) * SECTOR] = bytes(SECTOR)
    return bytes(view), state


@given(
    cuts=st.lists(st.integers(0, 255), max_size=12, unique=True),
    bad=st.sets(st.integers(0, 255), max_size=40),
    stretch=st.tuples(st.integers(0, 255), st.integers(0, 80)),
    seed=st.integers(1, 4),
)
@settings(max_examples=60)
def test_every_sector_is_where_it_belongs(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    bad: set[int],
    stretch: tuple[int, int],
    seed: int,
) -> None:
    """Against a model in sectors: 8 chunks of 32 sectors, any skipped ranges, any bad sectors."""
    data = noise(CHUNK * 5, seed) + bytes(CHUNK) + noise(2 * CHUNK, seed + 1)
    cuts = sorted(cuts)
    skips = [(a * SECTOR, b * SECTOR) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    bad |= set(range(stretch[0], min(256, stretch[0] + stretch[1])))
    path = write_disk(tmp_path_factory.mktemp("pieces") / "disk", data)
    store, _ = captured(path, skips, bad)
    view, states = expected(data, skips, bad)
    catalog = scan(store)
    info = read_info(store, NAME)
    assert disk_bytes(catalog, info) == view
    assert verify_image(catalog, info).findings == []
    with_ranges = catalog.open_image(info)
    runs, shown = with_ranges.ranges(), [1] * len(states)
    for first, count, state in zip(runs.first, runs.count, runs.state, strict=True):
        for sector in range(int(first) // SECTOR, int(first + count) // SECTOR):
            shown[sector] = int(state)
    # A hole is known to be zeros, so nothing of it was read and nothing can be bad in it.
    hole = range(5 * 32, 6 * 32)
    assert [s for i, s in enumerate(shown) if i not in hole] == [
        s for i, s in enumerate(states) if i not in hole
    ]
    table = with_ranges.table(0)
    for number in range(8):
        part = set(states[32 * number : 32 * number + 32])
        i = table.find(number)
        state = State(int(table.state[i]))
        if part == {3}:
            assert state is State.SKIPPED
        elif number != 5 and part == {4}:
            assert state is State.UNREADABLE
        elif number != 5 and 1 in part:
            assert state is State.STORED
    with_ranges.close()


def test_digests_count_what_cannot_be_read_as_zeros(tmp_path: Path) -> None:
    data = noise(6 * CHUNK)
    store, digests = captured(write_disk(tmp_path / "disk", data), [], set(range(20, 90)))
    view, _ = expected(data, [], set(range(20, 90)))
    assert digests == {"sha256": hashlib.sha256(view).hexdigest()}
    assert read_info(store, NAME).summary.unreadable == 1


def test_chunk_runs_of_skips() -> None:
    skips = Skips(np.array([0, 100, 5 * CHUNK]), np.array([50, 3 * CHUNK, 7 * CHUNK + 10]))
    assert list(skips.chunks(CHUNK, 7 * CHUNK + 10)) == [(1, 3), (5, 8)]
    assert skips.bytes == 50 + 3 * CHUNK - 100 + 2 * CHUNK + 10
    assert skips.within(40, 120) == [(40, 50), (100, 120)]
    assert skips.within(50, 100) == []
