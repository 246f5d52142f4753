"""Low priority is really set; a rate is held by a clock of our own, whatever the threads do."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagefs.block import nice
from imagefs.block.nice import RateLimit


class Clock:
    """Time that passes only while somebody sleeps. Threads that sleep at once share one stretch."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.naps.append(seconds)
            self.now += seconds


def limit(rate: float) -> tuple[RateLimit, Clock]:
    clock = Clock()
    return RateLimit(rate, clock=clock, sleep=clock.sleep), clock


# -- the rate -------------------------------------------------------------------------------------


def test_a_quarter_of_a_second_passes_at_once_and_the_rest_waits() -> None:
    rate, clock = limit(1000)
    rate.take(250)
    assert clock.naps == []
    rate.take(100)
    assert clock.now == pytest.approx(1000.1)


def test_the_average_is_the_rate() -> None:
    rate, clock = limit(1 << 20)
    for _ in range(1000):
        rate.take(1 << 16)
    assert clock.now - 1000 == pytest.approx(1000 / 16 - 0.25)


def test_idle_time_is_saved_up_to_a_quarter_of_a_second() -> None:
    rate, clock = limit(1000)
    rate.take(250)
    clock.now += 3600
    rate.take(250)
    assert clock.naps == []
    rate.take(1)
    assert sum(clock.naps) == pytest.approx(0.001)


def test_more_than_a_burst_at_once_waits_for_its_surplus_in_short_naps() -> None:
    rate, clock = limit(1000)
    rate.take(5250)
    assert sum(clock.naps) == pytest.approx(5)
    assert max(clock.naps) <= 0.25


def test_nothing_is_free() -> None:
    rate, clock = limit(1000)
    rate.take(250)
    for _ in range(100):
        rate.take(0)
    assert clock.naps == []


def test_threads_share_one_rate() -> None:
    rate, clock = limit(1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: rate.take(25), range(400)))
    # Sleepers overlap on a real clock; on this one their naps add up, so it can only be later.
    assert clock.now - 1000 >= 10 - 0.25 - 1e-6


def test_a_stopped_limit_lets_sleepers_go() -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        rate.stop()

    rate = RateLimit(1, clock=clock, sleep=sleep)
    rate.take(1 << 40)
    rate.take(1 << 40)
    assert len(clock.naps) == 1


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(rate)


def test_a_negative_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        RateLimit(1).take(-1)


# -- the priority ---------------------------------------------------------------------------------

_REPORT = """
import ctypes, os, threading
from imagefs.block.nice import be_nice
be_nice()
def tell():
    get = ctypes.CDLL(None).syscall(ctypes.c_long(GET), 1, 0)
    print(os.nice(0), get >> 13)
tell()
worker = threading.Thread(target=tell); worker.start(); worker.join()
"""


@pytest.mark.skipif(
    os.uname().machine not in nice._IOPRIO_SET or struct.calcsize("P") != 8, reason="another machine"
)
def test_the_process_and_its_later_threads_are_nice() -> None:
    """In a process of its own: there is no way back from nice for those who are not root."""
    get = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
    text = _REPORT.replace("GET", str(get))
    said = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=600
    )
    assert said.stdout.splitlines() == ["19 3", "19 3"]


def test_an_unknown_machine_or_a_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_step: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    monkeypatch.setattr(nice, "_IOPRIO_SET", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("no call on an unknown machine"))
    nice.be_nice()
