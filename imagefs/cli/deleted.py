"""What the browsing commands share for deleted files: their options, their places, how whole they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from imagefs.browse.deletedtree import DeletedTree
from imagefs.browse.names import repeated, shown_name
from imagefs.browse.walk import OnError
from imagefs.cli.text import quote
from imagefs.errors import BrowseError, PathNotFound, UsageError
from imagefs.interfaces import Entry, EntryType, FileSystem, Finding, KeepsDeleted, Reader, Whole

if TYPE_CHECKING:
    from imagefs.cli.console import Console

deleted_option = click.option("--deleted", is_flag=True, help="Deleted files, and how whole each one is.")
inode_option = click.option(
    "--inode",
    "inodes",
    metavar="ADDR",
    multiple=True,
    help="The file at this address of the volume that PATH names; `ls --deleted` shows it. May be repeated.",
)
WHY_NOT = {
    Whole.UNKNOWN: "nothing says where their bytes were",
    Whole.ABSENT: "their blocks are not in this image, which holds only what was in use",
}
#: Why a kind of file system has no deleted files to show, which is no fault of this one.
NONE_KEPT = {
    "hfs": "HFS+ takes the record of a deleted file out of its catalog, so none are listed; "
    "what is left of old catalog records in unused room is not searched for",
}
#: The words that come before a deleted name are padded to the longest.
_WIDTH = max(len(word) for word in Whole)


class Recoverable(DeletedTree):
    """The deleted files that there is something to take of; remembers those that were not whole."""

    def __init__(self, fs: FileSystem, *, onerror: OnError) -> None:
        super().__init__(fs, onerror=onerror)
        self.left_out: Counter[Whole] = Counter()
        self.not_whole: list[tuple[bytes, Whole]] = []

    def children(self, entry: Entry, /) -> Iterator[Entry]:
        for child in super().children(entry):
            word = self.wholeness(child) if child.deleted and child.type is EntryType.FILE else None
            if word in (Whole.UNKNOWN, Whole.ABSENT):
                self.left_out[word] += 1
            else:
                yield child

    def open(self, entry: Entry, /) -> Reader:
        reader = super().open(entry)
        word = self.wholeness(entry) if entry.deleted else Whole.INTACT
        if word is not Whole.INTACT:
            self.not_whole.append((entry.path, word))
        return reader


def deleted_findings(fs: FileSystem, entries: Sequence[Entry]) -> list[Finding]:
    """What to say of deleted files that were taken out: of a whole tree, or of ``entries`` alone."""
    left_out: Counter[Whole] = Counter()
    taken = [(entry.path, whole(fs, entry)) for entry in entries if entry.type is EntryType.FILE]
    if isinstance(fs, Recoverable):
        left_out, taken = fs.left_out, [*fs.not_whole]
    left = [
        Finding("warning", str(word), f"{count} deleted files are left out: {WHY_NOT[word]}")
        for word, count in left_out.items()
    ]
    return left + [
        Finding("warning", str(word), f"{quote(path)} is deleted, and what is left of it: {word}")
        for path, word in taken
        if word not in (None, Whole.INTACT)
    ]


def distinct_names(entries: Sequence[Entry]) -> list[bytes]:
    """A name for each entry; equal ones carry ``~<inode>``."""
    twice = repeated(entry.name for entry in entries)
    return [shown_name(entry.name, entry.inode, twice=twice) for entry in entries]


def deleted_entry(tree: DeletedTree, fs: FileSystem, path: bytes) -> Entry:
    """What ``path`` is in the tree; a live folder that leads to nothing deleted is itself."""
    try:
        return tree.lookup(path)
    except PathNotFound:
        try:
            return fs.lookup(path)
        except PathNotFound:
            pass
        raise


def entry_at(fs: FileSystem, address: str) -> Entry:
    """The entry at an address as ``fls`` prints it. Raises BrowseError."""
    if not isinstance(fs, KeepsDeleted):
        raise BrowseError(
            f"files of this {fs.kind} file system have no such addresses", hint="name the file by its path"
        )
    return fs.at(address)


def check_inodes(paths: Sequence[str], inodes: Sequence[str]) -> None:
    """With ``--inode`` there is one PATH, that of a volume."""
    if inodes and len(paths) != 1:
        raise UsageError("--inode goes with one PATH, which names the volume", hint="such as /p1")


def whole(fs: object, entry: Entry) -> Whole | None:
    """How whole a deleted entry is, None for a live one."""
    return fs.wholeness(entry) if entry.deleted and hasattr(fs, "wholeness") else None


def whole_lead(fs: object, entry: Entry) -> bytes:
    """What comes before the name of a deleted entry in text: how whole it is, and its address."""
    word = whole(fs, entry)
    return f"{word or '-':<{_WIDTH}} {entry.inode if entry.deleted else '-':<14} ".encode()


def whole_row(fs: object, entry: Entry) -> dict[str, Any]:
    word = whole(fs, entry)
    return {"whole": str(word)} if word is not None else {}


def tell_whole(console: Console, fs: object, entries: Iterable[tuple[bytes, Entry]]) -> None:
    """A warning for each file that is handed out and is not known to be whole; the run is incomplete then."""
    for shown, entry in entries:
        word = whole(fs, entry)
        if word not in (None, Whole.INTACT):
            console.warn(f"{quote(shown)} is deleted, and what is left of it: {word}")
            console.exit_code = 3


def only_deleted(entries: Iterator[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if entry.deleted)
