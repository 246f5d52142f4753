"""What folders need is read at once before they are listed: of ext and NTFS, where the reader has ``fetch``.

One by one, a folder costs a read for each of its blocks and one for each stretch of inodes or records that its
names lead to. Through a worker's socket those are what a walk takes longest for: they are asked for while folders
that are known are listed, so that nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from imagefs.browse import tskentry
from imagefs.browse.bigdir import KnownNames, Name, Names
from imagefs.browse.content import FetchMany, MappedReader
from imagefs.browse.tskhandle import Facts
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, EntryType

#: Folders up to this size are worth it; so many are remembered.
_SMALL, _MOST = 64 << 10, 2000
#: Reading begins with so many folders, and goes down in them until it has had so many.
_BEGUN, _ENOUGH = 64, 128
#: With fewer known folders than that ahead, more are read; every so many folders they are counted.
_LOW, _PAUSE = 192, 8
#: So few entries are not worth a look at what can be read at once.
_FEW = 3


class Soon:
    """The names of folders that will be listed soon. ``find_names`` gives those of one folder."""

    def __init__(self, facts: Facts, find_names: Callable[[Entry], Names | None]) -> None:
        self._table = facts.ext or facts.mft
        self._find_names = find_names
        self._fetch: FetchMany = getattr(facts.reader, "fetch", lambda ranges: None)
        self._is_here: Callable[[], bool] = getattr(facts.reader, "is_here", lambda: True)
        #: By number of inode or record; None of a folder that is not small.
        self._known: dict[int, KnownNames | None] = {}
        #: What is under way: each step takes in what was asked for, and asks for more.
        self._steps: Iterator[None] = iter(())
        self._pause = 0

    def take(self, folder: Entry) -> Names | None:
        """The names of a folder, where they are known."""
        return self._known.pop(tskentry.address(folder.inode), None) if self._known else None

    def expect(self, folders: Sequence[Entry]) -> None:
        """These will be listed next, and folders in them: have what that takes read, while others are listed."""
        if not folders:
            return
        first = tskentry.address(folders[0].inode)
        if first in self._known:
            self._go_on(folders)
        while first not in self._known:
            if next(self._steps, self) is self:
                self._steps = self._levels(self._coming(folders)[1])

    def _go_on(self, folders: Sequence[Entry]) -> None:
        """A step, where it need not be waited for. Nothing being under way, see whether it is time to begin."""
        if not self._is_here() or next(self._steps, self) is not self:
            return
        self._pause -= 1
        if self._pause < 0:
            self._pause = _PAUSE
            known, unknown = self._coming(folders)
            if known < _LOW and unknown:
                self._steps = self._levels(unknown)
                next(self._steps, None)

    def _coming(self, folders: Sequence[Entry]) -> tuple[int, list[int]]:
        """In the order in which a walk comes to ``folders`` and to folders in them: how many are known, and those
        that are not."""
        known, unknown, seen = 0, list[int](), set[int]()
        stack = [tskentry.address(each.inode) for each in reversed(folders)]
        for _ in range(_MOST):  # folders may be inside themselves
            if not stack or known >= _LOW or len(unknown) == _BEGUN:
                break
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            if number not in self._known:
                unknown.append(number)
                continue
            known += not unknown
            names = self._known[number]
            if names is not None:
                stack += [each for each in reversed(names.folders) if each not in seen]
        return known, unknown

    def _levels(self, numbers: list[int]) -> Iterator[None]:
        """Read the blocks of small folders, then the inodes or records that they name, then the folders among
        those."""
        done = 0
        if len(self._known) > _MOST:
            self._known.clear()
        while numbers and done < _ENOUGH:
            numbers = [each for each in dict.fromkeys(numbers) if each not in self._known][:_ENOUGH]
            done += len(numbers)
            yield from self._entries(numbers)
            found = self._small(numbers)
            self._ask_blocks(found.values())
            yield
            known = {number: KnownNames(names) for number, names in found.items()}
            self._known |= dict.fromkeys(numbers)
            self._known |= known
            yield from self._entries([each.inode for names in known.values() for each in names.all()])
            numbers = [each for names in known.values() for each in names.folders]

    def _small(self, numbers: list[int]) -> dict[int, Names]:
        """The names, not read yet, of those that are small folders."""
        found: dict[int, Names] = {}
        for number in numbers:
            with suppress(ImagefsError):
                names = self._find_names(Entry(b"", EntryType.DIRECTORY, 0, str(number)))
                if names is not None and names.size <= _SMALL:
                    found[number] = names
        return found

    def fetch_blocks(self, folders: Iterable[Names]) -> None:
        """Have the blocks of small folders read at once."""
        self._finish()
        self._ask_blocks(folders)

    def fetch_entries(self, names: list[Name]) -> None:
        """Have the inodes or records that ``names`` lead to read at once."""
        self._finish()
        for _ in self._entries([each.inode for each in names]):
            pass

    def _finish(self) -> None:
        """What is asked for next takes the place of what was."""
        for _ in self._steps:
            pass

    def _ask_blocks(self, folders: Iterable[Names]) -> None:
        contents = [getattr(names, "content", None) for names in folders]
        pieces = [
            each for content in contents if isinstance(content, MappedReader) for each in content.pieces
        ]
        if pieces:
            self._fetch((each.source, each.length) for each in pieces if each.source is not None)

    def _entries(self, numbers: list[int]) -> Iterator[None]:
        if self._table is None or len(numbers) <= _FEW:
            return iter(())
        return self._table.soon(numbers, self._fetch)
