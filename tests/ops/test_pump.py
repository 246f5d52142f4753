"""The pump: order kept, errors in their place, closed early without leftovers, bounded."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.ops.pump import default_threads, ordered_map, read_ahead


class Broken(Exception):
    pass


def pump_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("pump", "read-ahead"))]


@given(st.lists(st.integers(), max_size=60), st.integers(1, 5), st.none() | st.integers(1, 9))
@settings(max_examples=40)
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int, depth: int | None) -> None:
    assert list(ordered_map(lambda n: n * 3, items, threads=threads, depth=depth)) == [n * 3 for n in items]


def test_order_is_kept_when_later_work_is_done_first() -> None:
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(300)
        if number == 1:
            second_done.set()
        return number

    assert list(ordered_map(work, range(6), threads=2)) == list(range(6))


@pytest.mark.parametrize("at", [0, 1, 7, 19])
def test_an_error_is_raised_in_its_place(at: int) -> None:
    def work(number: int) -> int:
        if number == at:
            raise Broken(str(number))
        return number

    found = []
    with pytest.raises(Broken, match=str(at)):
        for number in ordered_map(work, range(20), threads=3):
            found.append(number)  # noqa: PERF402 what came before the error is the point
    assert found == list(range(at))
    assert pump_threads() == []


def test_an_error_of_the_items_themselves() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise Broken

    with pytest.raises(Broken):
        list(ordered_map(lambda n: n, items(), threads=2))
    assert pump_threads() == []


def test_at_most_depth_items_are_under_way() -> None:
    taken = returned = most = 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for number in range(100):
            taken += 1
            most = max(most, taken - returned)
            yield number

    for _ in ordered_map(lambda n: n, items(), threads=2, depth=5):
        returned += 1
    assert most <= 5
    assert taken == returned == 100


def test_closing_early_stops_threads_and_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    results = ordered_map(lambda n: n, items(), threads=2)
    assert next(results) == 0
    results.close()
    assert closed.is_set()
    assert pump_threads() == []


def test_closing_early_waits_for_what_is_running() -> None:
    """Nobody may use a source any more when the pump is closed: its owner closes it next."""
    running = 0

    def work(number: int) -> int:
        nonlocal running
        running += 1
        time.sleep(0.05 * (number > 0))
        running -= 1
        return number

    results = ordered_map(work, range(50), threads=1)
    next(results)
    results.close()
    assert running == 0


@given(st.lists(st.integers(), max_size=50), st.integers(1, 6))
@settings(max_examples=30)
def test_read_ahead_gives_the_same_items(items: list[int], depth: int) -> None:
    assert list(read_ahead(iter(items), depth=depth)) == items


def test_read_ahead_takes_no_more_than_its_depth() -> None:
    taken = 0
    enough = threading.Event()

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            if taken == 4:
                enough.set()
            yield number

    ahead = read_ahead(items(), depth=2)
    assert next(ahead) == 0
    assert enough.wait(300), "it runs ahead of whoever takes"
    time.sleep(0.05)
    assert taken == 4  # one given, two in the channel, one in hand
    ahead.close()
    assert pump_threads() == []


def test_read_ahead_raises_in_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise Broken

    found = []
    with pytest.raises(Broken):
        for number in read_ahead(items()):
            found.append(number)  # noqa: PERF402 what came before the error is the point
    assert found == [1, 2]
    assert pump_threads() == []


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    def items() -> Iterator[int]:
        raise AssertionError("started")
        yield 1

    read_ahead(items()).close()
    ordered_map(lambda n: n, items(), threads=2).close()
    assert pump_threads() == []


def test_a_source_that_never_says_anything_does_not_hold_up_an_interrupt() -> None:
    """Ctrl-C while standard input is silent: the thread that waits for it is left to the end."""
    reading, writing = os.pipe()

    def items() -> Iterator[bytes]:
        yield b"first"
        yield os.read(reading, 1)

    ahead = read_ahead(items(), depth=1)
    try:
        assert next(ahead) == b"first"
        before = time.monotonic()
        ahead.close()
        assert time.monotonic() - before < 600, "it came back at all"
    finally:
        os.close(writing)
        for thread in threading.enumerate():
            if thread.name == "read-ahead":
                thread.join(300)
        os.close(reading)
    assert pump_threads() == []


def test_both_together() -> None:
    assert list(ordered_map(lambda n: -n, read_ahead(iter(range(500))), threads=3)) == [
        -n for n in range(500)
    ]
    assert pump_threads() == []


def test_threads_follow_the_cores_this_process_may_use() -> None:
    assert default_threads() == len(os.sched_getaffinity(0))


def test_giving_up_comes_before_the_wait() -> None:
    """An error, and an early end, let those that are still at work know before they are waited for."""
    for number in (0, None):
        given_up = threading.Event()

        def work(item: int, number: int | None = number, given_up: threading.Event = given_up) -> int:
            if item == number:
                raise ValueError("first")
            if item:
                assert given_up.wait(300)
            return item

        results = ordered_map(work, range(4), threads=2, depth=3, give_up=given_up.set)
        if number is None:
            assert next(results) == 0
            results.close()
        else:
            with pytest.raises(ValueError, match="first"):
                list(results)
        assert given_up.is_set()
