"""File systems that only the kernel knows, for root: read-only, mounted where nobody else sees it.

A helper (mounter/kernelhelper.py) in a mount namespace of its own shows the volume as one file over FUSE,
lets the kernel mount that, and hands over the open root folder of what it mounted; that is all that is
ever read from here. The helper asks for the volume's bytes over a socket. When either of the two
processes ends, however it ends, the kernel takes the mounts and the loop device away. Knows no FUSE.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from typing import NoReturn

from imagefs.browse.folder import FolderFileSystem
from imagefs.errors import BrowseError, ImagefsError, NotAFileSystem
from imagefs.interfaces import FileSystem, Reader
from imagefs.volume.probe import probe
from mounter.wire import ANSWER, REQUEST, receive

#: What is worth a mount: the rest is read without the kernel, or is damaged.
KERNEL_ONLY = frozenset({"btrfs", "xfs", "f2fs", "squashfs", "erofs", "udf"})
_READY_SECONDS = 180
#: The kernel mounts none that claims to be larger than its device; what lies past the end is an error then.
_LARGEST = 1 << 60
_BTRFS_SUPER, _DEVICES_AT, _LABEL_AT = 0x10000, 0x88, 0x12B


def open_by_kernel(reader: Reader, refused: NotAFileSystem) -> FileSystem:
    """The file system on ``reader``, which stays the caller's and must live as long.

    ``refused`` is what those say who need no kernel; it is raised where the kernel would be of no use
    either. NotAFileSystem says what else is in the way.
    """
    facts = probe(reader)
    kind = facts.kind
    if kind not in KERNEL_ONLY:
        raise refused
    label = _checked_btrfs(reader) if kind == "btrfs" else ""
    if os.geteuid() != 0:
        said = f"the volume is {kind}, which only the kernel can read here, and only root may ask it to"
        if kind == "xfs":
            said = f"{refused.message}; the kernel may, if root asks it to"
        raise NotAFileSystem(said, hint="run it with sudo") from refused
    return _Helper(reader, kind, refused, shown_size=max(reader.size, min(facts.size or 0, _LARGEST))).open(
        label
    )


def _checked_btrfs(reader: Reader) -> str:
    """Its label. NotAFileSystem for one that lies on several devices, of which this is one."""
    raw = reader.read_at(_BTRFS_SUPER, 4096).ljust(4096, b"\0")
    devices = struct.unpack_from("<Q", raw, _DEVICES_AT)[0]
    if devices != 1:
        raise NotAFileSystem(
            f"the volume is one of {devices} devices of a Btrfs file system, which cannot be browsed one by one",
            hint="mount the images of all of them, and let the kernel mount their pN.raw together",
        )
    return raw[_LABEL_AT : _LABEL_AT + 256].partition(b"\0")[0].decode("utf-8", "replace")


class _Helper:
    """The helper and the thread that gives it the volume's bytes."""

    def __init__(self, reader: Reader, kind: str, refused: NotAFileSystem, *, shown_size: int) -> None:
        self._reader = reader
        self._kind = kind
        self._refused = refused
        self._shown_size = shown_size
        self._bytes, self._control = socket.socketpair(), socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        self.error: ImagefsError | None = None

    def open(self, label: str) -> FolderFileSystem:
        try:
            # Its folders go as soon as the mounts on them, which are in another namespace, have been opened.
            with tempfile.TemporaryDirectory(prefix="imagefs-") as room:
                folder = self._start(room)
        except BaseException:
            self.stop()
            raise
        return FolderFileSystem(folder, self._kind, label=label, cause=lambda: self.error, on_close=self.stop)

    def _start(self, room: str) -> int:
        theirs = self._bytes[1].fileno(), self._control[1].fileno()
        helper = [
            "-P",
            "-m",
            "mounter.kernelhelper",
            *map(str, theirs),
            str(self._shown_size),
            self._kind,
            room,
        ]
        words = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, *helper]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,
            )
        except OSError as error:
            self._refuse(f"{words[0]} cannot be run: {os.strerror(error.errno or 0)}")
        for pair in (self._bytes, self._control):
            pair[1].close()
        threading.Thread(target=self._serve, name="kernel-volume", daemon=True).start()
        self._control[0].settimeout(_READY_SECONDS)
        try:
            said, folders, _, _ = socket.recv_fds(self._control[0], 1 << 16, 1)
        except OSError:
            self._refuse(f"it took longer than {_READY_SECONDS} seconds")
        if folders:
            return folders[0]
        return self._refuse(said.decode("utf-8", "replace") or "its helper has ended")

    def _refuse(self, why: str) -> NoReturn:
        if self.error is not None:
            why = f"{why} ({self.error.message})"
        raise NotAFileSystem(f"{self._refused.message}, nor does the kernel read it: {why}") from self.error

    def _serve(self) -> None:
        """Bytes of the volume for the helper, until it ends."""
        theirs = self._bytes[0]
        with contextlib.suppress(OSError):  # it has ended in the middle
            while (request := receive(theirs, REQUEST.size)) is not None:
                code, data = 0, b""
                try:
                    data = self._read(*REQUEST.unpack(request))
                except Exception as error:
                    code = 1
                    self.error = error if isinstance(error, ImagefsError) else ImagefsError(str(error))
                theirs.sendall(ANSWER.pack(code, len(data)) + data)

    def _read(self, offset: int, length: int) -> bytes:
        data = self._reader.read_at(offset, length)
        if len(data) < length:
            raise BrowseError(f"the volume ends at byte {self._reader.size}, its file system does not")
        return data

    def stop(self) -> None:
        """Let the helper end, and with it the mounts. Safe to call twice."""
        for pair in (self._control, self._bytes):
            for end in pair:
                with contextlib.suppress(OSError):  # it has ended, or is closed already
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
