"""The benchmark disk: a GPT disk of program files, a changed version of it, and small changes in steps.

Everything is chosen by rule and seed, so that two machines with the same files get the same disk.
Knows nothing of images or peers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import say
from fixtures.build import build_gpt_disk
from fixtures.content import pick_files, stage_real
from fixtures.layout import MIB, Part, gpt_layout
from fixtures.sparse import cut_out, data_ranges
from fixtures.tools import run_tool

PAGE = 4096
BLOCK = 64 << 10
SEED = 20_261_117

#: Changed regions are this long and aligned, so that "1 % of the chunks" means it for chunks up to here.
REGION = 256 << 10

_SCAN = 4 << 20
_VERSION = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a disk and the bytes of program files that each of its volumes gets."""

    name: str
    size: int
    esp: int
    linux: int
    data: int


FULL = Shape("full", 8192 * MIB, esp=30 * MIB, linux=2400 * MIB, data=550 * MIB)
QUICK = Shape("quick", 768 * MIB, esp=10 * MIB, linux=190 * MIB, data=40 * MIB)

#: Where program files come from; the second list only on a machine whose first does not hold enough.
ROOTS = ("/usr/bin", "/usr/lib", "/usr/libexec", "/usr/local", "/usr/sbin", "/usr/share")
MORE_ROOTS = ("/opt", "/var/lib", "/home")

#: Packed files are no program files: nothing makes them smaller.
PACKED = (".bz2", ".deb", ".gz", ".jar", ".tgz", ".whl", ".xz", ".zip", ".zst")


def build_disk(folder: Path, shape: Shape) -> Path:
    """The disk, built once and kept in ``folder``."""
    disk, note = folder / f"{shape.name}.raw", folder / f"{shape.name}.json"
    facts = {"version": _VERSION, "size": shape.size}
    if disk.exists() and note.exists() and json.loads(note.read_text()) == facts:
        return disk
    say(f"building the benchmark disk, {shape.size // MIB} MiB")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        stages = _stage(Path(room), shape)
        made = Path(room, "disk.raw")
        build_gpt_disk(made, size=shape.size, stages=stages)
        made.replace(disk)
    note.write_text(json.dumps(facts))
    return disk


def _stage(room: Path, shape: Shape) -> list[Path]:
    """Program files for the three volumes: small and large ones as they come, larger ones for NTFS."""
    stages = [room / name for name in ("esp", "linux", "data")]
    for stage in stages:
        stage.mkdir()
    shares = _shares(shape.linux)
    for root, budget in shares.items():
        picked = _program_files([root], budget)
        stage_real(stages[1] / root.relative_to("/"), picked, root=root, flat=False)
    for stage, budget, smallest in ((stages[0], shape.esp, MIB // 2), (stages[2], shape.data, MIB)):
        picked = _program_files(list(shares), budget, smallest=smallest)
        stage_real(stage, picked, root=Path("/"), flat=True)
    return stages


def _shares(budget: int) -> dict[Path, int]:
    """The budget split over the roots by what they hold, so that none of them fills it alone."""
    held: dict[Path, int] = {}
    for name in (*ROOTS, *MORE_ROOTS):
        enough = sum(held.values()) >= budget
        if Path(name).is_dir() and not (enough and name in MORE_ROOTS):
            held[Path(name)] = sum(path.stat().st_size for path in _program_files([Path(name)], 1 << 62))
    total = max(1, sum(held.values()))
    return {root: min(size, size * budget // total) for root, size in held.items() if size}


def _program_files(roots: list[Path], budget: int, *, smallest: int = 1) -> Iterator[Path]:
    return pick_files(roots, budget=budget, smallest=smallest, without=PACKED)


def linux_part(shape: Shape) -> Part:
    """p2, the ext4 volume that random reads go to."""
    return gpt_layout(shape.size)[1]


def cut_linux(disk: Path, shape: Shape) -> Path:
    """p2 as a file of its own, with the same holes."""
    part, target = linux_part(shape), disk.with_suffix(".p2")
    if not target.exists() or target.stat().st_mtime < disk.stat().st_mtime:
        say("cutting out its ext4 partition")
        cut_out(disk, target, offset=part.start, length=part.length)
    return target


def used_units(disk: Path, unit: int, *, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
    """Offsets of all units (of a power of two) of the disk that hold anything but zeros, in order."""
    found: list[npt.NDArray[np.int64]] = []
    with disk.open("rb", buffering=0) as stream:
        for offset in _scan(stream.fileno(), start, stop if stop is not None else disk.stat().st_size):
            data = os.pread(stream.fileno(), _SCAN, offset)
            data += bytes(-len(data) % unit)
            words = np.frombuffer(data, np.uint64).reshape(-1, unit // 8)
            found.append(offset + unit * np.flatnonzero(words.any(axis=1)))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _scan(descriptor: int, start: int, stop: int) -> Iterator[int]:
    """Aligned offsets of all scan blocks that are not a hole from end to end."""
    last = -1
    for first, end in data_ranges(descriptor, start, stop):
        for offset in range(max(first // _SCAN * _SCAN, last), end, _SCAN):
            yield offset
            last = offset + _SCAN


def build_changed(disk: Path, *, share: float = 0.01) -> Path:
    """A copy of the disk in which ``share`` of the used regions has new content, spread over all of it."""
    changed = disk.with_suffix(".changed")
    if changed.exists() and changed.stat().st_mtime >= disk.stat().st_mtime:
        return changed
    say("building its changed version")
    room = changed.with_suffix(".part")
    copy_disk(disk, room)
    regions = used_units(disk, REGION)
    count = max(1, round(len(regions) * share))
    picked = random.Random(SEED).sample(range(len(regions)), count)
    rewrite(room, [int(regions[number]) for number in picked], REGION)
    room.replace(changed)
    return changed


def change_step(disk: Path, blocks: npt.NDArray[np.int64], step: int, *, count: int = 24) -> None:
    """Rewrite ``count`` of the given 64 KiB blocks in place; each step takes others."""
    dice = random.Random(SEED + step)
    rewrite(disk, [int(blocks[dice.randrange(len(blocks))]) for _ in range(count)], BLOCK)


def rewrite(disk: Path, offsets: list[int], length: int) -> None:
    """New content that compresses like the old: the bytes of each stretch in reverse."""
    with disk.open("r+b") as stream:
        for offset in offsets:
            data = os.pread(stream.fileno(), length, offset)
            os.pwrite(stream.fileno(), data[::-1], offset)


def copy_disk(source: Path, target: Path) -> None:
    """A copy with the same holes."""
    target.unlink(missing_ok=True)
    run_tool(["cp", "--sparse=always", source, target], timeout=1800)


def free_space(folder: Path) -> int:
    return shutil.disk_usage(folder).free
