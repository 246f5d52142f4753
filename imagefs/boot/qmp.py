"""QMP, the language in which qemu is told what to do: one JSON object a line. Knows nothing of machines."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import Any

from imagefs.errors import ServeError

#: Seconds for qemu to start and for each answer.
_PATIENCE = 60.0
#: The longest line believed.
_MAX_LINE = 1 << 20
_MAX_EVENTS = 100


class Qmp:
    """One side of a connected socket, the other being qemu's monitor. Raises ServeError when it is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)

    def greet(self) -> None:
        """Wait until qemu is there, and agree to talk."""
        self._message(time.monotonic() + _PATIENCE)
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:
        """Run it and give what it returns."""
        try:
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise ServeError(f"qemu is gone: {error.strerror}") from error
        end = time.monotonic() + _PATIENCE
        while True:
            message = self._message(end)
            if message is None:
                raise ServeError(f"qemu does not answer to {name}")
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise ServeError(f"qemu refuses {name}: {message['error'].get('desc', 'no reason given')}")
            else:
                return message.get("return")

    def event(self, seconds: float) -> dict[str, Any] | None:
        """The next event, within that time."""
        if self._events:
            return self._events.popleft()
        message = self._message(time.monotonic() + seconds)
        return message if message is not None and "event" in message else None

    def _message(self, end: float) -> dict[str, Any] | None:
        """The next message; None when there is none by ``end``."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_LINE:
                raise ServeError("qemu says more than its protocol allows")
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                piece = self._socket.recv(65_536)
            except TimeoutError:
                return None
            except OSError as error:
                raise ServeError(f"qemu is gone: {error.strerror}") from error
            if not piece:
                raise ServeError("qemu ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}
