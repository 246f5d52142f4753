"""Folders and small files beside The Sleuth Kit's own tools, and a kernel mount of our raw partition beside
those of peers. All cold: image and raw disk are put out of the page cache before each run.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import disk as disks
from benchmarks import ours
from benchmarks.measure import BenchError, evict, interleave, run_timed, say
from benchmarks.mounts import Served, imagefs_mount, qemu_export, serving
from benchmarks.rows import Figure, LeftOut, Row
from benchmarks.workshop import Workshop
from fixtures.tools import run_tool, tool_path
from fixtures.wide import BUILDERS

ENTRIES = 60_000
_SMALL_FILES = 1_000
_SEED = 4

_WALK = """
import sys, time, imagefs
from imagefs.browse import walk
begin = time.perf_counter()
with imagefs.open(sys.argv[1]) as disk:
    fs = disk.filesystem(0)
    total = sum(entry.size + entry.mode + (entry.mtime_ns or 0) for entry in walk(fs, fs.root(), onerror=print))
print(time.perf_counter() - begin)
"""


def trees(shop: Workshop) -> Iterator[Row]:
    """Walking and reading 60,000 entries of ext4 and of NTFS."""
    for kind in BUILDERS:
        if kind == "ntfs" and os.geteuid() != 0:
            yield LeftOut("trees", "a tree of NTFS", "filling one takes root")
            continue
        volume = wide_volume(shop.cache, kind)
        ours.capture(volume, ours.new_set(shop.work / "wide"), "--kind", "full")
        (image,) = ours.images(shop.work / "wide")
        yield from _walks(shop, kind, volume, image)
        yield _small_files(shop, kind, volume, image)


def wide_volume(cache: Path, kind: str) -> Path:
    """The volume, built once and kept in ``cache``."""
    path = cache / f"wide-{ENTRIES}.{kind}"
    if not path.exists():
        say(f"building a tree of {ENTRIES} entries, {kind}")
        room = path.with_suffix(".part")
        BUILDERS[kind](room, ENTRIES)
        room.replace(path)
    return path


def _walks(shop: Workshop, kind: str, volume: Path, image: Path) -> Iterator[Row]:
    def find() -> float:
        evict(image)
        with imagefs_mount([image], size=volume.stat().st_size, nobody=False, cold=True) as served:
            seconds = run_timed(["find", served.path.parent / "p0"]).seconds
            shop.note_peak("mount, find", served.peak)
            return seconds

    def walk() -> float:
        evict(image)
        return float(run_timed([sys.executable, "-c", _WALK, image]).output)

    def fls() -> float:
        evict(volume)
        return run_timed(["fls", "-r", volume]).seconds

    values = interleave(shop.runs, find=find, walk=walk, fls=fls)
    theirs = tuple(values["fls"])
    for side, name in (("find", "find over the mount"), ("walk", "walk of the API")):
        what = f"{name}, {ENTRIES:,} entries of {kind}"
        yield Figure("trees", what, "fls -r on the raw disk", "s", tuple(values[side]), theirs, 1.5)


def _small_files(shop: Workshop, kind: str, volume: Path, image: Path) -> Row:
    files = _some_files(volume)

    def cat() -> float:
        evict(image)
        with imagefs_mount([image], size=volume.stat().st_size, nobody=False, cold=True) as served:
            return _each(["cat"], [served.path.parent / "p0" / path for path, _ in files])

    def icat() -> float:
        evict(volume)
        return _each(["icat", volume], [inode for _, inode in files])

    values = interleave(shop.runs, cat=cat, icat=icat)
    mine, theirs = tuple(values["cat"]), tuple(values["icat"])
    name = f"cat of {len(files):,} small files of {kind}, one by one"
    return Figure("trees", name, "icat on the raw disk", "s", mine, theirs, 1.0)


def _some_files(volume: Path) -> list[tuple[str, str]]:
    """(path, TSK's address) of some files, the same for everybody."""
    lines = run_tool(["fls", "-r", "-p", "-F", volume], timeout=300).stdout.decode().splitlines()
    found = []
    for line in lines:
        head, _, path = line.partition(":\t")
        kind, _, inode = head.partition(" ")
        if kind == "r/r" and path.endswith(".txt") and ":" not in path:
            found.append((path, inode))
    return random.Random(_SEED).sample(found, min(_SMALL_FILES, len(found)))


def _each(command: list[str | Path], arguments: list[str] | list[Path]) -> float:
    """The seconds of one call for each argument."""
    with tempfile.NamedTemporaryFile() as listed:
        listed.write(b"\0".join(os.fsencode(each) for each in arguments))
        listed.flush()
        return run_timed(["xargs", "-0", "-n", "1", "-a", listed.name, *command]).seconds


def tar(shop: Workshop) -> Iterator[Row]:
    """``tar c`` of the ext4 partition through a kernel mount of our pN.raw, beside peers that serve the disk."""
    if os.geteuid() != 0:
        yield LeftOut("tar", "tar of a kernel mount", "mounting takes root")
        return
    peers = {name: partial(_tar, *side) for name, side in _peers(shop).items()}
    values = interleave(shop.runs, ours=partial(_tar_ours, shop), **peers)
    part = disks.linux_part(shop.shape).length / 1e6
    mine = tuple(part / seconds for seconds in values["ours"])
    for name in peers:
        theirs = tuple(part / seconds for seconds in values[name])
        what = "tar c of ext4 through a kernel mount of p2.raw"
        yield Figure("tar", what, _PEERS[name], "MB of partition/s", mine, theirs, 1.5, at_least=True)


_PEERS = {
    "qemu": "qemu-storage-daemon's FUSE export",
    "nbdfuse": "nbdfuse + qemu-nbd",
    "ewf": "ewfmount of an E01 by ewfacquire",
    "xmount": "xmount of the same E01",
}
_Server = Callable[[], contextlib.AbstractContextManager[Served]]


def _peers(shop: Workshop) -> dict[str, tuple[_Server, list[Path], int, int]]:
    """What serves the disk, what it reads, and where the partition lies; of peers that are here."""
    part, size = disks.linux_part(shop.shape), shop.shape.size
    at = (part.start, part.length)
    found: dict[str, tuple[_Server, list[Path], int, int]] = {
        "qemu": (partial(qemu_export, shop.qcow2, size=size, nobody=False, cold=True), [shop.qcow2], *at)
    }
    if tool_path("nbdfuse") and tool_path("qemu-nbd"):
        found["nbdfuse"] = (partial(_nbdfuse, shop.qcow2, size), [shop.qcow2], *at)
    if tool_path("ewfacquire") and tool_path("ewfmount"):
        found["ewf"] = (partial(_ewfmount, shop.ewf, size), [shop.ewf], *at)
    if tool_path("ewfacquire") and tool_path("xmount"):
        found["xmount"] = (partial(_xmount, shop.ewf, size), [shop.ewf], *at)
    return found


def _tar_ours(shop: Workshop) -> float:
    part = disks.linux_part(shop.shape)
    serve = partial(imagefs_mount, [shop.full], size=shop.shape.size, nobody=False, cold=True)
    return _tar(serve, [shop.full], 0, part.length, name="p2.raw")


def _tar(serve: _Server, files: list[Path], start: int, length: int, *, name: str = "") -> float:
    evict(*files)
    with serve() as served, tempfile.TemporaryDirectory() as folder:
        source = served.path.with_name(name) if name else served.path
        options = f"loop,ro,noload,offset={start},sizelimit={length}"
        run_tool(["mount", "-t", "ext4", "-o", options, source, folder], timeout=120)
        try:  # through a pipe: to /dev/null tar would read nothing
            return run_timed(["sh", "-c", 'tar c -C "$1" . | cat > /dev/null', "sh", folder]).seconds
        finally:
            run_tool(["umount", folder], timeout=120)


@contextlib.contextmanager
def _nbdfuse(image: Path, size: int) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as room:
        place = Path(room, "disk.raw")
        place.touch()
        words = [
            "nbdfuse",
            "-r",
            str(place),
            "--socket-activation",
            "qemu-nbd",
            "-r",
            "-f",
            "qcow2",
            str(image),
        ]
        with serving(words, place, size=size, nobody=False) as served:
            yield served


def _ewfmount(image: Path, size: int) -> contextlib.AbstractContextManager[Served]:
    return _in_folder(["ewfmount", "-f", "raw", str(image)], "ewf1", size)


def _xmount(image: Path, size: int) -> contextlib.AbstractContextManager[Served]:
    return _in_folder(["xmount", "--in", "ewf", str(image), "--out", "raw"], f"{image.stem}.dd", size)


@contextlib.contextmanager
def _in_folder(words: list[str], name: str, size: int) -> Iterator[Served]:
    """A server that goes to the background once it has mounted its folder."""
    with tempfile.TemporaryDirectory() as folder:
        run_tool([*words, folder], timeout=120)
        try:
            place = Path(folder, name)
            if not place.exists() or place.stat().st_size != size:
                raise BenchError(f"{words[0]} serves no {name} of {size} bytes")
            yield Served(place, size, 0, nobody=False)
        finally:
            subprocess.run(["umount", folder], timeout=120, check=True)
