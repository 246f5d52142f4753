"""Which blocks XFS, Btrfs, F2FS, HFS+ and APFS use, as partclone (GPL, called and never linked) maps them.

partclone takes the maps on the disk at their word, even where a journal has yet to be replayed: that
nothing is pending is checked here first, by what each of these keeps about it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from imagefs.allocation.usedmap import UsedMap, UsedRuns
from imagefs.block.commands import read_head, run_command
from imagefs.errors import AllocationError
from imagefs.interfaces import Reader

_PROGRAMS = {
    "xfs": "partclone.xfs",
    "btrfs": "partclone.btrfs",
    "f2fs": "partclone.f2fs",
    "hfs+": "partclone.hfsp",
    "apfs": "partclone.apfs",
}
KINDS = frozenset(_PROGRAMS)
#: Always kept: at the start, at the end, and where Btrfs has the copies of its superblock.
_HEAD, _TAIL = 1 << 20, 1 << 16
_BTRFS_COPIES = (64 << 20, 256 << 30)
_LINE = re.compile(r"^0x([0-9A-Fa-f]{1,16})\s+0x([0-9A-Fa-f]{1,16})\s+([?+])$")


def read_partclone(volume: Reader, path: str, start: int, kind: str) -> UsedMap:
    """The used blocks of ``volume``, which begins at byte ``start`` of the disk at ``path``.

    Raises AllocationError, also when a program that is needed is not installed, and what reading raises.
    """
    with _volume_path(path, start, volume.size) as place:
        _CHECKS[kind](volume, place)
        with tempfile.TemporaryDirectory(prefix="imagefs-") as room:
            words = [
                _PROGRAMS[kind],
                "-D",
                "--offset_domain=0",
                "-L",
                f"{room}/log",
                "-s",
                place,
                "-O",
                f"{room}/map",
            ]
            _run(words)
            return _read_map(Path(room, "map"), volume, _PROGRAMS[kind])


def _read_map(path: Path, volume: Reader, program: str) -> UsedMap:
    """The domain map (the form of ddrescue's): stretches in order without a gap from byte 0 on."""
    used, at = UsedRuns(volume.size, 512), 0
    with path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            match = _LINE.match(line.strip())
            if match is None:
                continue
            first, length = int(match[1], 16), int(match[2], 16)
            if first != at or not length or first + length > volume.size:
                raise AllocationError(f"the map that {program} made has gaps, or does not fit the volume")
            at = first + length
            if match[3] == "+":
                used.add_bytes(first, at)
    if not at:
        raise AllocationError(f"{program} made no map")
    used.add_bytes(at, volume.size)
    # What lies at fixed places, and copies of superblocks, are in nobody's map for certain.
    used.add_bytes(0, min(_HEAD, volume.size))
    used.add_bytes(max(0, volume.size - _TAIL), volume.size)
    for place in _BTRFS_COPIES:
        used.add_bytes(place, min(place + _TAIL, volume.size))
    found = used.finish(program)
    if not len(found.first) or np.any((found.first % 512) | ((found.end % 512) * (found.end < volume.size))):
        raise AllocationError(f"the map that {program} made makes no sense")
    return found


def _check_xfs(volume: Reader, place: str) -> None:
    # What is in a log that is not clean may be long: its state comes first.
    head = read_head(["xfs_logprint", "-t", place], 4096)
    if b"state: <CLEAN>" not in head:
        raise AllocationError("its journal has to be replayed first")


def _check_btrfs(volume: Reader, place: str) -> None:
    block = volume.read_at(65536, 4096)
    devices = int.from_bytes(block[136:144], "little")
    if block[96:104] != bytes(8):
        raise AllocationError("its log has to be replayed first")
    if devices != 1:
        raise AllocationError(f"it lies on {devices} devices")


def _check_f2fs(volume: Reader, place: str) -> None:
    """The newer of the two packs of checkpoints is whole, and was written by an unmount."""
    block = volume.read_at(1024, 1152)
    shift, start = int.from_bytes(block[16:20], "little"), int.from_bytes(block[76:80], "little")
    per_segment = 1 << min(int.from_bytes(block[20:24], "little"), 16)
    if not 9 <= shift <= 16:
        raise AllocationError("its superblock makes no sense")
    places = [start + number * per_segment for number in (0, 1)]
    packs = [(volume.read_at(place << shift, 4096), place) for place in places]
    newest, at = max(packs, key=lambda pack: int.from_bytes(pack[0][:8], "little"))
    flags, count = int.from_bytes(newest[132:136], "little"), int.from_bytes(newest[136:140], "little")
    last = volume.read_at((at + count - 1) << shift, 4096) if 0 < count <= per_segment else b""
    if not flags & 1 or last[:8] != newest[:8]:
        raise AllocationError("it was not unmounted cleanly")


def _check_hfs(volume: Reader, place: str) -> None:
    header = volume.read_at(1024, 512)
    if header[:2] not in (b"H+", b"HX"):
        raise AllocationError("it lies in an HFS wrapper")
    attributes = int.from_bytes(header[4:8], "big")
    if not attributes & 1 << 8 or attributes & 1 << 11:
        raise AllocationError("it was not unmounted cleanly, or has errors")
    if attributes & 1 << 13:
        _check_hfs_journal(volume, header)


def _check_hfs_journal(volume: Reader, header: bytes) -> None:
    """Empty, that is: it starts where it ends (TN1150, Journal Header)."""
    info = volume.read_at(int.from_bytes(header[12:16], "big") * int.from_bytes(header[40:44], "big"), 52)
    journal = volume.read_at(int.from_bytes(info[36:44], "big"), 24)
    if not int.from_bytes(info[:4], "big") & 1 or journal[:4] not in (b"JNLx", b"xLNJ"):
        raise AllocationError("its journal is not understood")
    if journal[8:16] != journal[16:24]:
        raise AllocationError("its journal has to be replayed first")


def _check_apfs(volume: Reader, place: str) -> None:
    """Block 0 is a copy of the newest checkpoint's superblock: only after a clean unmount."""
    first = volume.read_at(0, 4096)
    size, blocks = int.from_bytes(first[36:40], "little"), int.from_bytes(first[104:108], "little")
    base = int.from_bytes(first[112:120], "little")
    if not 4096 <= size <= 65536 or not 0 < blocks <= 1 << 16:
        raise AllocationError("its superblock makes no sense")
    newest = 0
    for number in range(blocks):
        block = volume.read_at((base + number) * size, 64)
        if block[32:36] == b"NXSB":
            newest = max(newest, int.from_bytes(block[16:24], "little"))
    if newest != int.from_bytes(first[16:24], "little"):
        raise AllocationError("it was not unmounted cleanly")


_CHECKS: dict[str, Callable[[Reader, str], None]] = {
    "xfs": _check_xfs,
    "btrfs": _check_btrfs,
    "f2fs": _check_f2fs,
    "hfs+": _check_hfs,
    "apfs": _check_apfs,
}


@contextlib.contextmanager
def _volume_path(path: str, start: int, length: int) -> Iterator[str]:
    """A path under which the volume alone is found: a read-only loop device for a part of a disk."""
    with open(path, "rb") as disk:
        whole = not start and disk.seek(0, os.SEEK_END) == length
    if whole:
        yield os.path.abspath(path)
        return
    if os.geteuid():
        raise AllocationError("only root can show a partition of a disk to partclone")
    words = ["losetup", "--read-only", "--find", "--show", f"--offset={start}", f"--sizelimit={length}", path]
    device = _run(words).strip()
    try:
        yield device
    finally:
        _run(["losetup", "--detach", device])


def _run(words: list[str]) -> str:
    done = run_command(words, timeout=None)
    if done.code:
        raise AllocationError(f"{words[0]} refuses it")
    return done.stdout
