"""Sockets to be found at: a unix socket that is nobody else's, TCP that stays on this machine.

What is made here is taken away again; what a killed server left behind is replaced.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from urllib.parse import quote

from imagefs.errors import ServeError, UsageError

#: The port of NBD, where none is said.
PORT = 10809
#: Connections that wait to be accepted.
BACKLOG = 16
#: What fits into a socket's address, with its end.
MAX_PATH = 107


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; ``path`` is that of a unix socket, with its inode, so that only ours is removed."""

    socket: socket.socket
    path: str = ""
    inode: int = 0

    def uri(self, export: str = "") -> str:
        """How clients name it (doc/uri.md of the NetworkBlockDevice project)."""
        if self.path:
            return f"nbd+unix:///{quote(export, safe='')}?socket={quote(self.path)}"
        host, port = self.socket.getsockname()[:2]
        return f"nbd://{f'[{host}]' if ':' in host else host}:{port}/{quote(export, safe='')}"

    def close(self) -> None:
        if self.socket.fileno() < 0:  # closed already: what is at our path now may be another's
            return
        self.socket.close()
        if self.path:
            with contextlib.suppress(OSError):
                if os.lstat(self.path).st_ino == self.inode:
                    os.unlink(self.path)


def listen_unix(path: str) -> Listener:
    """A socket at ``path`` that only its owner may use. Raises ServeError."""
    full = os.path.abspath(path)
    if len(os.fsencode(full)) > MAX_PATH:
        raise ServeError(f"{full} is too long for a socket", hint=f"at most {MAX_PATH} bytes", path=full)
    _make_way(full)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        made.bind(full)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ServeError(f"cannot make the socket {full}: {error.strerror}", path=full) from error
    finally:
        os.umask(mask)
    return Listener(made, full, os.lstat(full).st_ino)


def _make_way(path: str) -> None:
    """Remove a socket that nobody listens at; refuse anything else that is there."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return  # nothing there, or bind will say what is wrong
    if not is_socket:
        raise ServeError(f"{path} exists and is not a socket", hint="name another --socket", path=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return
        except OSError:  # a full queue, no permission: somebody's
            pass
    raise ServeError(f"a server listens at {path} already", hint="name another --socket", path=path)


def listen_tcp(address: str, *, remote: bool) -> Listener:
    """A port of this machine, ``HOST:PORT``; of its network only with ``remote``. Raises UsageError, ServeError."""
    host, port = parse_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ServeError(f"{host} is not known here: {error.strerror}") from error
    places = [(family, place) for family, _, _, _, place in found]
    if not remote and not all(_is_loopback(str(place[0])) for _, place in places):
        raise UsageError(
            f"{address} can be reached from other machines, and whoever reaches it reads the disk",
            hint="listen on localhost, or add --allow-remote",
        )
    reason = ""
    for family, place in places:  # localhost may be IPv6 first on a machine that has none
        made = None
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen(BACKLOG)
            return Listener(made)
        except OSError as error:
            reason = reason or error.strerror or str(error)
            if made is not None:
                made.close()
    raise ServeError(f"cannot listen on {address}: {reason}")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def parse_address(text: str) -> tuple[str, int]:
    """``localhost``, ``localhost:10809``, ``[::1]:0`` → host and port. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, str(PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise UsageError(f"{text!r} is not HOST:PORT", hint="write localhost:10809 or [::1]:10809")
    return host, int(port)
