"""The rule that tells growth from a level: it must be able to fail."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import pytest

from tests.soak.watch import MIB, Sample, Watch, growth

COUNT = 120


def run_of(
    rss: float, *, grows: float = 0, files: float = 10, leaks: float = 0, threads: float = 0
) -> list[Sample]:
    """Samples of a process that warms up for a fifth of the time and is noisy; leaks are for the whole time."""
    dice, found = random.Random(7), []
    for at in range(COUNT):
        warm = min(1.0, at / (COUNT / 5))
        bytes_ = (rss * warm + grows * at / COUNT + dice.uniform(-3, 3)) * MIB
        open_ = files + leaks * at / COUNT + dice.choice((0, 0, 1))
        found.append(Sample(int(bytes_), int(open_), 5 + int(threads * at / COUNT)))
    return found


def test_a_level_is_none() -> None:
    assert growth(run_of(150)) == []


@pytest.mark.parametrize("grows", [60, 100, 1000])
def test_memory_that_leaks_is_told(grows: int) -> None:
    assert [word for word in growth(run_of(100, grows=grows)) if word.startswith("memory")]


@pytest.mark.parametrize("leaks", [6, 50])
def test_files_that_leak_are_told(leaks: int) -> None:
    assert [word for word in growth(run_of(100, leaks=leaks)) if word.startswith("files")]


def test_threads_that_leak_are_told() -> None:
    assert [word for word in growth(run_of(100, threads=6)) if word.startswith("threads")]


def test_too_few_samples_are_no_proof() -> None:
    assert growth(run_of(100)[:14])


LEAKY = """
import os, sys, threading
kept = []
for at, _ in enumerate(sys.stdin):
    kept.append((bytearray(os.urandom(2 << 20)), os.dup(0)))
    if at % 10 == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
os._exit(0)
"""


def test_it_watches_a_real_process() -> None:
    """One that leaks a little of everything, each leak seen before the next, however slow the machine is."""
    with subprocess.Popen([sys.executable, "-c", LEAKY], stdin=subprocess.PIPE, text=True) as leaky:
        assert leaky.stdin is not None
        with Watch(leaky.pid, 0.01) as watch:
            for _ in range(60):
                leaky.stdin.write("more\n")
                leaky.stdin.flush()
                seen = len(watch.samples)
                while len(watch.samples) < seen + 2:
                    threading.Event().wait(0.005)
        leaky.stdin.close()
    assert {word.split()[0] for word in growth(watch.samples)} == {"memory", "files", "threads"}
