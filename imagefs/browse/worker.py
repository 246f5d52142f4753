"""What runs in the worker process: a file system over a Reader that is asked for over a socket.

Started by ``workers.py`` and never imported by it. Parses what hostile disks say, so it may crash, loop or eat
memory: it has limits, no files to write, and an end when its parent has one.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import socket
import struct
import time
import traceback
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta, timezone
from itertools import islice
from typing import Any

from imagefs.block.views import BytesReader, clamp
from imagefs.browse import channel as ch
from imagefs.browse.ahead import folders_of
from imagefs.browse.channel import Channel
from imagefs.browse.content import FetchReader, MappedReader, merged_ranges
from imagefs.browse.opening import open_filesystem
from imagefs.browse.wire import (
    dumps,
    loads,
    pack_error,
    pack_pieces,
    pack_portion,
    unpack_entries,
    unpack_error,
)
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, Extent, Named

_RANGE = struct.Struct("<QQ")
#: A portion of a listing: so many entries, or what there is after so many seconds.
_PORTION, _PATIENCE = 1024, 0.05
#: Or entries with paths of so many bytes.
_PORTION_BYTES = 4 << 20
#: The file system is told of so many folders that will be listed next.
_FETCHED = 200
#: Listings under way and readers that are kept; who asks for one that is gone begins again.
_MAX_HELD = 256
#: What takes long, and how it is asked for so that it can be left for the next portion.
_IN_STEPS = {"deleted": "deleted_in_steps"}
_MAX_BYTES = 1 << 20
#: Cycles are looked for after so many new objects: entries are none, and looking took a tenth of a walk.
_GARBAGE = 200_000


def main(
    descriptor: int, area: int, memory: int, seconds: int, *, opener: Callable[..., Any] | None = None
) -> None:
    """Serve the socket ``descriptor`` until it closes; ``area`` is the memory that is shared, standard input a pipe
    nobody writes to. ``opener`` makes what is served, else a file system, of the Reader and the options that are
    sent first."""
    _bound(memory)
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    gc.enable()
    channel = Channel(socket.socket(fileno=descriptor))
    server = _Server(channel, ch.map_area(area), opener or open_filesystem)
    while True:
        try:
            letter, body = channel.receive()
            if letter != ch.CALL:
                server.take_in(letter, body)
                continue
            _allow(seconds)
            channel.send(*server.answer(body))
        except ch.ChannelClosed:
            return
        except MemoryError:
            raise SystemExit(ch.NO_MEMORY) from None


def _bound(memory: int) -> None:
    """Limits, and death with the parent."""
    ch.end_with_parent()
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _allow(seconds: int) -> None:
    """From now on so many seconds of CPU; then comes SIGXCPU, which ends us."""
    until = int(time.process_time()) + seconds + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(
        resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard)
    )


class _ChannelReader:
    """The volume, as the other side of the channel reads it."""

    def __init__(self, channel: Channel, area: mmap.mmap, size: int) -> None:
        self.size = size
        self._channel = channel
        self._area = area
        #: What was fetched last: where each range begins, in order, its length, and where it lies in the area.
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._places: list[int] = []
        #: Whether that was asked for and is still on its way.
        self._coming = False

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask for many ranges (offset, length) in one message, for reads that come soon; those fetched before are
        forgotten. Does not wait for them. What fails, or is too much, is read again when it is wanted."""
        self._arrive()
        self._starts, self._lengths, self._places = [], [], []
        place = ch.MAX_READ
        for at, length in merged_ranges(ranges):
            if place + length > ch.AREA or len(self._starts) == ch.MAX_RANGES:
                break
            if 0 <= at <= self.size - length:
                self._starts.append(at)
                self._lengths.append(length)
                self._places.append(place)
                place += length
        if self._starts:
            wanted = zip(self._starts, self._lengths, strict=True)
            self._channel.send(ch.READ_MANY, b"".join([_RANGE.pack(*each) for each in wanted]))
            self._coming = True

    def is_here(self) -> bool:
        """Whether what was fetched last can be read without waiting."""
        return not self._coming or self._channel.waiting()

    def take_in(self, letter: bytes, body: bytes) -> None:
        """The answer to what was fetched."""
        self._coming = False
        if letter != ch.BYTES or ch.COUNT.unpack(body) != (sum(self._lengths),):
            self._starts = []

    def _arrive(self) -> None:
        if self._coming:
            self.take_in(*self._channel.receive())

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        known = bisect_right(self._starts, offset) - 1
        if known >= 0 and offset - self._starts[known] + count <= self._lengths[known]:
            self._arrive()
            if self._starts:  # it has not failed
                place = self._places[known] + offset - self._starts[known]
                return self._area[place : place + count]
        if count <= ch.MAX_READ:
            return self._fetch(offset, count)
        ends = range(offset, offset + count, ch.MAX_READ)
        return b"".join(self._fetch(at, min(ch.MAX_READ, offset + count - at)) for at in ends)

    def _fetch(self, offset: int, length: int) -> bytes:
        (count,) = ch.COUNT.unpack(self._ask(ch.READ, offset, length))
        return self._area[:count]

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        end = offset + clamp(self.size, offset, length)
        while offset < end:
            found = loads(self._ask(ch.ASK_EXTENTS, offset, end - offset))
            if not found:
                return
            yield from found
            offset = found[-1].offset + found[-1].length

    def _ask(self, letter: bytes, offset: int, length: int) -> bytes:
        self._channel.send(letter, _RANGE.pack(offset, length))
        self._arrive()  # what was asked for before is answered before
        letter, body = self._channel.receive()
        if letter == ch.FAILED:
            raise unpack_error(body)
        return body

    def close(self) -> None:
        pass


def _option(value: Any) -> Any:
    """An option of ``open_filesystem``: ``["zone", name]`` is a time zone, as str() names it."""
    if not isinstance(value, list):
        return value
    name = value[1]
    if not name.startswith("UTC"):
        from zoneinfo import ZoneInfo

        return ZoneInfo(name)
    hours, _, minutes = name[4:].partition(":")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    return timezone(-offset if name[3:4] == "-" else offset)


def _length(entry: Entry | Named) -> int:
    return len(entry.path if type(entry) is Entry else entry.name)


def _behind(found: Iterator[Entry | Named | None], skip: int) -> Iterator[Entry | Named | None]:
    """``found`` without its first ``skip`` entries, for each of which None comes."""
    for entry in found:
        yield entry if not skip else None
        skip -= bool(skip and entry is not None)


class _Server:
    """One file system and what is under way in it."""

    def __init__(self, channel: Channel, area: mmap.mmap, opener: Callable[..., Any]) -> None:
        self._channel = channel
        self._area = area
        self._opener = opener
        self._reader: _ChannelReader | None = None
        self._fs: Any = None
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._number = int.from_bytes(os.urandom(7), "little")  # never one of a worker before this one
        #: A walk ahead: the folders that come next, the last one first.
        self._method = ""
        self._coming: list[Entry] = []

    def take_in(self, letter: bytes, body: bytes) -> None:
        """An answer to what the reader has asked for."""
        if self._reader is None:
            raise ch.ChannelClosed("an answer to nothing")
        self._reader.take_in(letter, body)

    def answer(self, body: bytes) -> tuple[bytes, bytes]:
        try:
            method, *args = loads(body)
            if method == "read":
                return ch.CONTENT, self._read(*args)
            if method == "open filesystem":
                return ch.ANSWER, dumps(self._open(*args))
            answer: list[object] | bytes
            if method == "go on":
                answer = self._go_on()
            elif method == "contents":
                answer = ["value", self._contents(args[-1])]
            else:
                answer = self._more(*args) if method == "more" else self._call(method, *args)
            if type(answer) is not bytes:
                return ch.ANSWER, dumps(answer)
            return ch.MORE if self._coming else ch.PORTION, answer
        except ImagefsError as error:
            return ch.ERROR, pack_error(error)
        except MemoryError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return ch.ERROR, dumps([said, "".join(traceback.format_exception(error))[-4000:]])

    def _open(self, size: int, options: dict[str, Any]) -> list[object]:
        self._held.clear()
        self._coming = []
        self._reader = _ChannelReader(self._channel, self._area, size)
        options = {name: _option(each) for name, each in options.items()}
        fs = self._fs = self._opener(self._reader, **options)
        methods = [
            name for name in dir(fs) if not name.startswith("_") and callable(getattr(type(fs), name, None))
        ]
        return [fs.kind, fs.case_insensitive, methods]

    def _call(self, method: str, skip: int, ahead: list[Entry], *args: Any) -> list[object] | bytes:
        """A method or property. ``skip`` is how many entries of a listing are known already, ``ahead`` are
        folders to list as well."""
        steps = _IN_STEPS.get(method, "")
        result = getattr(self._fs, steps if hasattr(self._fs, steps) else method)
        if callable(result):
            result = result(*args)
        if isinstance(result, Iterator):
            return self._portion(_behind(result, skip) if skip else result, method, ahead)
        return self._content(result) if hasattr(result, "read_at") else ["value", result]

    def _hold(self, thing: Any) -> int:
        self._number += 1
        self._held[self._number] = thing
        if len(self._held) > _MAX_HELD:
            self._held.popitem(last=False)
        return self._number

    def _content(self, reader: Any) -> list[object]:
        """A file's content: where it lies, what it is, or a number by which it can be read."""
        if type(reader) is MappedReader and reader.lies_on(self._reader):
            return ["pieces", reader.size, pack_pieces(reader.pieces), reader.label]
        if type(reader) is BytesReader and reader.size <= _MAX_BYTES:
            return ["bytes", reader.read_at(0, reader.size)]
        layout = reader.layout if type(reader) is FetchReader else None
        if layout is not None and not layout.lies_on(self._reader):
            layout = None
        pieces = None if layout is None else pack_pieces(layout.pieces)
        return ["held", self._hold(reader), reader.size, pieces]

    def _contents(self, packed: bytes) -> list[list[object]]:
        """The contents of files that will be opened next, up to the first that cannot be."""
        found: list[list[object]] = []
        fs, room, until = self._fs, _MAX_BYTES, time.monotonic() + _PATIENCE
        assert fs is not None
        for entry in unpack_entries(packed):
            try:
                content = self._content(fs.open(entry))
            except ImagefsError:  # who asks for it will hear of it
                break
            found.append(content)
            room -= len(content[1]) if type(content[1]) is bytes else 0
            if room < 0 or time.monotonic() > until:
                break
        return found

    def _read(self, number: int, offset: int, length: int) -> bytes:
        reader = self._held.get(number)
        if reader is None:
            return b""  # gone: no read of something is answered with nothing
        self._held.move_to_end(number)
        return bytes(reader.read_at(offset, length))

    def _more(self, number: int) -> list[object] | bytes:
        found = self._held.pop(number, None)
        return ["gone"] if found is None else self._portion(found)

    def _portion(
        self, found: Iterator[Entry | Named | None], method: str = "", ahead: Sequence[Entry] = ()
    ) -> bytes:
        """Facts (number to go on with or None, error or None, other folders) and entries. ``found`` may give None
        where it has nothing yet."""
        entries: list[Entry | Named] = []
        until, room = time.monotonic() + _PATIENCE, _PORTION_BYTES
        try:
            for entry in found:
                if entry is not None:
                    entries.append(entry)
                    room -= _length(entry)
                look = entry is None or len(entries) % 32 == 0
                if len(entries) >= _PORTION or room < 0 or (look and time.monotonic() > until):
                    self._coming = []
                    return pack_portion((self._hold(found), None, []), entries)
        except ImagefsError as error:
            self._coming = []
            return pack_portion((None, pack_error(error), []), entries)
        if not ahead:
            self._coming = []
            return pack_portion((None, None, []), entries)
        self._method = method
        self._coming = [*reversed(ahead), *reversed(folders_of(entries))]
        return self._walked(entries, until)

    def _go_on(self) -> bytes:
        """The folders that a walk will come to after those that were listed ahead."""
        return self._walked([], time.monotonic() + _PATIENCE)

    def _walked(self, entries: list[Entry | Named], until: float) -> bytes:
        """A portion: ``entries``, and behind them those of further folders; of each its address, path and number
        of entries."""
        folders: list[list[object]] = []
        room = _PORTION_BYTES
        while self._coming and len(entries) < _PORTION and (not folders or time.monotonic() < until):
            self._fetch()
            folder = self._coming.pop()
            try:
                listed = list(islice(getattr(self._fs, self._method)(folder), _PORTION + 1))
            except ImagefsError:  # who asks for it will hear of it
                self._coming = []
                break
            length = sum(map(_length, listed))
            if length > room and folders:
                self._coming.append(folder)
                break
            if len(listed) > _PORTION or length > _PORTION_BYTES:
                self._coming = []
                break
            room -= length
            folders.append([folder.inode, folder.path, len(listed)])
            entries += listed
            self._coming += reversed(folders_of(listed))
        return pack_portion((None, None, folders), entries)

    def _fetch(self) -> None:
        """Read in one go what will be read when the next folders are listed, where the file system can tell."""
        soon = getattr(self._fs, "soon", None)
        if soon is not None:
            soon(self._coming[: -_FETCHED - 1 : -1])
