"""What the figures share: the disks, the images made of them, and what was seen while making them.

Everything is made when first asked for, in one work folder that is removed at the end.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import disk as disks
from benchmarks import ours, peers
from benchmarks.measure import Run, say

CHAIN_LENGTH = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """How the image at hand was made: chunk size in bytes and zstd level, both imagefs's defaults."""

    chunk: int
    level: int


class Workshop:
    """Disks and images for one run of the benchmarks; ``peaks`` collects our peak memory in bytes by verb."""

    def __init__(self, cache: Path, shape: disks.Shape, *, runs: int) -> None:
        self.shape = shape
        self.runs = runs
        self.cache = cache
        self.work = cache / f"work-{shape.name}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.peaks: dict[str, int] = {}

    def close(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def note_peak(self, verb: str, peak: int) -> None:
        self.peaks[verb] = max(peak, self.peaks.get(verb, 0))

    def timed(self, verb: str, run: Run) -> float:
        """The seconds of one of our runs, its memory remembered."""
        self.note_peak(verb, run.peak)
        return run.seconds

    @functools.cached_property
    def disk(self) -> Path:
        return disks.build_disk(self.cache, self.shape)

    @functools.cached_property
    def linux(self) -> Path:
        """The ext4 partition alone, as a file."""
        return disks.cut_linux(self.disk, self.shape)

    @functools.cached_property
    def changed(self) -> Path:
        return disks.build_changed(self.disk)

    @functools.cached_property
    def full(self) -> Path:
        """The full image of the disk, at the defaults."""
        folder = ours.new_set(self.work / "full")
        self.timed("capture", ours.capture(self.disk, folder, "--kind", "full"))
        return ours.images(folder)[-1]

    @functools.cached_property
    def settings(self) -> Settings:
        facts = ours.facts(self.full)
        return Settings(facts["chunk_size"], facts["level"])

    @functools.cached_property
    def qcow2(self) -> Path:
        target = self.work / "disk.qcow2"
        peers.qemu_compress(self.disk, target)
        return target

    @functools.cached_property
    def ewf(self) -> Path:
        """An E01 as ewfacquire makes it."""
        return peers.ewf(self.disk, self.work / "disk")

    @functools.cached_property
    def borg(self) -> Path:
        repository = self.work / "mounted.borg"
        peers.borg(self.disk, repository)
        return repository

    @functools.cached_property
    def casync(self) -> Path:
        return peers.casync(self.disk, self.work / "casync")

    @functools.cached_property
    def restic(self) -> Path:
        repository = self.work / "restic"
        peers.restic_backup(self.disk, repository)
        return repository

    @functools.cached_property
    def chain(self) -> list[Path]:
        """The full image and 30 incrementals on it, each with a few changed blocks of p2."""
        say(f"building a chain of {CHAIN_LENGTH} incrementals")
        folder = ours.new_set(self.work / "chain", self.full)
        disk = self.work / "chain.raw"
        disks.copy_disk(self.disk, disk)
        blocks = self.used_in_linux(disks.BLOCK)
        for step in range(CHAIN_LENGTH):
            disks.change_step(disk, blocks, step)
            self.timed("incremental capture", ours.capture(disk, folder, "--kind", "incr"))
        disk.unlink()
        return ours.images(folder)

    @functools.cached_property
    def chunks(self) -> list[int]:
        """Offsets of the chunks of the disk that are not all zeros."""
        return _plain(disks.used_units(self.disk, self.settings.chunk))

    @functools.cached_property
    def pages(self) -> npt.NDArray[np.int64]:
        """Offsets of the pages of p2 that hold something: where random reads go."""
        return self.used_in_linux(disks.PAGE)

    def used_in_linux(self, unit: int) -> npt.NDArray[np.int64]:
        part = disks.linux_part(self.shape)
        return disks.used_units(self.disk, unit, start=part.start, stop=part.start + part.length)


def _plain(values: Iterable[np.int64]) -> list[int]:
    return [int(value) for value in values]
