"""An open directory: a listing that is read in pieces, by position, without holding all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

from mounter.attributes import Attributes

Item = tuple[bytes, Attributes]
#: Items that are held at once.
_PIECE = 512


class FolderStream:
    """Hands a listing out from any position; going on where the last piece ended costs nothing.

    An error comes behind what could be listed before it, and again whenever that place is asked for: a
    folder never seems to end there. One consumer at a time.
    """

    def __init__(self, children: Callable[[], Iterator[Item]], own: Attributes) -> None:
        self._children = children
        self._own = own
        self._items: Iterator[Item] | None = None
        self._piece: list[Item] = []
        self._first = 0
        self._failure: BaseException | None = None

    def at(self, offset: int) -> list[Item]:
        """Some of the items from position ``offset`` on, at least one, or none at the end."""
        if self._items is None or offset < self._first:
            self._items = chain([(b".", self._own), (b"..", self._own)], self._children())
            self._piece, self._first, self._failure = [], 0, None
        while offset >= self._first + len(self._piece):
            piece = self._next_piece()
            if not piece:
                return []
            self._first += len(self._piece)
            self._piece = piece
        return self._piece[offset - self._first :]

    def _next_piece(self) -> list[Item]:
        assert self._items is not None
        piece: list[Item] = []
        try:
            if self._failure is None:
                piece.extend(islice(self._items, _PIECE))
        except BaseException as error:
            self._failure = error
        if self._failure is not None and not piece:
            self._items = None
            raise self._failure
        return piece
