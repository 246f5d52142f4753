"""The peers that serve a disk as a file: what each makes of the benchmark disk, and how it is mounted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import BenchError, warm
from benchmarks.mounts import Served, give, room_for, serving
from benchmarks.peers import borg_environment
from benchmarks.workshop import Workshop
from fixtures.tools import run_tool, tool_path


@dataclass(frozen=True, slots=True)
class Export:
    """A peer by ``name``; ``files`` are what it reads, ``serve`` mounts it, without rights where it can."""

    name: str
    files: tuple[Path, ...]
    serve: Callable[[], contextlib.AbstractContextManager[Served]]

    @contextlib.contextmanager
    def warmed(self) -> Iterator[Served]:
        warm(*(path for path in self.files if path.is_file()))
        with self.serve() as served:
            yield served


def exports(shop: Workshop, *, nobody: bool = False) -> dict[str, Export]:
    """Those of the peers that are installed here; without rights only those that one process serves."""
    size = shop.shape.size
    found = {
        "qemu": Export(
            "qemu-storage-daemon's FUSE export",
            (shop.qcow2,),
            partial(qemu_export, shop.qcow2, size=size, nobody=nobody),
        )
    }
    if nobody:
        return found
    if _have("nbdfuse", "qemu-nbd"):
        found["nbdfuse"] = Export("nbdfuse + qemu-nbd", (shop.qcow2,), partial(_nbdfuse, shop.qcow2, size))
    if _have("ewfacquire", "ewfmount"):
        words = ["ewfmount", "-f", "raw", str(shop.ewf)]
        found["ewf"] = Export(
            "ewfmount of an E01 by ewfacquire", (shop.ewf,), partial(_in_folder, words, "ewf1", size)
        )
    if _have("ewfacquire", "xmount"):
        words = ["xmount", "--in", "ewf", str(shop.ewf), "--out", "raw"]
        name = f"{shop.ewf.stem}.dd"
        found["xmount"] = Export(
            "xmount of the same E01", (shop.ewf,), partial(_in_folder, words, name, size)
        )
    if _have("casync"):
        found["casync"] = Export("casync mount", (), partial(_casync, shop.casync, size))
    if _have("borg"):
        found["borg"] = Export("borg mount", (), partial(_borg, shop.borg, shop.disk, size))
    return found


def _have(*tools: str) -> bool:
    return all(tool_path(tool) for tool in tools)


@contextlib.contextmanager
def qemu_export(image: Path, *, size: int, nobody: bool, driver: str = "qcow2") -> Iterator[Served]:
    """qemu-storage-daemon's FUSE export of an image, over a regular file as it wants it."""
    with room_for(nobody) as room:
        place = room / "export.raw"
        place.touch()
        give(place, nobody)
        words = ["qemu-storage-daemon"]
        words += ["--blockdev", f"driver=file,node-name=file,filename={image},read-only=on"]
        words += ["--blockdev", f"driver={driver},node-name=disk,file=file,read-only=on"]
        words += ["--export", f"type=fuse,id=fuse,node-name=disk,mountpoint={place},writable=off"]
        with serving(words, place, size=size, nobody=nobody) as served:
            yield served


@contextlib.contextmanager
def _nbdfuse(image: Path, size: int) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as room:
        place = Path(room, "disk.raw")
        place.touch()
        server = ["qemu-nbd", "-r", "-f", "qcow2", str(image)]
        words = ["nbdfuse", "-r", str(place), "--socket-activation", *server]
        with serving(words, place, size=size, nobody=False) as served:
            yield served


@contextlib.contextmanager
def _casync(index: Path, size: int) -> Iterator[Served]:
    """It stays in the foreground; the archive is of a folder with the disk in it."""
    with tempfile.TemporaryDirectory() as room:
        words = ["casync", "mount", f"--store={index.parent / 'store'}", str(index), room]
        with serving(words, Path(room, "disk.raw"), size=size, nobody=False) as served:
            try:
                yield served
            finally:
                _unmount(room)


@contextlib.contextmanager
def _borg(repository: Path, disk: Path, size: int) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as room:
        words = ["env", *(f"{name}={value}" for name, value in borg_environment(repository).items())]
        words += ["borg", "mount", "--foreground", f"{repository}::disk", room]
        with serving(words, Path(room, disk.relative_to("/")), size=size, nobody=False) as served:
            try:
                yield served
            finally:
                _unmount(room)


@contextlib.contextmanager
def _in_folder(words: Sequence[str], name: str, size: int) -> Iterator[Served]:
    """A server that goes to the background once it has mounted its folder."""
    with tempfile.TemporaryDirectory() as folder:
        run_tool([*words, folder], timeout=120)
        try:
            place = Path(folder, name)
            if not place.exists() or place.stat().st_size != size:
                raise BenchError(f"{words[0]} serves no {name} of {size} bytes")
            yield Served(place, size, 0, nobody=False)
        finally:
            _unmount(folder)


def _unmount(folder: str | os.PathLike[str]) -> None:
    subprocess.run(["umount", folder], timeout=120, check=True)
