"""Estimates: what is known is right, what is guessed is near, and a set that is too small is told before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.block.devices import DeviceReader, open_source
from imagefs.errors import StoreFull
from imagefs.interfaces import NoProgress
from imagefs.ops.capture import capture
from imagefs.ops.estimate import Estimate, estimate_text
from imagefs.ops.plan import CaptureOptions
from imagefs.store.memory import MemoryStore
from tests.support.images import noise

MIB = 2**20


@pytest.fixture
def source(tmp_path: Path) -> Iterator[DeviceReader]:
    """96 MiB of noise, 64 MiB of text that packs well, a hole of 1 GiB, and a MiB behind it."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as out:
        for number in range(24):
            out.write(noise(4 * MIB, number + 1))
        out.write((b"all work and no play makes Jack a dull boy; " * 1_600_000)[: 64 * MIB])
        out.seek(1024 * MIB, 1)
        out.write(noise(MIB, 99))
    opened = open_source(str(path))
    yield opened
    opened.close()


def test_a_full_image(source: DeviceReader) -> None:
    made = capture(source, MemoryStore(), CaptureOptions(estimate=True, threads=2))
    assert made.estimate is not None
    assert made.estimate.read_bytes == 161 * MIB
    assert 0.7 < made.estimate.stored_bytes / made.stored_bytes < 1.4
    assert made.estimate.seconds > 0


def test_a_child_of_which_little_changed(source: DeviceReader) -> None:
    store = MemoryStore()
    capture(source, store, CaptureOptions(threads=2))
    made = capture(source, store, CaptureOptions(estimate=True, threads=2))
    assert made.estimate is not None
    assert made.estimate.stored_bytes == 0


def test_a_small_disk_needs_no_guess(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(noise(3 * MIB))
    opened = open_source(str(path))
    made = capture(opened, MemoryStore(), CaptureOptions(estimate=True))
    opened.close()
    assert made.estimate is None


class Small(MemoryStore):
    free = 0

    def free_bytes(self) -> int | None:
        return self.free


def test_what_does_not_fit_is_refused_before_it_starts(source: DeviceReader) -> None:
    store = Small()
    store.free = 30 * MIB
    with pytest.raises(StoreFull, match="will take about") as caught:
        capture(source, store, CaptureOptions(estimate=True))
    assert "--no-estimate" in caught.value.hint
    assert store.objects == store.unfinished == {}
    store.free = 88 * MIB
    heard: list[str] = []

    class Hears(NoProgress):
        def note(self, message: str, /) -> None:
            heard.append(message)

    capture(source, store, CaptureOptions(estimate=True, threads=2), Hears())
    assert re.fullmatch(r"about 161 MiB to read, \d+ MiB to store, less than a minute", heard[0])
    assert "will take about" in heard[1]


def test_a_limit_on_the_rate_is_reckoned_with(source: DeviceReader) -> None:
    """At a mebibyte a second 161 of them take 161 seconds at least; nothing is read at that rate here."""
    options = CaptureOptions(estimate=True, threads=2, rate=MIB)
    made = capture(source, MemoryStore(), options)
    assert made.estimate is not None
    assert made.estimate.seconds >= 161
    assert estimate_text(made.estimate).endswith("3 min")
    assert estimate_text(Estimate(3 * 2**40, 2**40, 100_000)) == (
        "about 3072.0 GiB to read, 1024.0 GiB to store, 27 h 47 min"
    )
