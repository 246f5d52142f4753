"""Who lists an inode: ext keeps no way back from a file to its directory, so it is searched for.

Directories are searched from the likely ones on, until all links of a file are found: those that are asked about
themselves, then outwards from the file's own number, as Linux puts a file near its directory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from imagefs.interfaces import Link

_ROOT = 2
#: Inodes before this one have no name, but for the root.
_FIRST_FILE = 11


class LinkSearch:
    """One search. ``folders`` are the numbers of all directories, ``listed`` tells the names in one, ``above`` the
    number of the directory that one says it lies in."""

    def __init__(
        self, folders: Sequence[int], listed: Callable[[int], list[Link]], above: Callable[[int], int]
    ) -> None:
        self._folders = sorted(folders)
        self._is_folder = frozenset(folders)
        self._listed = listed
        self._above = above
        self._searched: set[int] = set()
        self._left: dict[int, int] = {}
        self.links: list[Link] = []

    def find(self, counts: Mapping[int, int]) -> list[Link]:
        """All links of the inodes in ``counts`` (number and how many links it has), one of each directory above."""
        files = {number: count for number, count in counts.items() if number >= _FIRST_FILE}
        self._left = {number: count for number, count in files.items() if number not in self._is_folder}
        for number in counts:
            self._search(number)
        nearest = {number: self._nearest(number) for number in self._left}
        while self._left:
            for number in list(self._left):
                folder = next(nearest[number], None)
                if folder is None:
                    self._left.pop(number, None)
                else:
                    self._search(folder)
        self._climb([*files, *(link.parent for link in self.links)])
        return self.links

    def _search(self, folder: int) -> None:
        if folder in self._searched or folder not in self._is_folder:
            return
        self._searched.add(folder)
        for link in self._listed(folder):
            left = self._left.get(link.number)
            if left is None:
                continue
            self.links.append(link)
            if left > 1:
                self._left[link.number] = left - 1
            else:
                del self._left[link.number]

    def _nearest(self, number: int) -> Iterator[int]:
        """Directories by how near their numbers are, one before and one after in turn."""
        after = bisect_left(self._folders, number)
        before = after - 1
        while before >= 0 or after < len(self._folders):
            if before >= 0:
                yield self._folders[before]
            if after < len(self._folders):
                yield self._folders[after]
            before, after = before - 1, after + 1

    def _climb(self, numbers: list[int]) -> None:
        """A link of each of these that is a directory, and of all above it."""
        done: set[int] = set()
        while numbers:
            number = numbers.pop()
            if number in done or number == _ROOT or number not in self._is_folder:
                continue
            done.add(number)
            link = self._link_of_folder(number)
            if link is not None:
                self.links.append(link)
                numbers.append(link.parent)

    def _link_of_folder(self, number: int) -> Link | None:
        """In the directory that it says itself; else wherever it is."""
        for folder in chain([self._above(number)], self._nearest(number)):
            if folder in self._is_folder:
                for link in self._listed(folder):
                    if link.number == number:
                        return link
        return None
