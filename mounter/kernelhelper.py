"""The helper of mounter/kernel.py: a process of its own, in a mount namespace of its own.

``python -m mounter.kernelhelper BYTES CONTROL SIZE KIND ROOM``: two inherited sockets, the size of the volume,
its file system, an empty folder. Ends when the other side does, and takes everything with it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from imagefs.block.views import clamp
from imagefs.errors import MountError, SourceError
from mounter import binding, mounttable
from mounter.native import NativeWish, mount_device
from mounter.operations import MountOperations
from mounter.tree import MountSpec, MountTree
from mounter.wire import ANSWER, REQUEST, receive

#: All of a Btrfs, not only the subvolume that is to be mounted by default.
_OPTIONS = {"btrfs": "subvolid=5"}
_LARGEST = 1 << 24


class _Volume:
    """The volume, whose bytes the other side gives. Safe in several threads."""

    def __init__(self, connection: socket.socket, size: int) -> None:
        self.size = size
        self._connection = connection
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, min(length, _LARGEST))
        with self._lock:
            self._connection.sendall(REQUEST.pack(offset, count))
            head = receive(self._connection, ANSWER.size)
            code, length = ANSWER.unpack(head) if head else (1, 0)
            data = receive(self._connection, length) if not code else None
        if data is None:
            raise SourceError(f"bytes {offset} to {offset + count - 1} cannot be read")
        return data

    def close(self) -> None:
        pass


def main(words: list[str]) -> int:
    connection, control = socket.socket(fileno=int(words[0])), socket.socket(fileno=int(words[1]))
    kind, room = words[3], words[4]
    raw, tree = os.path.join(room, "raw"), os.path.join(room, "tree")
    os.mkdir(raw, 0o700)
    os.mkdir(tree, 0o700)
    spec = MountSpec(_Volume(connection, int(words[2])), (), b"{}", "volume", 0)
    ready = threading.Event()
    threading.Thread(target=_hand_over, args=(ready, control, kind, raw, tree), daemon=True).start()
    operations = MountOperations(
        MountTree(spec, log=lambda line: None), log=lambda line: None, on_init=ready.set
    )
    try:
        binding.serve(binding.load(), operations, os.fsencode(raw), fsname="volume")
    except MountError as error:
        control.send(error.message.encode())
    return 0


def _hand_over(ready: threading.Event, control: socket.socket, kind: str, raw: str, tree: str) -> None:
    """Mount, send the root folder, wait for the end of the other side."""
    ready.wait()
    try:
        wish = NativeWish("the volume", tree, kind)
        options = ",".join(word for word in ("loop", _OPTIONS.get(kind, "")) if word)
        mount_device(wish, os.path.join(raw, "disk.raw"), tree, more=options)
        folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        socket.send_fds(control, [b"{}"], [folder])
        os.close(folder)
        _let_go_of_others()
        control.recv(1)
    except (MountError, OSError) as error:
        said = error.data.get("reason", error.message) if isinstance(error, MountError) else error
        control.send(str(said).removeprefix(f"{tree}: ").encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _let_go_of_others() -> None:
    """This namespace began as a copy: what is mounted elsewhere must not stay busy because of us."""
    for mounted in reversed(mounttable.mounts()):
        if mounted.directory != "/":
            try:
                mounttable.detach(mounted.directory, lazy=True)
            except (OSError, MountError):  # gone with one above it
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
