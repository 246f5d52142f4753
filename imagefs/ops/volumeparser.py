"""Containers of volumes whose parsers run apart (``volumeworker.py``), and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagefs.block.joined import lost_in
from imagefs.browse.apart import ApartFileSystem
from imagefs.browse.workers import Limits
from imagefs.interfaces import Extent, Reader
from imagefs.volume.shadow import BLOCK

#: Of CPU, for what may make a key.
_SECONDS = 300


class VolumeParser(ApartFileSystem):
    """A parser of ``ops/volumeworker.py`` in a process of its own."""

    _module, _what = "imagefs.ops.volumeworker", "volume"

    def __init__(self, reader: Reader, parser: str, *, memory: int = 2 << 30) -> None:
        limits = Limits(memory=memory, cpu=_SECONDS, silence=_SECONDS, whole=2 * _SECONDS)
        super().__init__(reader, limits, {"parser": parser})

    def ask(self, method: str, *args: Any) -> Any:
        return self._call(method, *args)

    def __enter__(self) -> VolumeParser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True)
class LaterReader:
    """A Reader of a known size that is opened when first read."""

    size: int
    open: Callable[[], Reader]
    _opened: Reader | None = field(default=None)

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._opened is None:
            self._opened = self.open()
        return self._opened.read_at(offset, length)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def lost_of_shadow(reader: Reader, kept: Callable[[], bytes], size: int) -> list[Extent]:
    """What of a shadow copy nobody has: what the volume lost, but for the blocks that its stores keep."""
    lost = lost_in(reader)
    if not lost:
        return []
    blocks = np.unique(np.frombuffer(kept(), "<u8") // BLOCK).tolist()
    found, at = [], 0
    for each in lost:
        first, end = each.offset, min(each.offset + each.length, size)
        while at < len(blocks) and (blocks[at] + 1) * BLOCK <= first:
            at += 1
        here = at
        while first < end:
            held = blocks[here] * BLOCK if here < len(blocks) else end
            if held > first:
                found.append(Extent(each.state, first, min(held, end) - first))
            first = max(first, held + BLOCK)
            here += 1
    return found
