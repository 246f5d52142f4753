"""Records as columns: none that has something in the ranges is missed, and numbers are those that lie there."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from imagefs.block.ranges import Ranges
from imagefs.browse import mft, ntfsscan
from tests.browse.disks import FileReader
from tests.support.past import Past


@pytest.mark.parametrize("width", range(8))
def test_numbers_at_the_place_of_each_row(width: int) -> None:
    dice = random.Random(width)
    raw = dice.randbytes(50 * 512)
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 512)
    places = [dice.randrange(512 - width + 1) for _ in range(50)]
    wanted = [
        int.from_bytes(raw[i * 512 + at : i * 512 + at + width], "little") for i, at in enumerate(places)
    ]
    assert ntfsscan._number(rows, np.array(places), width).tolist() == wanted
    some = np.array([3, 3, 49])
    widths = np.array([width, 0, width])
    found = ntfsscan._number(rows, np.array(places)[some], widths, some)
    assert found.tolist() == [wanted[3], 0, wanted[49]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NTFS with files of one run, of many, resident ones, and a folder that has its names elsewhere."""
    past = Past(tmp_path_factory.mktemp("filled"), "ntfs")
    dice = random.Random(1)
    with past.mounted() as room:
        for number in range(300):
            (room / f"file {number}").write_bytes(dice.randbytes(dice.choice((10, 5_000, 60_000))))
        for number in range(0, 300, 3):
            (room / f"file {number}").unlink()
        (room / "in pieces").write_bytes(dice.randbytes(3_000_000))
    return past.volume


def test_none_is_missed(filled: Path) -> None:
    """Held against each record by itself; a good part of the others is left out."""
    volume = FileReader(filled)
    size, cluster = 1024, 4096
    boot = volume.read_at(0, 512)
    first = mft.decode(volume.read_at(int.from_bytes(boot[48:56], "little") * cluster, size))
    assert first is not None
    assert first.data is not None
    pieces = mft.pieces_of(first.data, cluster, volume.size) or []
    assert len(pieces) == 1
    assert pieces[0].source is not None
    raw = volume.read_at(pieces[0].source, pieces[0].length // size * size)
    held = {
        number: [
            (piece.source, piece.source + piece.length)
            for each in mft.decode_streams(raw[number * size : (number + 1) * size]) or []
            if each.stream.resident is None
            for piece in mft.pieces_of(each.stream, cluster, volume.size) or []
            if piece.source is not None
        ]
        for number in range(len(raw) // size)
    }
    assert max(map(len, held.values())) > 3
    dice = random.Random(2)
    for _ in range(50):
        at = dice.randrange(volume.size)
        ranges = Ranges([(at, at + 100_000)])
        found = ntfsscan.may_touch(raw, size, ranges, cluster)
        wanted = {number for number, runs in held.items() if any(ranges.within(*run) for run in runs)}
        assert wanted <= set(found)
        assert len(found) < len(wanted) + 40, "most are looked at one by one"
