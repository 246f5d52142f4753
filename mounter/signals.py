"""Ending a mount by signal, and knowing which one it was.

libfuse ends its loop on SIGHUP, SIGINT and SIGTERM, but its exit code does not tell a signal from an
aborted connection, nor one signal from another. So the three are held back from every thread and
awaited by one of ours, which notes the number and then wakes the loop with SIGUSR1, a signal that is
lent libfuse's own handler for the time of the mount.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AWAITED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_WAKE = signal.SIGUSR1
_SIGACTION_ROOM = 512  # a struct sigaction is copied without looking into it; it has 152 bytes


class Ending:
    """The signal that ended the mount, 0 as long as none did."""

    def __init__(self) -> None:
        self.signal = 0
        self._active = False
        self._armed = threading.Event()

    def arm(self) -> None:
        """To be called once libfuse has set its handlers; a signal that came before is acted on now."""
        if self._active:
            libc = ctypes.CDLL(None)
            action = ctypes.create_string_buffer(_SIGACTION_ROOM)
            libc.sigaction(int(signal.SIGTERM), None, action)
            libc.sigaction(int(_WAKE), action, None)
        self._armed.set()


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
    before = {number: signal.getsignal(number) for number in (*_AWAITED, _WAKE)}
    awaited = [
        number for number in _AWAITED if number is not signal.SIGHUP or before[number] is not signal.SIG_IGN
    ]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    stop = threading.Event()
    waiter = threading.Thread(target=_await, args=(awaited, ending, stop), name="signals", daemon=True)
    try:
        for number in awaited:
            signal.signal(number, signal.SIG_DFL)  # or libfuse leaves them alone
        ending._active = True
        waiter.start()
        yield ending
    finally:
        stop.set()
        ending._armed.set()
        if waiter.ident is not None:
            signal.pthread_kill(waiter.ident, awaited[0])
            waiter.join()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _await(awaited: list[signal.Signals], ending: Ending, stop: threading.Event) -> None:
    while True:
        number = signal.sigwait(awaited)
        if stop.is_set():
            return
        ending.signal = ending.signal or int(number)
        ending._armed.wait()
        main = threading.main_thread().ident
        if main is not None and not stop.is_set():
            signal.pthread_kill(main, _WAKE)
