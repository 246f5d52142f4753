"""Watching a process from /proc while it works, and telling growth from a level that was reached."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
#: Growth from the second third to the last that is still a level: a share of it, and so many bytes.
SHARE, SLACK = 0.05, 4 * MIB


@dataclass(frozen=True)
class Sample:
    """Resident bytes, open descriptors and threads of a process at one moment."""

    rss: int
    files: int
    threads: int


def sample(pid: int) -> Sample:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(int(status["VmRSS"].split()[0]) * 1024, files, int(status["Threads"]))


def peak(pid: int) -> int:
    """The most resident bytes the process ever had."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


class Watch:
    """Samples of process ``pid``, one every ``interval`` seconds, as long as the block lasts."""

    def __init__(self, pid: int, interval: float) -> None:
        self.samples: list[Sample] = []
        self._pid, self._interval = pid, interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._end.wait(self._interval):
            self.samples.append(sample(self._pid))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def growth(samples: Sequence[Sample]) -> list[str]:
    """One sentence for everything that still grew in the last third of the time.

    The first third is for warming up: caches fill, threads and files come when they are first needed.
    """
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]
    if third < 5:
        return [f"{len(samples)} samples are too few to tell"]
    found = []
    before, after = (statistics.median(each.rss for each in part) for part in (second, last))
    if after > before * (1 + SHARE) + SLACK:
        found.append(f"memory grew from {before / MIB:.1f} to {after / MIB:.1f} MiB")
    for name in ("files", "threads"):
        low, high = (statistics.median(getattr(each, name) for each in part) for part in (second, last))
        most = max(getattr(each, name) for each in second)
        if high > low and max(getattr(each, name) for each in last) > most:
            found.append(f"{name} grew from {low:.0f} to {high:.0f}")
    return found
