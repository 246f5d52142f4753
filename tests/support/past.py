"""A volume that changes, and a set with an image of it after each change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imagefs.image.catalog import SUFFIX, Catalog, scan
from imagefs.store import LocalStore
from tests.support.images import capture_file
from tests.support.oracles import loop_mounted, need_tool, run_tool

MIB = 1 << 20


class Past:
    """``kind`` is ext2, ext3, ext4 (mounted by the kernel), xfs, or ntfs (by ntfs-3g); takes root."""

    def __init__(self, folder: Path, kind: str, *, size: int = 24 * MIB, words: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.volume = folder / "volume"
        self.set = folder / "set"
        self.room = folder / "mounted"
        self.set.mkdir()
        self.store = LocalStore(self.set, suffix=SUFFIX)
        run_tool(["truncate", "-s", str(size), self.volume])
        if kind == "ntfs":
            need_tool("mkntfs", "ntfs-3g")
            run_tool(["mkntfs", "-q", "-F", "-f", *words, self.volume])
        elif kind == "xfs":
            need_tool("mkfs.xfs")
            run_tool(["mkfs.xfs", "-q", *words, self.volume])
        else:
            need_tool("mke2fs")
            run_tool(["mke2fs", "-q", "-F", "-t", kind, *words, self.volume])

    @contextlib.contextmanager
    def mounted(
        self, *, options: str = "rw,noatime", volume: Path | None = None, room: Path | None = None
    ) -> Iterator[Path]:
        """``volume``, by default the one that changes, on the folder ``room``."""
        volume, room = volume or self.volume, room or self.room
        room.mkdir(exist_ok=True)
        if self.kind != "ntfs":
            with loop_mounted(volume, room, fs_type=self.kind, options=options):
                yield room
            return
        run_tool(["ntfs-3g", "-o", options, volume, room])
        try:
            yield room
        finally:
            run_tool(["umount", room])

    def step(self, change: Callable[[Path], Any] | None = None, **options: Any) -> str:
        """Change the volume and make an image of it; its id."""
        if change is not None:
            with self.mounted() as room:
                change(room)
        return capture_file(self.store, self.volume, **options).info.id

    @property
    def catalog(self) -> Catalog:
        return scan(self.store)
