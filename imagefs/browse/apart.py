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
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from typing import Any

from imagefs.block.views import BytesReader
from imagefs.browse import channel as ch
from imagefs.browse.ahead import Ahead, Files
from imagefs.browse.answers import HeldReader, Portion, answers_of, shown_of, sure, three, understood
from imagefs.browse.content import MappedReader
from imagefs.browse.crew import Crew
from imagefs.browse.wire import WireError, dumps, pack_entries, unpack_error, unpack_pieces
from imagefs.browse.workers import Limits, Worker, WorkerDied
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, FileSystem, Named, Place, Reader

#: Optional methods of a FileSystem. One that is added to ``interfaces.py`` is added here.
_SHARED = (
    *("names", "streams", "open_stream", "xattrs", "name_times", "deleted", "at", "wholeness"),
    *(
        "tables",
        "trace",
        "footprint",
        "holdings",
        "owners",
        "links",
        "listed",
        "entries",
        "identities",
        "structures",
    ),
)
#: A file system is given up after so many deaths in so many seconds; what was asked then fails at once for as
#: long as that.
_MAX_DEATHS, _WITHIN = 12, 900.0
_GO_ON = dumps(["go on"])


def open_apart(
    reader: Reader,
    *,
    limits: Limits | None = None,
    crew: Crew | None = None,
    after: FileSystem | None = None,
    **options: Any,
) -> FileSystem:
    """As ``open_filesystem``, with the parsers in a process of their own, one of ``crew``; ``options`` are its
    options: plain values and time zones. ``after`` is closed by this, and its worker goes on with the new one: a
    start saved."""
    plain = {
        name: ["zone", str(each)] if isinstance(each, tzinfo) else each for name, each in options.items()
    }
    worker = None
    if isinstance(after, ApartFileSystem):
        worker = after.leave_worker()
    elif after is not None:
        after.close()
    return ApartFileSystem(reader, limits or Limits(), plain, crew, worker)


@dataclass(frozen=True, slots=True)
class Guess:
    """A request that nobody has made yet, and what becomes of its answer."""

    request: bytes
    keep: Callable[[Any], None]


class ApartFileSystem:
    """A FileSystem in a worker, which is started again when it died. One request at a time."""

    _worker: Worker | None = None
    _crew: Crew | None = None

    #: What its worker runs, and what the sentences call what is parsed there.
    _module, _what = "imagefs.browse.worker", "file system"

    def __init__(
        self,
        reader: Reader,
        limits: Limits,
        options: dict[str, Any],
        crew: Crew | None = None,
        worker: Worker | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._crew = crew
        self._reader = reader
        self._limits = limits
        self._opening = dumps(["open filesystem", reader.size, options])
        self._closed = False
        self._ahead = Ahead()
        self._files = Files()
        #: What was asked on suspicion and nobody waits for yet.
        self._guess: Guess | None = None
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._deadly: dict[bytes, tuple[float, str]] = {}
        self._inherited = worker
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
        return sure(self._call("root"), Entry)

    def lookup(self, path: bytes, /) -> Entry:
        return sure(self._call("lookup", path), Entry)

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        return self._folder("children", entry)  # type: ignore[return-value]

    def open(self, entry: Entry, /) -> Reader:
        """The content of a file. Who opens files in the order of a listing gets many with one request."""
        if self._guess is not None:
            self._help(needed=not self._files.has(entry), soon=False)
        answer, following = self._files.take(entry)
        if answer is None and following:
            answer = self._opened([entry, *following])
        if answer is None:
            content: Reader = self._call("open", entry)
            return content
        if self._guess is None and self._files.is_low():
            with self._lock:
                self._suspect(self._next_contents())
        shape, *facts = answer
        return self._content(shape, facts, "open", (entry,))

    def _opened(self, files: list[Entry]) -> list[Any] | None:
        """What is known of the content of the first file; that of the others is kept."""
        try:
            answers = answers_of(self._ask(_contents_of(files), (files[0],)))
        except BrowseError:
            self._files.rest()
            return None
        self._files.keep(files[1:], answers[1:])
        return answers[0] if answers else None

    def readlink(self, entry: Entry, /) -> bytes:
        return sure(self._call("readlink", entry), bytes)

    def places(self, entry: Entry, /) -> list[Place]:
        return sure(self._call("places", entry), list)

    def rest(self) -> None:
        """Let the worker go until the next request; not while there is one."""
        if self._lock.acquire(blocking=False):
            try:
                self._forget()
                if self._crew is not None:
                    self._crew.leaves(self)
            finally:
                self._lock.release()

    def close(self) -> None:
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()
        if self._lock.acquire(blocking=False):  # else whoever has it is told, and forgets the worker
            try:
                self._forget()
            finally:
                self._lock.release()
        if self._crew is not None:
            self._crew.leaves(self)

    __del__ = close

    def leave_worker(self) -> Worker | None:
        """Close this file system, but for its worker, which is the caller's."""
        with self._lock:
            self._settle()
            worker, self._worker, self._closed = self._worker, None, True
        if self._crew is not None:
            self._crew.leaves(self)
        return worker

    # -- asking ------------------------------------------------------------------------------------

    def _call(self, method: str, *args: Any) -> Any:
        """A method of the file system: a value, an iterator over a listing, or a Reader."""
        answer = self._ask([method, 0, [], *args])
        if isinstance(answer, Portion):
            return self._listing(answer, method, args)
        shape, *rest = answer
        return rest[0] if shape == "value" else self._content(shape, rest, method, args)

    def _folder(self, method: str, folder: Entry) -> Iterator[Entry | Named]:
        """The listing of a folder, perhaps with those that will be asked for next."""
        if self._guess is not None:
            self._help(needed=not self._ahead.has(method, folder), soon=self._ahead.is_low())
        known, ahead, place = self._ahead.take(method, folder)
        if known is not None:
            self._files.note(known)
            return iter(known)
        try:
            answer = self._ask([method, 0, ahead, folder])
        except BrowseError:
            if not ahead:
                raise
            self._ahead.rest()
            answer = self._ask([method, 0, [], folder])
        portion = sure(answer, Portion)
        if portion.number is not None or portion.error is not None:
            return self._listing(portion, method, (folder,), place)
        (_, _, found), *others = portion.listings
        self._ahead.expect(found, place)
        self._ahead.keep(method, others)
        if portion.more:
            with self._lock:
                self._suspect(self._next_portion(method))
        self._files.note(found)
        return iter(found)

    # -- asking on suspicion: while one portion is looked at, the worker makes the next -------------

    def _suspect(self, guess: Guess | None) -> None:
        if guess is not None and self._worker is not None and self._guess is None and not self._closed:
            with self._on_suspicion():
                self._worker.begin(guess.request)
                self._guess = guess

    def _help(self, *, needed: bool, soon: bool) -> None:
        """Answer the worker's reads. Where its answer is needed now, or there and soon needed, take it in."""
        if not self._lock.acquire(blocking=needed):
            return
        try:
            ready = needed
            if self._worker is not None and self._guess is not None and not needed:
                with self._on_suspicion():
                    ready = self._worker.serve() and soon
            if ready:
                self._settle(go_on=True)
        finally:
            self._lock.release()

    def _settle(self, *, go_on: bool = False) -> None:
        """Wait for the answer to what was asked on suspicion, and keep it. ``go_on``: where there is more of it,
        that is asked for before we look at this, so that the worker does not wait for us."""
        guess, self._guess = self._guess, None
        if guess is None or self._worker is None:
            return
        with self._on_suspicion():
            letter, body = self._worker.finish()
            if go_on and letter == ch.MORE:
                self._suspect(guess)
            guess.keep(understood(letter, body, "the file system"))

    def _next_portion(self, method: str) -> Guess:
        """More folders of a walk."""

        def keep(answer: Any) -> None:
            self._ahead.keep(method, sure(answer, Portion).listings[1:])

        return Guess(_GO_ON, keep)

    def _next_contents(self) -> Guess | None:
        """The content of files behind those that were opened."""
        files = self._files.coming(*self._ahead.next("children"))
        if not files:
            return None

        def keep(answer: Any) -> None:
            self._files.keep(files, answers_of(answer))

        return Guess(dumps(_contents_of(files)), keep)

    @contextmanager
    def _on_suspicion(self) -> Iterator[None]:
        """What fails is nobody's answer: those who ask for it will hear of it."""
        try:
            yield
        except (ImagefsError, WireError, WorkerDied) as error:
            self._ahead.rest()
            self._files.rest()
            if not isinstance(error, ImagefsError):
                self._forget()
                self._deaths.append(time.monotonic())
        except BaseException:
            self._forget()
            raise

    def _listing(
        self, answer: Portion, method: str, args: tuple[Any, ...], place: int | None = None
    ) -> Iterator[Entry | Named]:
        """Portion by portion. A worker that has lost its place begins again behind what is known."""
        known = 0
        while True:
            if place is not None:
                self._ahead.expect(answer.found, place)
            self._files.note(answer.found)
            yield from answer.found
            known += len(answer.found)
            if answer.error is not None:
                raise unpack_error(answer.error)
            if answer.number is None:
                return
            answer = self._ask(["more", answer.number], args)
            if not isinstance(answer, Portion):
                answer = self._ask([method, known, [], *args])

    def _content(self, shape: str, facts: list[Any], method: str, args: tuple[Any, ...]) -> Reader:
        if shape == "bytes":
            return BytesReader(sure(facts[0], bytes))
        if shape == "pieces":
            size, raw, label = three(facts)
            return MappedReader(self._reader, sure(size, int), unpack_pieces(raw), label=sure(label, str))
        number, size, raw = three(facts)
        layout = None
        if raw is not None:
            layout = MappedReader(self._reader, size, unpack_pieces(raw), label=shown_of(args, self._what))
        again = partial(self._ask, [method, 0, [], *args])
        read = partial(self._ask, args=args)
        return HeldReader(
            sure(size, int), number, read, again, label=shown_of(args, self._what), layout=layout
        )

    def _ask(self, request: list[Any] | None, args: tuple[Any, ...] = ()) -> Any:
        """The answer to a request, None being that to opening. ``args`` name in errors what it was about."""
        body = self._opening if request is None else dumps(request)
        shown = shown_of(args or (request or ())[3:], self._what)
        with self._lock:
            self._settle()
            self._check(body)
            if self._crew is not None:
                self._crew.works(self)
            try:
                if self._worker is None or request is None:
                    return self._start(None if request is None else body, shown)
                return understood(*self._worker.call(body), shown)
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
        worker, self._inherited = self._inherited, None
        if worker is None:
            worker = Worker(self._reader, self._limits, module=self._module)
        else:
            worker.turn_to(self._reader)
        self._worker = worker
        try:
            opened = understood(*worker.call(self._opening), "the file system")
        except ImagefsError:
            self._forget()
            raise
        return opened if body is None else understood(*worker.call(body), shown)

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
        message = f"{shown} cannot be read: the process that parses the {self._what} {death.why}"
        if death.own_fault:
            self._deadly[body] = now, message
        return BrowseError(message, hint=f"the {self._what} is damaged there; the rest can still be read")

    def _forget(self) -> None:
        worker, self._worker, self._guess = self._worker, None, None
        if worker is not None:
            worker.kill()


def _contents_of(files: list[Entry]) -> list[Any]:
    return ["contents", 0, [], pack_entries(files)]
