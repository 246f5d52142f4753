"""Capturing without being in the way: low priority for processor and disk, and a limit on the rate."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable

#: The number of the ioprio_set call; other machines keep their disk priority.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
#: <linux/ioprio.h>: of the calling thread; the class stands above 13 bits of level.
_WHO_PROCESS, _CLASS_IDLE = 1, 3 << 13
#: Seconds of rate that may pass at once, and the longest a sleeper goes without looking round.
_BURST = 0.25


def be_nice() -> None:
    """Run when nobody else wants the processor or the disk. Best effort, never an error.

    Both belong to the calling thread and go to threads started later, so call it before workers
    start. Only I/O schedulers with priorities (bfq, mq-deadline) heed the idle class.
    """
    with contextlib.suppress(OSError):
        os.nice(19)
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None and struct.calcsize("P") == 8:  # a 32-bit program has other numbers
        ctypes.CDLL(None).syscall(
            ctypes.c_long(number), ctypes.c_int(_WHO_PROCESS), ctypes.c_int(0), ctypes.c_int(_CLASS_IDLE)
        )


class RateLimit:
    """At most ``bytes_per_second`` on average, for all threads together.

    What was not used is kept for at most a quarter of a second; more than that at once waits for
    its surplus. ``clock`` gives seconds that never go back, ``sleep`` takes seconds.
    """

    def __init__(
        self,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not bytes_per_second > 0:
            raise ValueError(f"a rate of {bytes_per_second} bytes a second: must be above 0")
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._paid_until = float("-inf")  # when all that was taken so far has had its time
        self._stopped = False

    def take(self, n: int) -> None:
        """Wait until ``n`` more bytes may pass. Threads are served in the order in which they came."""
        if n < 0:
            raise ValueError(f"take({n}): may not be negative")
        with self._lock:
            earliest = self._clock() - _BURST
            self._paid_until = due = max(self._paid_until, earliest) + n / self._rate
        while not self._stopped and (wait := due - self._clock()) > 0:
            self._sleep(min(wait, _BURST))

    def stop(self) -> None:
        """Let everybody pass from now on, those who wait too: the work is being given up."""
        self._stopped = True
