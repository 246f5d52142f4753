"""Rescue: every sector that can be read is read, and exactly the others are named."""

from __future__ import annotations

import errno
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.devices import DeviceReader, open_source
from imagefs.block.mapfile import format_mapfile, not_rescued, read_mapfile
from imagefs.block.rescue import PIECE, Rescue
from imagefs.errors import SourceError
from tests.support.images import noise
from tests.support.oracles import failing_disk, need_tool, run_tool

SECTOR = 512
SIZE = 1024 * SECTOR


class Failing(DeviceReader):
    """A file of which reads fail that touch a bad sector, as those of a disk do."""

    def __init__(self, path: Path, bad: set[int]) -> None:
        super().__init__(os.open(path, os.O_RDONLY), os.fspath(path))
        self.bad, self.reads = bad, []  # type: ignore[var-annotated]

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        if any(sector in self.bad for sector in range(offset // SECTOR, -(-(offset + length) // SECTOR))):
            raise SourceError("bad", errno=errno.EIO)
        return super().read_at(offset, length)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rescue") / "disk"
    path.write_bytes(noise(SIZE))
    return path


def joined(sectors: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for sector in sorted(sectors):
        at = sector * SECTOR
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + SECTOR)
        else:
            found.append((at, SECTOR))
    return found


@given(
    singles=st.sets(st.integers(0, 1023), max_size=12),
    stretch=st.tuples(st.integers(0, 1023), st.integers(0, 400)),
    window=st.tuples(st.integers(0, 1000), st.integers(1, 1024)),
)
@settings(max_examples=150)
def test_exactly_the_bad_sectors(
    path: Path, singles: set[int], stretch: tuple[int, int], window: tuple[int, int]
) -> None:
    bad = singles | set(range(stretch[0], min(1024, sum(stretch))))
    first, stop = window[0] * SECTOR, min(1024, sum(window)) * SECTOR
    source = Failing(path, bad)
    rescue = Rescue(source, direct=source.read_at)
    found = rescue.read(first, stop - first)
    inside = {sector for sector in bad if first <= sector * SECTOR < stop}
    expected = bytearray(noise(SIZE)[first:stop])
    for sector in inside:
        expected[sector * SECTOR - first : (sector + 1) * SECTOR - first] = bytes(SECTOR)
    assert found.data == bytes(expected)
    assert list(found.bad) == joined(inside)
    assert rescue.errors == len(inside)
    # Not a read too many: pieces, sectors of the pieces that failed, and one more for each bad one.
    assert len(source.reads) <= 2 + 8 + (stop - first) // SECTOR + 2 * len(inside)
    source.close()


def test_it_skips_ahead_and_comes_back(path: Path) -> None:
    """The good sectors far behind a bad place are read before the place itself is looked at closely."""
    source = Failing(path, {10})
    Rescue(source, direct=source.read_at).read(0, SIZE)
    last_piece = source.reads.index((SIZE - PIECE, PIECE))
    first_sector = next(i for i, (_, length) in enumerate(source.reads) if length == SECTOR)
    assert last_piece < first_sector
    source.close()


def test_nobody_reads_what_is_not_wanted_or_known_to_be_bad(path: Path) -> None:
    source = Failing(path, set(range(100, 200)))
    rescue = Rescue(source, direct=source.read_at, known_bad=[(150 * SECTOR, 20 * SECTOR)])
    found = rescue.read(0, SIZE, [(0, 120 * SECTOR), (160 * SECTOR, 400 * SECTOR)])
    assert list(found.bad) == [(100 * SECTOR, 20 * SECTOR), (150 * SECTOR, 50 * SECTOR)]
    for offset, length in source.reads:
        assert offset + length <= 150 * SECTOR or offset >= 170 * SECTOR
    source.close()


def test_a_limit(path: Path) -> None:
    source = Failing(path, {1, 2, 3})
    with pytest.raises(SourceError, match="more than 2 unreadable sectors"):
        Rescue(source, direct=source.read_at, max_errors=2).read(0, SIZE)
    assert Rescue(source, direct=source.read_at, max_errors=3).read(0, SIZE).bad == ((SECTOR, 3 * SECTOR),)
    source.close()


def test_a_device_that_is_gone_is_not_a_bad_place(path: Path) -> None:
    source = Failing(path, set())
    rescue = Rescue(source, direct=source.read_at)
    assert rescue.read(0, PIECE).bad == ()
    source.bad = set(range(1024))
    with pytest.raises(SourceError, match="does not answer any more"):
        rescue.read(PIECE, PIECE)
    source.close()


def test_other_errors_are_raised(path: Path) -> None:
    source = open_source(os.fspath(path))
    source.close()
    with pytest.raises(SourceError, match="closed"):
        Rescue(source).read(0, 512)


@given(st.binary(max_size=300))
def test_any_mapfile(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("map") / "map"
    path.write_bytes(data)
    try:
        blocks = read_mapfile(os.fspath(path))
    except SourceError:
        return
    assert all(a[0] + a[1] <= b[0] for a, b in pairwise(blocks))


def test_beside_ddrescue(path: Path, tmp_path: Path) -> None:
    """A disk whose sectors fail for every reader alike: the same bytes, the same bad sectors."""
    need_tool("ddrescue", "ddrescuelog")
    bad = [7, 8, 9, 200, 640, 641, 1023]
    with failing_disk(path, tmp_path / "disk", bad) as disk:
        ours = open_source(os.fspath(disk))
        rescue = Rescue(ours)
        found = rescue.read(0, SIZE)
        rescue.close()
        ours.close()
        run_tool(["ddrescue", "-q", "-d", disk, tmp_path / "out", tmp_path / "map"], timeout=600)
    assert list(found.bad) == joined(set(bad))
    assert list(not_rescued(read_mapfile(os.fspath(tmp_path / "map")))) == list(found.bad)
    expected = (tmp_path / "out").read_bytes().ljust(SIZE, b"\0")
    assert found.data == expected
    own = tmp_path / "own.map"
    own.write_text("\n".join(format_mapfile(found.bad, SIZE, comment="imagefs")) + "\n")
    same = subprocess.run(["ddrescuelog", "-P", os.fspath(tmp_path / "map"), os.fspath(own)], check=False)
    assert same.returncode == 0, "ddrescue's log tool finds the two maps equal"


def test_given_up_it_ends_with_the_next_read(path: Path) -> None:
    """A dying disk takes seconds for each sector; the rest of a bad stretch is not waited for."""
    source = Failing(path, set(range(1024)))
    rescue = Rescue(source, direct=lambda offset, length: stop_at_ten(offset, length))

    def stop_at_ten(offset: int, length: int) -> bytes:
        if len(source.reads) == 10:
            rescue.stop()
        return source.read_at(offset, length)

    with pytest.raises(SourceError, match="given up") as caught:
        rescue.read(0, SIZE)
    assert "errno" not in caught.value.data, "no bad place"
    assert len(source.reads) == 11
    source.close()
