"""How the two sides of mounter/kernel.py speak: a request is an offset and a length, its answer 0 and the
bytes, or 1 and none."""

from __future__ import annotations

import socket
import struct

REQUEST = struct.Struct("<QI")
ANSWER = struct.Struct("<II")


def receive(connection: socket.socket, length: int) -> bytes | None:
    """Exactly ``length`` bytes, None when the other side has ended."""
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
