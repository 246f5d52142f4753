"""Taking files out beside The Sleuth Kit's ``tsk_recover``, and what the worker process of parsers costs.

All cold: image and raw disk are put out of the page cache before each run, and what was written is synced within it.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.measure import evict, interleave, run_timed, say
from benchmarks.mounts import imagefs_mount, sequential_rate
from benchmarks.rows import Figure, Row
from benchmarks.trees import wide_volume
from benchmarks.workshop import Workshop
from fixtures.sparse import make_sparse
from fixtures.tools import run_tool
from fixtures.wide import BUILDERS

_TREE, _FILE = 1_000_000_000, 1_000_000_000
_MEAN = 31_000
_SEED = 5

_WALK = """
import sys, time, imagefs
from imagefs.browse.apart import open_apart
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
opener = {"apart": open_apart, "direct": open_filesystem}[sys.argv[2]]
with imagefs.open(sys.argv[1]) as disk:
    begin = time.perf_counter()
    fs = opener(disk.volume_reader(disk.volume(0)))
    total = sum(entry.size + entry.mode + (entry.mtime_ns or 0) for entry in walk(fs, fs.root(), onerror=print))
    print(time.perf_counter() - begin)
"""


def taking(shop: Workshop) -> Iterator[Row]:
    """``get`` of a tree and of a file, and a walk with and without the worker."""
    tree, file = _volume(shop.cache, "tree"), _volume(shop.cache, "file")
    yield _tree(shop, tree)
    yield _file(shop, file)
    for kind in BUILDERS:
        volume = wide_volume(shop.cache, kind)
        image = _captured(shop, volume)

        def walk(way: str, image: Path = image) -> float:
            evict(image)
            return float(run_timed([sys.executable, "-c", _WALK, image, way]).output)

        values = interleave(shop.runs, apart=lambda: walk("apart"), direct=lambda: walk("direct"))
        what = f"walk of 60,000 entries of {kind} through the worker"
        mine, theirs = tuple(values["apart"]), tuple(values["direct"])
        yield Figure("get", what, "the same parser called directly", "s", mine, theirs, 1.2)


def _tree(shop: Workshop, volume: Path) -> Row:
    image = _captured(shop, volume)

    def get() -> float:
        return _into(shop.work, image, [ours.program(), "get", image, "/p0"])

    def recover() -> float:
        return _into(shop.work, volume, ["tsk_recover", "-a", volume])

    values = interleave(shop.runs, get=get, recover=recover)
    mine, theirs = tuple(values["get"]), tuple(values["recover"])
    name = "get of a tree of small files, 1 GB"
    return Figure("get", name, "tsk_recover -a on the raw disk", "s", mine, theirs, 1.0)


def _file(shop: Workshop, volume: Path) -> Row:
    """The same bytes as a file in the image and in a tree: as MB/s, beside ``disk.raw`` read in order."""
    image = _captured(shop, volume)

    def get() -> float:
        return _FILE / 1e6 / _into(shop.work, image, [ours.program(), "get", image, "/p0/one.bin"])

    def raw() -> float:
        evict(image)
        with imagefs_mount([image], size=volume.stat().st_size, nobody=False, cold=True) as served:
            return sequential_rate(served, share=_FILE / volume.stat().st_size)

    values = interleave(shop.runs, get=get, raw=raw)
    mine, theirs = tuple(values["get"]), tuple(values["raw"])
    name = "get of one file, 1 GB"
    return Figure("get", name, "disk.raw read in order", "MB/s", mine, theirs, 0.8, at_least=True)


def _into(work: Path, source: Path, words: list[str | Path]) -> float:
    """The seconds of a command that writes to a new folder, named last, the sync of it included. What it wrote stays
    until all is done: ext4 looks for an inode that was not deleted in the last minutes, which takes up to a
    millisecond for each new file, and now this side and now the other."""
    evict(source)
    room = tempfile.mkdtemp(dir=work)
    return run_timed(["sh", "-c", '"$@" && sync -f "$0"', room, *words, room]).seconds


def _captured(shop: Workshop, volume: Path) -> Path:
    folder = ours.new_set(shop.work / f"{volume.name}-set")
    ours.capture(volume, folder, "--kind", "full")
    (image,) = ours.images(folder)
    return image


def _volume(cache: Path, what: str) -> Path:
    """An ext4 volume of 1 GB of small files, or of one file; built once and kept in ``cache``."""
    path = cache / f"taking-{what}.ext4"
    if path.exists():
        return path
    say(f"building {path.name}")
    room = cache / f"taking-{what}"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    (_many_files if what == "tree" else _one_file)(room, random.Random(_SEED))
    part = path.with_suffix(".part")
    make_sparse(part, 1_400 << 20)
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", room, part], timeout=900)
    shutil.rmtree(room)
    part.replace(path)
    return path


def _many_files(room: Path, dice: random.Random) -> None:
    made = count = 0
    while made < _TREE:
        folder = room / f"folder {count // 50:04d}"
        folder.mkdir(exist_ok=True)
        size = 1 + int(dice.expovariate(1 / _MEAN))
        (folder / f"file {count:06d}.dat").write_bytes(_content(dice, size))
        made, count = made + size, count + 1


def _one_file(room: Path, dice: random.Random) -> None:
    with open(room / "one.bin", "wb") as out:
        for _ in range(_FILE // 1_000_000):
            out.write(_content(dice, 1_000_000))


def _content(dice: random.Random, size: int) -> bytes:
    """Half of it noise and half of it that again, so that it packs to about a half as program files do."""
    half = dice.randbytes(-(-min(size, 40_000) // 2))
    return (
        (half * (size // len(half) + 1))[:size]
        if size <= 40_000
        else b"".join(_content(dice, min(40_000, size - at)) for at in range(0, size, 40_000))
    )
