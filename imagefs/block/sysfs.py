"""How block devices lie on one another, as /sys and /proc tell it. Reads text, opens no device.

A device is named by its number as the kernel writes it, ``"8:1"``. ``System`` takes the root of the
tree and the stat call from outside, so that machines we do not have can be laid out in a folder.
"""

from __future__ import annotations

import os
import re
import stat as stats
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TEXT_LIMIT = 1 << 24
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo. ``read_only`` is the file system's own state: a bind mount may be
    read-only while the file system under it is written."""

    number: str
    mountpoint: str
    read_only: bool
    fstype: str
    source: str
    options: tuple[str, ...]


class System:
    """One machine's block devices and mounts."""

    def __init__(self, root: Path = Path("/"), *, stat: Callable[[str], os.stat_result] = os.stat) -> None:
        self._root = root
        self._stat = stat

    # -- paths ------------------------------------------------------------------------------------

    def number(self, path: str) -> str | None:
        """The number of the block device at ``path``; None for anything else."""
        info = self.status(path)
        if info is None or not stats.S_ISBLK(info.st_mode):
            return None
        return number_of(info.st_rdev)

    def status(self, path: str) -> os.stat_result | None:
        try:
            return self._stat(path)
        except (OSError, ValueError):
            return None

    # -- devices ----------------------------------------------------------------------------------

    def directory(self, number: str) -> Path | None:
        """The sysfs folder of a device."""
        path = self._root / "sys/dev/block" / number
        try:
            return path.resolve(strict=True)
        except (OSError, RuntimeError):
            return None

    def attribute(self, number: str, name: str) -> str:
        """One attribute of a device as text, empty when it has none."""
        folder = self.directory(number)
        return read_text(folder / name) if folder else ""

    def name(self, number: str) -> str:
        """What people call the device: ``/dev/sda1``, ``/dev/mapper/root``."""
        mapped = self.attribute(number, "dm/name")
        if mapped:
            return f"/dev/mapper/{mapped}"
        folder = self.directory(number)
        return "/dev/" + folder.name.replace("!", "/") if folder else f"device {number}"

    def partition(self, number: str) -> int:
        """The partition's number, 0 for anything that is not a partition."""
        text = self.attribute(number, "partition")
        return int(text) if text.isascii() and text.isdigit() else 0

    def disk(self, number: str) -> str:
        """The disk a partition is cut from; the device itself when it is not a partition."""
        folder = self.directory(number)
        if folder is None or not self.partition(number):
            return number
        return read_text(folder.parent / "dev") or number

    def partitions(self, number: str) -> list[str]:
        """The partitions of a disk, by number."""
        folder = self.directory(number)
        inside = [child for child in _children(folder) if (child / "partition").exists()]
        found = [read_text(child / "dev") for child in inside]
        return sorted((dev for dev in found if dev), key=self.partition)

    def holders(self, number: str) -> list[str]:
        """The devices (device mapper, md, bcache) built directly on this one."""
        return self._linked(number, "holders")

    def slaves(self, number: str) -> list[str]:
        """The devices this one is directly built on."""
        return self._linked(number, "slaves")

    def _linked(self, number: str, name: str) -> list[str]:
        folder = self.directory(number)
        found = [read_text(child / "dev") for child in _children(folder / name if folder else None)]
        return [dev for dev in found if dev]

    def loops(self) -> Iterator[tuple[str, str]]:
        """Each loop device in use with the path of what is behind it."""
        for folder in _children(self._root / "sys/block"):
            backing = read_text(folder / "loop/backing_file")
            number = read_text(folder / "dev")
            if backing and number:
                yield number, backing

    def btrfs_groups(self) -> Iterator[list[str]]:
        """The devices of each mounted Btrfs; mountinfo names only one of them."""
        for folder in _children(self._root / "sys/fs/btrfs"):
            members = [read_text(child / "dev") for child in _children(folder / "devices")]
            yield [dev for dev in members if dev]

    # -- what is in use ---------------------------------------------------------------------------

    def mounts(self) -> Iterator[Mount]:
        for line in _read(self._root / "proc/self/mountinfo").splitlines():
            mount = _parse_mount(line)
            if mount is not None:
                yield mount

    def swaps(self) -> Iterator[str]:
        """Paths of the devices and files that are swapped to."""
        for line in _read(self._root / "proc/swaps").splitlines()[1:]:
            if line.split():
                yield _unescape(line.split()[0])

    def udev(self, number: str) -> dict[str, str]:
        """What udev remembers of a device, such as ``ID_SERIAL_SHORT``; empty where there is no udev."""
        lines = read_text(self._root / "run/udev/data" / f"b{number}").splitlines()
        parts = [line[2:].partition("=") for line in lines if line.startswith("E:")]
        return {key: value for key, _, value in parts}


def number_of(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def read_text(path: Path) -> str:
    """A small text file without its outer white space, empty when it cannot be read."""
    return _read(path).decode("utf-8", "surrogateescape").strip(" \t\r\n\0")


def read_bytes(path: Path) -> bytes:
    """A small binary attribute, empty when it cannot be read."""
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_LIMIT)
    except (OSError, ValueError):
        return b""


def _children(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _parse_mount(line: bytes) -> Mount | None:
    before, dash, after = line.partition(b" - ")
    left, right = before.split(b" "), after.split(b" ")
    if not dash or len(left) < 6 or len(right) < 3:
        return None
    options = tuple(_unescape(right[2]).split(","))
    return Mount(
        number=left[2].decode("ascii", "replace"),
        mountpoint=_unescape(left[4]),
        read_only="ro" in options,
        fstype=_unescape(right[0]),
        source=_unescape(right[1]),
        options=options,
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


#: The machine we run on.
HOST = System()
