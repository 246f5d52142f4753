"""Folders and small files beside The Sleuth Kit's own tools, and a kernel mount of our raw partition beside
those of peers. All cold: image and raw disk are put out of the page cache before each run.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import disk as disks
from benchmarks import ours
from benchmarks.exports import exports
from benchmarks.measure import evict, interleave, run_timed, say
from benchmarks.mounts import Served, imagefs_mount
from benchmarks.rows import Figure, LeftOut, Row
from benchmarks.workshop import Workshop
from fixtures.tools import run_tool
from fixtures.wide import BUILDERS

ENTRIES = 60_000
_SMALL_FILES = 1_000
_SEED = 4

_WALK = """
import sys, time, imagefs
from imagefs.browse.walk import walk
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
    peers = {key: export for key, export in exports(shop).items() if key not in _NOT_BY_LOOP}
    place = disks.linux_part(shop.shape)
    sides = {
        key: partial(_tar, each.serve, each.files, place.start, place.length) for key, each in peers.items()
    }
    values = interleave(shop.runs, ours=partial(_tar_ours, shop), **sides)
    mine = tuple(place.length / 1e6 / seconds for seconds in values["ours"])
    for key, export in peers.items():
        theirs = tuple(place.length / 1e6 / seconds for seconds in values[key])
        what = "tar c of ext4 through a kernel mount of p2.raw"
        yield Figure("tar", what, export.name, "MB of partition/s", mine, theirs, 1.5, at_least=True)


_Server = Callable[[], contextlib.AbstractContextManager[Served]]
#: They need minutes where others need seconds.
_NOT_BY_LOOP = ("casync", "borg")


def _tar_ours(shop: Workshop) -> float:
    part = disks.linux_part(shop.shape)
    serve = partial(imagefs_mount, [shop.full], size=shop.shape.size, nobody=False, cold=True)
    return _tar(serve, [shop.full], 0, part.length, name="p2.raw")


def _tar(serve: _Server, files: Sequence[Path], start: int, length: int, *, name: str = "") -> float:
    evict(*files)
    with serve() as served, tempfile.TemporaryDirectory() as folder:
        source = served.path.with_name(name) if name else served.path
        options = f"loop,ro,noload,offset={start},sizelimit={length}"
        run_tool(["mount", "-t", "ext4", "-o", options, source, folder], timeout=120)
        try:  # through a pipe: to /dev/null tar would read nothing
            return run_timed(["sh", "-c", 'tar c -C "$1" . | cat > /dev/null', "sh", folder]).seconds
        finally:
            run_tool(["umount", folder], timeout=120)
