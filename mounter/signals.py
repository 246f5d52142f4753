"""Ending a mount by signal, and knowing which one it was.

libfuse has handlers of its own, but they only work on the thread that runs its loop, and a signal to
a process may go to any thread, such as one that numpy left running. Nor does its exit code name the
signal. So the handlers are Python's: wherever one runs it writes the number to a pipe, a thread of
ours reads it there, asks libfuse to stop and wakes the loop with SIGUSR1 until it has.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_WAKE = signal.SIGUSR1
#: The loop may just have looked for the last time before it waits: then the next one wakes it.
_WAKE_SECONDS = 0.05


class Ending:
    """The signal that ended the mount, 0 as long as none did."""

    def __init__(self) -> None:
        self.signal = 0
        self._stop_loop: Callable[[], None] = lambda: None
        self._armed = threading.Event()
        self._over = threading.Event()

    def arm(self, stop_loop: Callable[[], None]) -> None:
        """The loop runs: ``stop_loop`` makes it end when it next wakes. Earlier signals count now."""
        self._stop_loop = stop_loop
        self._armed.set()

    def _watch(self, pipe: int, awaited: list[signal.Signals]) -> None:
        while not self._over.is_set():
            number = os.read(pipe, 1)[0]
            if number not in awaited:
                continue
            self.signal = self.signal or number
            self._armed.wait()
            self._stop_loop()
            while not self._over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
                self._over.wait(_WAKE_SECONDS)


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """Inside, SIGHUP, SIGINT and SIGTERM end the loop that libfuse runs on this, the main thread.

    A SIGHUP that is being ignored (``nohup``) stays ignored. Outside the main thread Python cannot
    set handlers, and nothing is changed.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    awaited = [number for number in _ENDING if not _is_ignored_hangup(number)]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _note) for number in (*awaited, _WAKE)}
    watcher = threading.Thread(target=ending._watch, args=(reading, awaited), name="signals", daemon=True)
    watcher.start()
    try:
        yield ending
    finally:
        ending._over.set()
        ending._armed.set()
        os.write(writing, b"\0")
        watcher.join()
        signal.set_wakeup_fd(former_pipe)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(reading)
        os.close(writing)


def _is_ignored_hangup(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _note(number: int, frame: FrameType | None) -> None:
    """The handler: all there is to do is done through the pipe."""
