"""What can be asked for by name, and how its extents look in base:allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from imagefs.block.views import extents_of
from imagefs.interfaces import HOLES, Reader
from imagefs.nbd.protocol import StatusFlag

#: The most extents that one block status looks at; the client asks again from where it ends.
MAX_EXTENTS = 16_384


@dataclass(frozen=True, slots=True)
class Export:
    """A Reader under a name. ``block_size``, a power of two, is what it likes to be read in."""

    name: str
    reader: Reader
    description: str = ""
    block_size: int = 64 * 1024


def find_export(exports: Sequence[Export], name: str) -> Export | None:
    """By name; the empty name is the first one."""
    for export in exports:
        if name in (export.name, ""):
            return export
    return None


def statuses(reader: Reader, offset: int, length: int, *, one: bool) -> list[tuple[int, StatusFlag]]:
    """(length, flags) of the runs from ``offset``, one behind the other, at least one of them.

    What the source could not read is no hole: nobody knows that it was zeros.
    """
    rows: list[tuple[int, StatusFlag]] = []
    for extent in islice(extents_of(reader, offset, length), MAX_EXTENTS):
        flags = StatusFlag.HOLE | StatusFlag.ZERO if extent.state in HOLES else StatusFlag(0)
        if rows and rows[-1][1] == flags:
            rows[-1] = (rows[-1][0] + extent.length, flags)
        elif rows and one:
            break
        else:
            rows.append((extent.length, flags))
    return rows
