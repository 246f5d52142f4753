"""Ending a mount by signal, and knowing which one it was.

libfuse unmounts on SIGHUP, SIGINT and SIGTERM but does not say which came. So the first two are held
back from everyone and awaited by a thread, which notes the number and passes on a SIGTERM to the
thread that runs the loop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Ending:
    """The signal that ended the mount, 0 as long as none did."""

    def __init__(self) -> None:
        self.signal = 0


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """While in here, libfuse on this thread hears of SIGHUP, SIGINT and SIGTERM as a SIGTERM.

    A SIGHUP that is being ignored (``nohup``) stays ignored. Outside the main thread Python cannot
    set handlers, and nothing is changed.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    awaited = [signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        awaited.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in (*awaited, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    stop = threading.Event()
    waiter = threading.Thread(target=_await, args=(awaited, ending, stop), name="signals", daemon=True)
    try:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        waiter.start()
        yield ending
    finally:
        stop.set()
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
        ending.signal = int(number)
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
