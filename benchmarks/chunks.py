"""``python -m benchmarks.chunks``: image size, capture time and cold read time by chunk size and level.

The tables that imagefs's defaults were chosen from; pasted into FORMAT.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagefs
from benchmarks import ours
from benchmarks.disk import FULL, PAGE, QUICK, build_disk, linux_part, used_units
from benchmarks.measure import BenchError, median, say, warm
from benchmarks.mounts import choose_offsets
from benchmarks.run import ROOT
from fixtures.tools import ToolError

CHUNKS = [32, 64, 128, 256, 512, 1024]
LEVELS = [1, 2, 3, 4, 5, 6, 7, 8, 9]
_READS = 2_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One choice of chunk size (KiB) and level: image size in MB, capture seconds, microseconds a read."""

    chunk: int
    level: int
    size: float
    capture: float
    read: float


def measure(disk: Path, room: Path, offsets: Sequence[int], *, chunk: int, level: int, runs: int) -> Cell:
    """Capture ``runs`` times, then read 4 KiB at every offset of the image, opened anew each time."""
    options = ["--kind", "full", "--chunk-size", str(chunk << 10), "--compression", str(level)]
    seconds = [ours.capture(disk, ours.new_set(room), *options).seconds for _ in range(runs)]
    (image,) = ours.images(room)
    warm(image)
    reads = [_read_time(image, offsets) for _ in range(runs)]
    return Cell(chunk, level, image.stat().st_size / 1e6, median(seconds), median(reads) * 1e6)


def _read_time(image: Path, offsets: Sequence[int]) -> float:
    """Seconds a read, one after the other, no chunk decoded beforehand."""
    with imagefs.open(image) as opened:
        begin = time.perf_counter()
        for offset in offsets:
            opened.read_at(offset, PAGE)
        return (time.perf_counter() - begin) / len(offsets)


def tables(cells: Sequence[Cell]) -> str:
    """Three tables, chunk sizes down and levels across."""
    parts = [
        ("Image size, MB", "size", "{:,.0f}"),
        ("Capture, seconds", "capture", "{:.1f}"),
        ("Cold 4 KiB read, microseconds", "read", "{:.0f}"),
    ]
    return "\n".join(_table(cells, *part) for part in parts)


def _table(cells: Sequence[Cell], title: str, field: str, form: str) -> str:
    levels, chunks = (sorted({getattr(cell, name) for cell in cells}) for name in ("level", "chunk"))
    values = {(cell.chunk, cell.level): form.format(getattr(cell, field)) for cell in cells}
    head = f"| {title} | {' | '.join(f'level {level}' for level in levels)} |"
    rows = [f"| {chunk} KiB | {' | '.join(values[chunk, level] for level in levels)} |" for chunk in chunks]
    return "\n".join([head, "|---" * (len(levels) + 1) + "|", *rows]) + "\n"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunks", description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS, metavar="KIB")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, metavar="LEVEL")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small disk")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "bench", help="where the disks are")
    asked = parser.parse_args(words)
    try:
        cells = measure_all(asked.cache, asked.chunks, asked.levels, quick=asked.quick, runs=asked.runs)
    except (BenchError, ToolError, OSError) as error:
        say(str(error))
        return 1
    print(tables(cells))
    return 0


def measure_all(
    cache: Path, chunks: Sequence[int], levels: Sequence[int], *, quick: bool, runs: int
) -> list[Cell]:
    """Every chunk size (KiB) with every level, on the benchmark disk."""
    shape = QUICK if quick else FULL
    disk, part, room = build_disk(cache, shape), linux_part(shape), cache / "chunks"
    pages = used_units(disk, PAGE, start=part.start, stop=part.start + part.length)
    offsets = choose_offsets(pages.tolist(), _READS, seed=7)
    warm(disk)
    cells = []
    for chunk in chunks:
        for level in levels:
            cells.append(measure(disk, room, offsets, chunk=chunk, level=level, runs=runs))
            say(str(cells[-1]))
    ours.remove_set(room)
    return cells


if __name__ == "__main__":
    sys.exit(main())
