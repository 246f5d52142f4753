"""Bounded pipelines over threads: read ahead, work on all cores, results in order."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Bytes handed to one worker at a time: long enough that handing over costs nothing.
BATCH_BYTES = 1024 * 1024
_END = object()


def default_threads() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    depth: int | None = None,
    give_up: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """``work(item)`` for every item on ``threads`` threads, in the order of the items.

    At most ``depth`` items are under way; the first error is raised in its place, and closing the
    iterator early waits for what is running; ``give_up`` is called before, to make that short.
    """
    limit = depth or 2 * threads + 2
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pump")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        if give_up is not None:
            give_up()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def read_ahead(items: Iterator[Item], *, depth: int = 4) -> Generator[Item, None, None]:
    """The same items, taken from ``items`` by a thread of their own, up to ``depth`` in advance."""
    channel: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()

    def put(value: object) -> bool:
        while not stopped.is_set():
            try:
                channel.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=run, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (value := channel.get()) is not _END:
            if isinstance(value, _Failure):
                raise value.error
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        # It may be waiting for a pipe that never says anything more: being a daemon, it is left there.
        thread.join(timeout=1.0)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
