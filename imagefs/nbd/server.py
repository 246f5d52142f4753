"""The server: a thread that accepts, and one for each client, of which there are only so many."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Sequence

from imagefs.nbd.exports import Export
from imagefs.nbd.handshake import negotiate
from imagefs.nbd.listening import Listener
from imagefs.nbd.protocol import Violation
from imagefs.nbd.stream import Gone, Stream
from imagefs.nbd.transmission import serve

#: Clients at once; one more is hung up on.
MAX_CLIENTS = 64
#: Seconds that the end of the server waits for replies under way.
_PATIENCE = 5.0
_FULL_SECONDS = 0.2
#: TCP: a client that vanished without a word is noticed after IDLE + COUNT × EVERY seconds.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}


class Server:
    """Serves ``exports``, the first of which is the default, until it is closed.

    Closes the listeners, never the exports' readers.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        listeners: Sequence[Listener],
        *,
        log: Callable[[str], None],
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self._exports = exports
        self._listeners = listeners
        self._log = log
        self._max_clients = max_clients
        self._lock = threading.Lock()
        self._clients: dict[Stream, threading.Thread] = {}
        self._count = 0
        self._closing = False
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to accept, on threads of their own."""
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), name="nbd-accept", daemon=True).start()

    def wait(self) -> None:
        """Until ``close``; a signal's exception comes through."""
        self._closed.wait()

    def close(self) -> None:
        """No new client, no socket left, the replies under way given some time. Twice is harmless."""
        with self._lock:
            self._closing = True
            clients = dict(self._clients)
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for stream in clients:
            stream.end()
        end = time.monotonic() + _PATIENCE
        for stream, thread in clients.items():
            thread.join(max(0.0, end - time.monotonic()))
            stream.close()
        self._closed.set()

    def _accept(self, listener: Listener) -> None:
        while not self._closing:
            try:
                connection, _ = listener.socket.accept()
            except OSError as error:
                if self._closing or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                self._log(f"a client could not be accepted: {error.strerror}")
                time.sleep(_FULL_SECONDS)  # out of descriptors, most likely; others will free some
                continue
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            _tune(connection)
        stream = Stream(connection)
        with self._lock:
            self._count += 1
            full = len(self._clients) >= self._max_clients
            if not full and not self._closing:
                name = f"client {self._count}"
                thread = threading.Thread(target=self._attend, args=(stream, name), name=name, daemon=True)
                self._clients[stream] = thread
                thread.start()
                return
        if full:
            self._log(f"a client was turned away: there are {self._max_clients} already")
        stream.close()

    def _attend(self, stream: Stream, name: str) -> None:
        try:
            session = negotiate(stream, self._exports)
            if session is not None:
                serve(stream, session, log=self._log)
        except Violation as error:
            self._log(f"{name} was hung up on: {error}")
        except Gone:
            pass
        except Exception as error:
            self._log(f"{name} was hung up on by a bug in imagefs: {type(error).__name__}: {error}")
        finally:
            stream.close()
            with self._lock:
                self._clients.pop(stream, None)


def _tune(connection: socket.socket) -> None:
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
