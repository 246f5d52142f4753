"""A parser that crashes, loops or eats memory when certain words are in a path. ``hostile_start`` makes workers
begin with this module, which puts it in the place of ours."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from imagefs.block.views import BytesReader, extents_of
from imagefs.browse import worker, workers
from imagefs.browse.opening import open_filesystem
from imagefs.interfaces import Entry, FileSystem, Reader


def misbehave(path: bytes) -> None:
    if b"segfault" in path:
        ctypes.string_at(0)
    elif b"loop" in path:
        while True:
            pass
    elif b"sleep" in path:
        time.sleep(1000)
    elif b"memory" in path:
        keep = []
        while True:
            keep.append(bytearray(b"x" * (16 << 20)))
    elif b"aborted" in path:
        os.abort()
    elif b"killed" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    elif b"bug" in path:
        raise IndexError("of a parser")
    elif b"nonsense" in path:
        for number in range(3, 64):
            try:
                os.write(number, b"\xff" * 1000)
            except OSError:
                continue


class HostileParser:
    """The FileSystem it is given, until it is asked for the wrong thing."""

    def __init__(self, fs: FileSystem, reader: Reader) -> None:
        self._fs = fs
        self._reader = reader
        self.kind = fs.kind
        self.case_insensitive = fs.case_insensitive
        self.label = fs.label
        self.used_bytes = fs.used_bytes

    def root(self) -> Entry:
        return self._fs.root()

    def lookup(self, path: bytes) -> Entry:
        return self._fs.lookup(path)

    def children(self, entry: Entry):  # type: ignore[no-untyped-def]
        misbehave(entry.path)
        return self._fs.children(entry)

    names = children

    def open(self, entry: Entry) -> Reader:
        misbehave(entry.path)
        content = self._fs.open(entry)
        return Fetched(content.read_at(0, content.size)) if b"held" in entry.path else content

    def readlink(self, entry: Entry) -> bytes:
        return self._fs.readlink(entry)

    def places(self, entry: Entry):  # type: ignore[no-untyped-def]
        return self._fs.places(entry)

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """The states of the volume's extents, as a way to see them outside."""
        found = extents_of(self._reader, 0, self._reader.size)
        return {b"%d" % extent.offset: b"%d" % extent.state for extent in found}

    def close(self) -> None:
        self._fs.close()


class Fetched(BytesReader):
    """Content of which nobody knows the place."""


def opened(reader: Reader, **options: object) -> FileSystem:
    if reader.read_at(0, 4) == b"LOOP":
        misbehave(b"segfault")
    fs = HostileParser(open_filesystem(reader), reader)
    fs.label = repr(options) if options else fs.label
    return fs  # type: ignore[return-value]


def hostile_start() -> str:
    """For ``workers._START``."""
    return workers._START.replace("from {module}", "import tests.browse.hostile_parser; from {module}", 1)


worker.open_filesystem = opened
