"""The decisive experiment on an allocation map: what it calls unused is overwritten, and nothing is missed.
And what partclone says of the same file system."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from imagefs.allocation.usedmap import UsedMap
from imagefs.block.views import BytesReader
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool

#: Names and sizes of the files that a file system is filled with; every third one is deleted again.
SIZES = {f"f{number}": number * 9_001 for number in range(40)}
DELETED = {f"f{number}" for number in range(0, 40, 3)}


def content(name: str) -> bytes:
    return noise(SIZES[name], int(name[1:]) + 1)


def make_files(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in SIZES:
        (folder / name).write_bytes(content(name))
    return folder


def unused(found: UsedMap, size: int) -> list[tuple[int, int]]:
    first, end = [0, *found.end.tolist()], [*found.first.tolist(), size]
    return [(a, b) for a, b in zip(first, end, strict=True) if b > a]


def overwrite(path: Path, found: UsedMap) -> int:
    """Fill all that ``found`` calls unused; how many bytes that were."""
    count, size = 0, path.stat().st_size
    with path.open("r+b") as out:
        for a, b in unused(found, size):
            out.seek(a)
            out.write(b"\xa5" * (b - a))
            count += b - a
    assert count, "something is unused"
    return count


def sectors(found: UsedMap, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """One flag for each sector: used."""
    flags = np.zeros(-(-size // 512), bool)
    for a, b in zip(found.first.tolist(), found.end.tolist(), strict=True):
        flags[a // 512 : -(-b // 512)] = True
    return flags


def by_partclone(program: str, path: Path, room: Path) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The same by partclone's domain map."""
    need_tool(program)
    words = [program, "-D", "--offset_domain=0", "-s", path, "-O", room / "map", "-L", room / "log"]
    run_tool(words)
    flags = np.zeros(-(-path.stat().st_size // 512), bool)
    for line in (room / "map").read_text().splitlines():
        words_ = line.split()
        if len(words_) == 3 and words_[2] == "+" and words_[1].startswith("0x"):
            flags[int(words_[0], 16) // 512 : (int(words_[0], 16) + int(words_[1], 16)) // 512] = True
    assert flags.any()
    return flags


def patched(data: bytes, at: int, value: bytes) -> BytesReader:
    return BytesReader(data[:at] + value + data[at + len(value) :])


def free_numbers(text: str, pattern: str) -> set[int]:
    """Lists such as ``1-5, 8`` that follow ``pattern`` in what a tool printed."""
    found: set[int] = set()
    for line in re.findall(pattern, text, re.M):
        for part in filter(None, line.split(", ")):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def inside(found: UsedMap, size: int) -> None:
    """What a map of hostile bytes must still be: sorted, apart, and within the volume."""
    if len(found.first):
        assert int(found.first[0]) >= 0
        assert int(found.end[-1]) <= size
        assert bool(np.all(found.end > found.first))
        assert bool(np.all(found.first[1:] > found.end[:-1]))
