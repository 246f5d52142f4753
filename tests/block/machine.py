"""Machines we do not have: a /sys and /proc laid out in a folder, as the kernel would show them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from imagefs.block.sysfs import System


class Machine:
    """Builds the tree; ``system()`` gives the System that looks at it.

    Devices are made by name, with links as sysfs has them. Paths are whatever ``node`` and ``file``
    say; no real path is looked at.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stats: dict[str, os.stat_result] = {}
        self._mounts: list[str] = []
        self._inode = 100
        for folder in ("sys/block", "sys/dev/block", "proc/self", "run/udev/data"):
            (root / folder).mkdir(parents=True)

    def system(self) -> System:
        return System(self.root, stat=self._stat)

    def _stat(self, path: str) -> os.stat_result:
        if path not in self._stats:
            raise FileNotFoundError(path)
        return self._stats[path]

    # -- paths ------------------------------------------------------------------------------------

    def node(self, path: str, number: str) -> None:
        major, minor = map(int, number.split(":"))
        self._add(path, stat.S_IFBLK | 0o660, 6, os.makedev(major, minor))

    def file(self, path: str, *, on: str = "0:99") -> None:
        self._add(path, stat.S_IFREG | 0o644, self._device(on), 0)

    def folder(self, path: str, *, on: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755, self._device(on), 0)

    @staticmethod
    def _device(number: str) -> int:
        major, minor = map(int, number.split(":"))
        return os.makedev(major, minor)

    def _add(self, path: str, mode: int, device: int, rdev: int) -> None:
        self._inode += 1
        times = (0, 0, 0)
        self._stats[path] = os.stat_result((mode, self._inode, device, 1, 0, 0, 0, *times), {"st_rdev": rdev})

    # -- devices ----------------------------------------------------------------------------------

    def disk(self, name: str, number: str, *, attributes: Mapping[str, str | bytes] | None = None) -> Path:
        folder = self.root / "sys/devices/pci0" / name
        self._device_folder(folder, number, attributes or {})
        (self.root / "sys/block" / name).symlink_to(f"../devices/pci0/{name}")
        self.node("/dev/" + name.replace("!", "/"), number)
        return folder

    def partition(self, disk: str, index: int, number: str) -> Path:
        between = "p" if disk[-1].isdigit() else ""
        name = f"{disk}{between}{index}"
        folder = self.root / "sys/devices/pci0" / disk / name
        self._device_folder(folder, number, {"partition": f"{index}\n"})
        self.node(f"/dev/{name}", number)
        return folder

    def _device_folder(self, folder: Path, number: str, attributes: Mapping[str, str | bytes]) -> None:
        for name in ("holders", "slaves", "queue"):  # sysfs has other folders too
            (folder / name).mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        for name, value in attributes.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else value.encode())
        link = self.root / "sys/dev/block" / number
        link.symlink_to(os.path.relpath(folder, link.parent))

    def stack(self, upper: Path, *lowers: Path) -> None:
        """``upper`` (a mapper or md device) is built on ``lowers``."""
        for lower in lowers:
            (upper / "slaves" / lower.name).symlink_to(lower)
            (lower / "holders" / upper.name).symlink_to(upper)

    def loop(self, index: int, backing: str) -> Path:
        return self.disk(f"loop{index}", f"7:{index}", attributes={"loop/backing_file": backing + "\n"})

    def btrfs(self, uuid: str, *members: Path) -> None:
        folder = self.root / "sys/fs/btrfs" / uuid / "devices"
        folder.mkdir(parents=True)
        for member in members:
            (folder / member.name).symlink_to(member)

    # -- use --------------------------------------------------------------------------------------

    def mount(
        self, source: str, mountpoint: str, number: str, *, options: str = "rw", fstype: str = "ext4"
    ) -> None:
        shown = [part.replace("\\", "\\134").replace(" ", "\\040") for part in (mountpoint, source)]
        per_mount = options.split(",")[0]
        self._mounts.append(
            f"30 1 {number} / {shown[0]} {per_mount},relatime shared:1 - {fstype} {shown[1]} {options}"
        )
        (self.root / "proc/self/mountinfo").write_text("\n".join(self._mounts) + "\n")

    def swap(self, *paths: str) -> None:
        lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"]
        lines += [path.replace(" ", "\\040") + "\tpartition\t8388604\t0\t-2" for path in paths]
        (self.root / "proc/swaps").write_text("\n".join(lines) + "\n")

    def udev(self, number: str, **properties: str) -> None:
        lines = ["S:disk/by-id/x", "W:9", *(f"E:{key}={value}" for key, value in properties.items())]
        (self.root / f"run/udev/data/b{number}").write_text("\n".join(lines) + "\n")
