"""Reads a content once, piece by piece, for all that is asked of it: digests, and what it contains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from imagefs.block.views import extents_of
from imagefs.browse.hashset import HashSet
from imagefs.errors import BrowseError
from imagefs.interfaces import Progress, Reader, State

PIECE = 1 << 20
_LOST = {State.SKIPPED: "were not captured", State.UNREADABLE: "could not be read from the source"}


@dataclass(frozen=True, slots=True)
class Content:
    """What must be true of a content. Each of ``needles`` must be in it, in one of its spellings; if there
    are ``hashes``, one of them must be its digest."""

    needles: tuple[tuple[bytes, ...], ...] = ()
    hashes: HashSet | None = None

    def matches(self, content: Reader, shown: str, progress: Progress) -> bool:
        """``shown`` names it in errors: ImagefsError where bytes cannot be had before it could be told."""
        sums = {kind: _hasher(kind) for kind in self.hashes.kinds} if self.hashes else {}
        missing = list(self.needles)
        longest = max((len(word) for needle in missing for word in needle), default=0)
        tail = b""
        # A hole is zeros: for who only searches, as many as the longest word has say as much as all of it.
        for piece in pieces(content, shown, progress, max_hole=None if sums else longest):
            for each in sums.values():
                each.update(piece)
            if missing:
                window = tail + piece
                missing = [needle for needle in missing if not any(word in window for word in needle)]
                tail = window[max(0, len(window) - longest + 1) :]
            if not missing and not sums:
                return True
        if missing or self.hashes is None:
            return not missing
        return self.hashes.holds({kind: each.digest() for kind, each in sums.items()})


def pieces(
    content: Reader, shown: str, progress: Progress, *, max_hole: int | None = None
) -> Iterator[bytes]:
    """The bytes of a content in order, holes without reading them and no longer than ``max_hole``.

    ``progress`` hears what was read. Raises BrowseError where bytes are not in the image: they would read
    as zeros.
    """
    for extent in extents_of(content, 0, content.size):
        lost = _LOST.get(extent.state)
        if lost:
            raise BrowseError(f"{extent.length} bytes of '{shown}' {lost}", path=shown, offset=extent.offset)
        if extent.state is State.ZERO:
            left = extent.length if max_hole is None else min(extent.length, max_hole)
            while left:
                yield bytes(min(left, PIECE))
                left -= min(left, PIECE)
            continue
        end = extent.offset + extent.length
        for offset in range(extent.offset, end, PIECE):
            piece = content.read_at(offset, min(PIECE, end - offset))
            yield piece
            progress.advance(len(piece))


def _hasher(kind: str) -> hashlib._Hash:
    return hashlib.new(kind, usedforsecurity=False)
