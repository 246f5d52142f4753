"""A file system whose parsers run in a worker process: a crash, a loop or a hunger for memory in them is one
BrowseError, and the next request has a new worker.

``_SHARED`` names the optional methods (``interfaces.py``) that are passed on when the file system has them.
Content whose place is known is read here, without the worker; the rest comes from it in pieces.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import tzinfo
from functools import partial
from typing import Any, TypeVar

from imagefs.block.views import BytesReader, clamp
from imagefs.browse import channel as ch
from imagefs.browse.ahead import Ahead, Found
from imagefs.browse.content import FETCH_SIZE, MappedReader
from imagefs.browse.names import printable
from imagefs.browse.wire import WireError, dumps, loads, unpack_error, unpack_pieces, unpack_portion
from imagefs.browse.workers import Limits, Worker, WorkerDied
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, Extent, FileSystem, Named, Place, Reader, State

T = TypeVar("T")
#: Optional methods of a FileSystem. One that is added to ``interfaces.py`` is added here.
_SHARED = ("names", "streams", "open_stream", "xattrs", "name_times", "deleted", "at", "wholeness")
#: A file system is given up after so many deaths in so many seconds; what was asked then fails at once for as
#: long as that.
_MAX_DEATHS, _WITHIN = 12, 900.0
_GO_ON = dumps(["go on"])


def open_apart(reader: Reader, *, limits: Limits | None = None, **options: Any) -> FileSystem:
    """As ``open_filesystem``, with the parsers in a process of their own; ``options`` are its options: plain values
    and time zones."""
    plain = {
        name: ["zone", str(each)] if isinstance(each, tzinfo) else each for name, each in options.items()
    }
    return ApartFileSystem(reader, limits or Limits(), plain)


class ApartFileSystem:
    """A FileSystem in a worker, which is started again when it died. One request at a time."""

    _worker: Worker | None = None

    def __init__(self, reader: Reader, limits: Limits, options: dict[str, Any]) -> None:
        self._reader = reader
        self._limits = limits
        self._opening = dumps(["open filesystem", reader.size, options])
        self._lock = threading.Lock()
        self._closed = False
        self._ahead = Ahead()
        #: The listings that were asked for on suspicion, while nobody waits for them.
        self._guess = ""
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._deadly: dict[bytes, tuple[float, str]] = {}
        try:
            kind, folds, methods = self._ask(None)
        except BaseException:
            self.close()
            raise
        self.kind, self.case_insensitive = str(kind), bool(folds)
        for name in _SHARED:
            if name in methods:
                setattr(self, name, partial(self._folder if name == "names" else self._call, name))

    @property
    def label(self) -> str:
        return str(self._call("label"))

    @property
    def used_bytes(self) -> int | None:
        used = self._call("used_bytes")
        return None if used is None else int(used)

    def root(self) -> Entry:
        return _sure(self._call("root"), Entry)

    def lookup(self, path: bytes, /) -> Entry:
        return _sure(self._call("lookup", path), Entry)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._folder("children", entry)  # type: ignore[return-value]

    def open(self, entry: Entry, /) -> Reader:
        content: Reader = self._call("open", entry)
        return content

    def readlink(self, entry: Entry, /) -> bytes:
        return _sure(self._call("readlink", entry), bytes)

    def places(self, entry: Entry, /) -> list[Place]:
        return _sure(self._call("places", entry), list)

    def close(self) -> None:
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()

    __del__ = close

    # -- asking ------------------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        """A method of the file system: a value, an iterator over a listing, or a Reader."""
        answer = self._ask([method, 0, [], *args])
        if isinstance(answer, _Portion):
            return self._listing(answer, method, args)
        shape, *rest = answer
        return rest[0] if shape == "value" else self._content(shape, rest, method, args)

    def _folder(self, method: str, folder: Entry) -> Iterator[Entry | Named]:
        """The listing of a folder, perhaps with those that will be asked for next."""
        if self._guess:
            self._help(method, folder)
        known, ahead, place = self._ahead.take(method, folder)
        if known is not None:
            return iter(known)
        try:
            answer = self._ask([method, 0, ahead, folder])
        except BrowseError:
            if not ahead:
                raise
            self._ahead.rest()
            answer = self._ask([method, 0, [], folder])
        if not isinstance(answer, _Portion):
            raise _nonsense()
        if answer.number is not None or answer.error is not None:
            return self._listing(answer, method, (folder,), place)
        (_, _, found), *others = answer.split()
        self._ahead.expect(found, place)
        self._ahead.keep(method, others)
        if answer.more:
            with self._lock:
                self._go_on(method)
        return iter(found)

    # -- asking on suspicion: while one portion of a walk is looked at, the worker makes the next ---

    def _go_on(self, method: str) -> None:
        if self._worker is not None and not self._guess and not self._closed:
            with self._on_suspicion():
                self._worker.begin(_GO_ON)
                self._guess = method

    def _help(self, method: str, folder: Entry) -> None:
        """Answer the worker's reads. Where its answer is needed now, or there and soon needed, take it in."""
        needed = not self._ahead.has(method, folder)
        if not self._lock.acquire(blocking=needed):
            return
        try:
            ready = needed
            if self._worker is not None and self._guess and not needed:
                with self._on_suspicion():
                    ready = self._worker.serve() and self._ahead.is_low()
            guess = self._guess
            if ready and self._settle():
                self._go_on(guess)
        finally:
            self._lock.release()

    def _settle(self) -> bool:
        """Wait for the answer to what was asked on suspicion, and keep it; whether there is more of it."""
        method, self._guess = self._guess, ""
        if not method or self._worker is None:
            return False
        with self._on_suspicion():
            answer = _understood(*self._worker.finish(), "the file system")
            if not isinstance(answer, _Portion):
                raise _nonsense()
            self._ahead.keep(method, answer.split()[1:])
            return bool(answer.more)
        return False

    @contextmanager
    def _on_suspicion(self) -> Iterator[None]:
        """What fails is nobody's answer: those who ask for it will hear of it."""
        try:
            yield
        except (ImagefsError, WireError, WorkerDied) as error:
            self._ahead.rest()
            if not isinstance(error, ImagefsError):
                self._forget()
                self._deaths.append(time.monotonic())
        except BaseException:
            self._forget()
            raise

    def _listing(
        self, answer: _Portion, method: str, args: tuple[Any, ...], place: int | None = None
    ) -> Iterator[Entry | Named]:
        """Portion by portion. A worker that has lost its place begins again behind what is known."""
        known = 0
        while True:
            if place is not None:
                self._ahead.expect(answer.found, place)
            yield from answer.found
            known += len(answer.found)
            if answer.error is not None:
                raise unpack_error(answer.error)
            if answer.number is None:
                return
            answer = self._ask(["more", answer.number], args)
            if not isinstance(answer, _Portion):
                answer = self._ask([method, known, [], *args])

    def _content(self, shape: str, facts: list[Any], method: str, args: tuple[Any, ...]) -> Reader:
        if shape == "bytes":
            return BytesReader(_sure(facts[0], bytes))
        if shape == "pieces":
            size, raw, label = facts
            return MappedReader(self._reader, _sure(size, int), unpack_pieces(raw), label=_sure(label, str))
        number, size, raw = facts
        layout = None
        if raw is not None:
            layout = MappedReader(self._reader, size, unpack_pieces(raw), label=_shown(args))
        again = partial(self._ask, [method, 0, [], *args])
        read = partial(self._ask, args=args)
        return _HeldReader(_sure(size, int), number, read, again, label=_shown(args), layout=layout)

    def _ask(self, request: list[Any] | None, args: tuple[Any, ...] = ()) -> Any:
        """The answer to a request, None being that to opening. ``args`` name in errors what it was about."""
        body = self._opening if request is None else dumps(request)
        shown = _shown(args or (request or ())[3:])
        with self._lock:
            self._settle()
            self._check(body)
            try:
                if self._worker is None or request is None:
                    return self._start(None if request is None else body, shown)
                return _understood(*self._worker.call(body), shown)
            except WorkerDied as death:
                raise self._died(death, body, shown) from None
            except WireError as error:
                raise self._died(WorkerDied(f"cannot be understood ({error})"), body, shown) from None
            except ImagefsError:
                raise
            except BaseException:
                self._forget()
                raise

    def _start(self, body: bytes | None, shown: str) -> Any:
        """A new worker's answer, to its opening the file system where nothing else is asked."""
        worker = self._worker = Worker(self._reader, self._limits)
        try:
            opened = _understood(*worker.call(self._opening), "the file system")
        except ImagefsError:
            self._forget()
            raise
        return opened if body is None else _understood(*worker.call(body), shown)

    def _check(self, body: bytes) -> None:
        if self._closed:
            raise BrowseError("the file system is closed")
        now = time.monotonic()
        if body in self._deadly:
            since, message = self._deadly[body]
            if now - since < _WITHIN:
                raise BrowseError(message, hint="it is not tried again for a while")
            del self._deadly[body]
        if len(self._deaths) == _MAX_DEATHS and now - self._deaths[0] < _WITHIN:
            raise BrowseError(
                f"the file system is given up: its parser failed {_MAX_DEATHS} times",
                hint="it is badly damaged; the partition's raw bytes can still be read",
            )

    def _died(self, death: WorkerDied, body: bytes, shown: str) -> BrowseError:
        self._forget()
        if self._closed:
            return BrowseError("the file system is closed")
        now = time.monotonic()
        self._deaths.append(now)
        message = f"{shown} cannot be read: the process that parses the file system {death.why}"
        if death.own_fault:
            self._deadly[body] = now, message
        return BrowseError(message, hint="the file system is damaged there; the rest can still be read")

    def _forget(self) -> None:
        worker, self._worker, self._guess = self._worker, None, ""
        if worker is not None:
            worker.kill()


class _Portion:
    """A part of a listing: entries, the number to go on with, the error that ended it; further folders, and
    whether there are more of these."""

    def __init__(self, body: bytes) -> None:
        (self.number, self.error, self._folders, self.more), self.found = unpack_portion(body)

    def split(self) -> list[tuple[str, bytes, Found]]:
        """(address, path, listing) of each folder, the one that was asked for first and without a name."""
        counts = [int(count) for _, _, count in self._folders]
        at = len(self.found) - sum(counts)
        listings: list[tuple[str, bytes, Found]] = [("", b"", self.found[:at])]
        for (inode, path, _), count in zip(self._folders, counts, strict=True):
            listings.append((inode, path, self.found[at : at + count]))
            at += count
        return listings


class _HeldReader:
    """Content that the worker keeps open under a number."""

    def __init__(
        self,
        size: int,
        number: int,
        ask: Callable[[list[Any]], Any],
        again: Callable[[], Any],
        *,
        label: str,
        layout: MappedReader | None,
    ) -> None:
        self.size = size
        self._number = number
        self._ask = ask
        self._again = again
        self._label = label
        self._layout = layout
        self._closed = False

    def read_at(self, offset: int, length: int, /) -> bytes:
        count = clamp(self.size, offset, length)
        if self._closed:
            raise BrowseError(f"{self._label} is closed")
        ends = range(offset, offset + count, FETCH_SIZE)
        parts = [self._read(at, min(FETCH_SIZE, offset + count - at)) for at in ends]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, offset: int, count: int) -> bytes:
        data = self._ask(["read", self._number, offset, count])
        if not data:  # the worker does not know the number any more
            shape, *facts = self._again()
            if shape != "held" or facts[1] != self.size:
                raise BrowseError(f"{self._label} is no longer what it was")
            self._number = facts[0]
            data = self._ask(["read", self._number, offset, count])
        if type(data) is not bytes or len(data) != count:
            raise BrowseError(f"{self._label} cannot be read from byte {offset}")
        return data

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        count = clamp(self.size, offset, length)
        if self._layout is not None:
            return self._layout.extents(offset, count)
        return iter([Extent(State.STORED, offset, count)] if count else [])

    def close(self) -> None:
        self._closed = True


def _understood(letter: bytes, body: bytes, shown: str) -> Any:
    """The value of an answer, or the error that it is."""
    if letter == ch.CONTENT:
        return body
    if letter == ch.PORTION:
        return _Portion(body)
    if letter == ch.ANSWER:
        return loads(body)
    if letter != ch.ERROR:
        raise WireError("an answer of no kind")
    said = loads(body)
    if len(said) == 4:
        raise unpack_error(body)
    error = BrowseError(
        f"{shown} cannot be read: the parser failed ({said[0]})", hint="the file system is damaged there"
    )
    error.add_note(str(said[1]))
    raise error


def _shown(args: Any) -> str:
    """What a request is about, for a sentence."""
    for each in args:
        path = each.path if isinstance(each, Entry) else each
        if isinstance(path, bytes):
            return f"'{printable(path)}'"
    return "the file system"


def _sure(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _nonsense()
    return value


def _nonsense() -> BrowseError:
    return BrowseError("the process that parses the file system gave something else than was asked for")
