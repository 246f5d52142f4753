"""What a worker says, as values of this process: a portion of a listing, content that the worker keeps open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from imagefs.block.views import clamp
from imagefs.browse import channel as ch
from imagefs.browse.ahead import Found
from imagefs.browse.content import FETCH_SIZE, MappedReader
from imagefs.browse.names import printable
from imagefs.browse.wire import WireError, loads, unpack_error, unpack_portion
from imagefs.errors import BrowseError
from imagefs.interfaces import Entry, Extent, State

T = TypeVar("T")


class Portion:
    """A part of a listing: entries, the number to go on with, the error that ended it; further folders, and
    whether there are ``more`` of these."""

    def __init__(self, body: bytes, *, more: bool) -> None:
        self.more = more
        (self.number, self.error, folders), self.found = unpack_portion(body)
        #: (address, path, listing) of each folder, the one that was asked for first and without a name.
        self.listings: list[tuple[str, bytes, Found]] = []
        try:
            at = len(self.found) - sum(sure(count, int) for _, _, count in folders)
            self.listings.append(("", b"", self.found[:at]))
            for inode, path, count in folders:
                self.listings.append((sure(inode, str), sure(path, bytes), self.found[at : at + count]))
                at += count
        except (ValueError, TypeError) as error:
            raise WireError(str(error)) from None


class HeldReader:
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


def understood(letter: bytes, body: bytes, shown: str) -> Any:
    """The value of an answer, or the error that it is."""
    if letter == ch.CONTENT:
        return body
    if letter in (ch.PORTION, ch.MORE):
        return Portion(body, more=letter == ch.MORE)
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


def shown_of(args: Any, what: str = "file system") -> str:
    """What a request is about, for a sentence."""
    for each in args:
        path = each.path if isinstance(each, Entry) else each
        if isinstance(path, bytes):
            return f"'{printable(path)}'"
    return f"the {what}"


def sure(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise nonsense()
    return value


def nonsense() -> BrowseError:
    return BrowseError("the process that parses the file system gave something else than was asked for")


def three(facts: list[Any]) -> list[Any]:
    """The facts of a content, as many as there should be."""
    if len(facts) != 3:
        raise nonsense()
    return facts


def answers_of(answer: Any) -> list[list[Any]]:
    """The contents of several files."""
    if type(answer) is not list or len(answer) != 2 or type(answer[1]) is not list:
        raise nonsense()
    if any(type(each) is not list or not each for each in answer[1]):
        raise nonsense()
    return answer[1]
