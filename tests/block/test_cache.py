"""The cache of blocks: each made once, bounded, errors not kept, right under threads."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.cache import BlockCache


class Broken(Exception):
    pass


def cache_of(limit: int) -> BlockCache[int, bytes]:
    return BlockCache(limit, len)


def block(key: int, size: int = 10) -> bytes:
    return bytes([key % 256]) * size


def test_a_block_is_made_once() -> None:
    cache, made = cache_of(1000), []

    def make() -> bytes:
        made.append(1)
        return block(5)

    assert cache.get(5, make) == cache.get(5, make) == block(5)
    assert made == [1]
    assert 5 in cache
    assert 6 not in cache


def test_threads_that_ask_at_once_wait_for_one_maker() -> None:
    cache, made, begun, may_end = cache_of(1000), [], threading.Event(), threading.Event()

    def make() -> bytes:
        made.append(1)
        begun.set()
        assert may_end.wait(300)
        return block(1)

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(cache.get, 1, make) for _ in range(6)]
        assert begun.wait(300)
        assert cache.get(2, lambda: block(2)) == block(2), "no lock is held while a block is made"
        may_end.set()
        assert {future.result(10) for future in asked} == {block(1)}
    assert made == [1]


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    cache, begun, may_end = cache_of(1000), threading.Event(), threading.Event()

    def fail() -> bytes:
        begun.set()
        assert may_end.wait(300)
        raise Broken

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(cache.get, 1, fail)]
        assert begun.wait(300)
        asked += [pool.submit(cache.get, 1, fail) for _ in range(2)]
        may_end.set()
        for future in asked:
            with pytest.raises(Broken):
                future.result(10)
    assert 1 not in cache
    assert cache.get(1, lambda: block(1)) == block(1)


def test_it_is_bounded_and_drops_what_was_not_used() -> None:
    cache = cache_of(50)
    for key in range(5):
        cache.get(key, lambda key=key: block(key))
    cache.get(0, lambda: b"never made")
    cache.get(5, lambda: block(5))
    assert cache.bytes == 50
    assert 0 in cache
    assert 1 not in cache


def test_a_block_larger_than_the_limit_is_given_all_the_same() -> None:
    cache = cache_of(50)
    assert len(cache.get(1, lambda: block(1, 500))) == 500
    assert cache.get(2, lambda: block(2)) == block(2)
    assert cache.bytes == 10


def test_clear() -> None:
    cache = cache_of(50)
    cache.get(1, lambda: block(1))
    cache.clear()
    assert 1 not in cache
    assert cache.bytes == 0


def test_overlapping_walks_on_many_threads() -> None:
    """Walks that cross must not wait for each other in a ring, nor make one block twice at a time."""
    cache = cache_of(200)
    under_way: Counter[int] = Counter()
    lock = threading.Lock()

    def make(key: int) -> bytes:
        with lock:
            under_way[key] += 1
            assert under_way[key] == 1
        time.sleep(0)  # let another thread run, so that a second maker would be seen
        with lock:
            under_way[key] -= 1
        return block(key)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(300):
            first = dice.randrange(40)
            keys = list(range(first, first + dice.randrange(1, 9)))
            if dice.random() < 0.5:
                keys.reverse()
            for key in keys:
                assert cache.get(key, lambda key=key: make(key)) == block(key)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result(60)
    assert cache.bytes <= 200


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), max_size=80), st.integers(1, 200))
def test_against_a_model(steps: list[tuple[int, int]], limit: int) -> None:
    cache, model = cache_of(limit), {}
    for key, size in steps:
        made = model.pop(key, None) or block(key, size)
        assert cache.get(key, lambda made=made: made) == made
        model[key] = made
        while sum(map(len, model.values())) > limit and len(model) > 1:
            del model[next(iter(model))]
        assert cache.bytes == sum(map(len, model.values()))
        assert all(kept in cache for kept in model)
