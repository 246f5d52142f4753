"""The past: differences of two images beside two full walks and ``diff -r`` of two mounts, and a history over many.

The disk of 60,000 entries that ``trees`` has, changed by 50 files between two images.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.measure import evict, interleave, run_timed, say
from benchmarks.rows import Figure, LeftOut, Row
from benchmarks.trees import ENTRIES, wide_volume
from benchmarks.workshop import Workshop
from fixtures.tools import run_tool
from fixtures.wide import BUILDERS

CHANGES = 50
IMAGES = 100
_MOST_SECONDS = 2.0

_WALKS = """
import sys, imagefs
from imagefs.browse.walk import walk
for which in sys.argv[1:]:
    with imagefs.open(which) as disk:
        fs = disk.filesystem(0)
        print(sum(1 for _ in walk(fs, fs.root(), onerror=print)))
"""


def past(shop: Workshop) -> Iterator[Row]:
    """Takes root: the volumes are changed where they are mounted."""
    if os.geteuid() != 0:
        yield LeftOut("past", "differences and history", "changing the volumes takes root")
        return
    for kind in BUILDERS:
        yield from _of(shop, kind)


def _of(shop: Workshop, kind: str) -> Iterator[Row]:
    images = IMAGES if shop.shape.name != "quick" else 10
    folder, path = _set(shop, kind, images)
    after = shop.work / f"after.{kind}"
    shutil.copyfile(wide_volume(shop.cache, kind), after)
    _change(after, kind, 1)
    yield from _diffs(shop, kind, folder, wide_volume(shop.cache, kind), after)
    after.unlink()
    yield _history(shop, kind, folder, path)


def _set(shop: Workshop, kind: str, images: int) -> tuple[Path, str]:
    """The set of so many images and a path that was changed in the last one; built once and kept in the cache."""
    folder = shop.cache / f"past-{images}-{kind}"
    told = folder.with_suffix(".path")
    if not told.exists():
        say(f"{images} images of {kind}")
        volume = shop.work / f"past.{kind}"
        shutil.copyfile(wide_volume(shop.cache, kind), volume)
        ours.capture(volume, ours.new_set(folder), "--kind", "full")
        for number in range(1, images):
            path = _change(volume, kind, number)
            ours.capture(volume, folder)
        volume.unlink()
        told.write_text(path)
    return folder, told.read_text()


def _diffs(shop: Workshop, kind: str, folder: Path, before: Path, after: Path) -> Iterator[Row]:
    """Of the two oldest images, and of the same disks."""
    first, second = ours.images(folder)[:2]

    def diff() -> float:
        evict(first, second)
        return shop.timed("diff", run_timed([ours.program(), "diff", first, second]))

    def walks() -> float:
        evict(first, second)
        return run_timed([sys.executable, "-c", _WALKS, first, second]).seconds

    def mounts() -> float:
        evict(before, after)
        with _mounted(before, kind, "ro") as one, _mounted(after, kind, "ro") as other:
            words = ["diff", "-rq", "--no-dereference", str(one), str(other)]
            return run_timed(["sh", "-c", '"$@"; test $? -le 1', "sh", *words]).seconds  # 1: they differ

    values = interleave(shop.runs, diff=diff, walks=walks, mounts=mounts)
    mine, what = tuple(values["diff"]), f"diff, {CHANGES} changes among {ENTRIES:,} entries of {kind}"
    yield Figure("past", what, "two full walks", "s", mine, tuple(values["walks"]), 0.2)
    yield Figure(
        "past", what, "diff -r of two mounts of the raw disks", "s", mine, tuple(values["mounts"]), 1.0
    )


def _history(shop: Workshop, kind: str, folder: Path, path: str) -> Row:
    images = len(ours.images(folder))
    run_timed([ours.program(), "history", folder, path])  # what may be remembered of the set is now

    def history() -> float:
        return shop.timed("history", run_timed([ours.program(), "history", folder, path]))

    mine = tuple(interleave(shop.runs, history=history)["history"])
    what = f"history of a file over {images} images of {kind}"
    return Figure("past", what, "2 seconds", "s", mine, (_MOST_SECONDS,), 1.0)


def _change(volume: Path, kind: str, seed: int) -> str:
    """Change 50 files; a path that was changed."""
    dice = random.Random(seed)
    with _mounted(volume, kind, "rw") as room:
        files = sorted(path for path in room.rglob("*.txt") if path.is_file() and not path.is_symlink())
        chosen = dice.sample(files, CHANGES)
        for path in chosen[:25]:
            path.write_bytes(dice.randbytes(2_000))
        for path in chosen[25:35]:
            path.unlink()
        for path in chosen[35:45]:
            path.with_name(f"new {seed} {path.name}").write_bytes(dice.randbytes(3_000))
        for path in chosen[45:]:
            path.rename(path.with_name(f"renamed {seed} {path.name}"))
        return f"/p0/{chosen[0].relative_to(room)}"


@contextlib.contextmanager
def _mounted(volume: Path, kind: str, option: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as room:
        command = (
            ["ntfs-3g", "-o", f"noatime,{option}"]
            if kind == "ntfs"
            else ["mount", "-o", f"loop,noatime,{option}"]
        )
        run_tool([*command, volume, room], timeout=300)
        try:
            yield Path(room)
        finally:
            run_tool(["umount", room], timeout=300)
