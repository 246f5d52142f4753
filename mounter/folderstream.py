"""An open directory: a listing that is read in pieces, by position, without holding all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mounter.attributes import Attributes

Item = tuple[bytes, Attributes]


class FolderStream:
    """Hands a listing out from any position; going on where the last piece ended costs nothing.

    ``since(offset)`` yields (position to go on from, name, attributes). A consumer that stops has
    not taken the last item it was given: the kernel's buffer was full. One consumer at a time.
    """

    def __init__(self, children: Callable[[], Iterator[Item]], own: Attributes) -> None:
        self._children = children
        self._own = own
        self._items: Iterator[Item] | None = None
        self._waiting: Item | None = None
        self._next = 0

    def since(self, offset: int) -> Iterator[tuple[int, bytes, Attributes]]:
        if self._items is None or offset != self._next:
            self._restart(offset)
        position = self._next
        while (item := self._waiting or self._peek()) is not None:
            position += 1
            yield position, *item
            self._waiting = None
            self._next = position

    def _restart(self, offset: int) -> None:
        self._items = self._all()
        self._waiting = None
        self._next = 0
        while self._next < offset and self._peek() is not None:
            self._waiting = None
            self._next += 1

    def _peek(self) -> Item | None:
        """The item at ``_next``, None at the end. After an error the listing starts over, so that
        asking again meets the error again and not a folder that seems to end here."""
        assert self._items is not None
        try:
            if self._waiting is None:
                self._waiting = next(self._items, None)
        except BaseException:
            self._items = None
            raise
        return self._waiting

    def _all(self) -> Iterator[Item]:
        yield b".", self._own
        yield b"..", self._own
        yield from self._children()
