"""An 8 TiB disk with 4 million stored chunks and a chain of 1,000 incrementals on it, and what it takes to
open, list and mount them: each time by a new process, with a cache folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Run, peak_of, run_timed, say
from benchmarks.ours import program
from fixtures.giant import Giant, build_full, build_incrementals
from imagefs.store import LocalStore

LAYERS = 1000
GIANT = Giant()
QUICK_GIANT = Giant(disk_size=8 << 30, chunk_size=64 << 10, stored=4096, run=16)
_OPEN = """
import sys, time, imagefs.cli.wiring, imagefs.ops.diskimage
begin = time.perf_counter()
with imagefs.open(sys.argv[1]) as disk:
    disk.read_at(0, 4096)
    print(time.perf_counter() - begin)
"""


@dataclass(frozen=True, slots=True)
class GiantSet:
    """The set, its full image in a folder of its own too, and a folder that is the user's home for one run."""

    folder: Path
    full: Path
    home: Path

    @property
    def env(self) -> dict[str, str]:
        home = str(self.home)
        return {**os.environ, "HOME": home, "XDG_CACHE_HOME": home, "XDG_STATE_HOME": home}

    def forget(self) -> None:
        """The next command is the first one of a new user."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()

    def run(self, *words: str | Path) -> Run:
        return run_timed([program(), *words], env=self.env)

    def open_seconds(self, image: Path) -> float:
        """How long ``imagefs.open`` takes in a Python that has everything imported."""
        return float(run_timed([sys.executable, "-c", _OPEN, image], env=self.env).output)

    @contextlib.contextmanager
    def mounted(self, image: Path) -> Iterator[tuple[float, int]]:
        """(seconds of the command, peak memory in bytes of the process that serves)."""
        where = self.home / "mount"
        ran = self.run("mount", image, where, "--json")
        try:
            yield ran.seconds, peak_of(json.loads(ran.output)["pid"])
        finally:
            self.run("umount", where)


def giant_set(cache: Path, home: Path, *, quick: bool) -> GiantSet:
    """Built once (a minute, a gigabyte) and kept in ``cache``."""
    folder, giant = cache / ("giant-quick" if quick else "giant"), QUICK_GIANT if quick else GIANT
    store = LocalStore(folder, suffix=".imagefs")
    if len(list(store.list())) != LAYERS + 1:
        say("building the giant set")
        shutil.rmtree(folder, ignore_errors=True)
        store.make()
        build_full(store, giant)
        build_incrementals(store, giant, LAYERS, runs=50 if quick else 500)
    home.mkdir(exist_ok=True)
    name, alone = next(iter(store.list())).name, folder.with_name(f"{folder.name}-alone")
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir()
    os.link(folder / name, alone / name)
    return GiantSet(folder, alone / name, home)
