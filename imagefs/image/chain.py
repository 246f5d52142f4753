"""Chains: from an image through its parents to the full image, each held to its seal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from imagefs.errors import ChainError, FormatError, StoreError
from imagefs.format.header import Kind
from imagefs.format.trailer import StandsFor
from imagefs.image.reader import ImageReader
from imagefs.image.runs import RunTable, covers, crop, overlay_all
from imagefs.image.tail import ImageInfo

#: Longer chains are not believed.
MAX_LAYERS = 65_536

#: An image, and the images that it says it stands for.
Candidate = tuple[ImageInfo, Sequence[StandsFor]]
#: Finds an image by UUID: the image itself first, then any that may stand for it.
FindImages = Callable[[UUID], Iterable[Candidate]]


class Layers:
    """The images of a chain from full to leaf, each opened when it is first asked for. Thread-safe.

    ``close_image`` undoes ``open_image``.
    """

    def __init__(
        self,
        infos: Sequence[ImageInfo],
        open_image: Callable[[ImageInfo], ImageReader],
        close_image: Callable[[ImageReader], None] = ImageReader.close,
    ) -> None:
        self.infos = tuple(infos)
        self._open = open_image
        self._close = close_image
        self._readers: list[ImageReader | None] = [None] * len(infos)
        self._lock = threading.Lock()
        self._closed = False

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, number: int) -> ImageReader:
        """Raises FormatError, IntegrityError, StoreError; IndexError past the leaf."""
        return self._readers[number] or self._opened(number)

    def _opened(self, number: int) -> ImageReader:
        with self._lock:
            reader = self._readers[number]
            if reader is None:
                if self._closed:
                    raise StoreError(f"{self.infos[number].name} is closed")
                reader = self._readers[number] = self._open(self.infos[number])
            return reader

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            opened = [reader for reader in self._readers if reader is not None]
        for reader in opened:
            self._close(reader)


class Chain:
    """Layers from the full image to ``leaf``, and the table of runs they resolve to."""

    def __init__(self, layers: Layers, table: RunTable) -> None:
        self.layers = layers
        self.leaf = layers[len(layers) - 1]
        self.table = table

    @property
    def infos(self) -> tuple[ImageInfo, ...]:
        """The images, full first; asking opens none of them."""
        return self.layers.infos

    def close(self) -> None:
        self.layers.close()


def find_lineage(leaf: ImageInfo, find: FindImages, known: Sequence[ImageInfo] = ()) -> list[ImageInfo]:
    """The images that ``leaf`` reads through, the full one first and itself last; ``find`` knows the set.

    ``known`` is a lineage that was found there before; where it turns up it is not searched for again. Raises
    ChainError when a parent is missing or not the one the child was sealed with.
    """
    layers = [leaf]
    while layers[-1].header.parent is not None:
        if known and layers[-1] is known[-1] and len(known) + len(layers) <= MAX_LAYERS:
            return [*known, *layers[-2::-1]]
        if len(layers) >= MAX_LAYERS:
            raise ChainError(f"{leaf.name}: the chain has more than {MAX_LAYERS} layers")
        layers.append(find_parent(layers[-1], find))
    return layers[::-1]


def find_parent(child: ImageInfo, find: FindImages) -> ImageInfo:
    """The parent of ``child``; ChainError when it is missing or not the one it was sealed with."""
    assert child.header.parent is not None
    reasons = []
    for candidate, stands_for in find(child.header.parent):
        reason = mismatch(child, candidate, stands_for)
        if not reason:
            return candidate
        reasons.append(f"{candidate.name} {reason}")
    short = child.header.parent.hex[:8]
    if reasons:
        raise ChainError(
            f"the parent {short} of {child.name} is not the one it was made from: {'; '.join(reasons)}",
            hint="bring the original parent back from another copy of the set",
            image=child.id,
            parent=child.header.parent.hex,
        )
    raise ChainError(
        f"the parent {short} of {child.name} is not in the set",
        hint="put the image file with that id back beside it",
        image=child.id,
        parent=child.header.parent.hex,
    )


def mismatch(child: ImageInfo, parent: ImageInfo, stands_for: Sequence[StandsFor]) -> str:
    """Why ``parent`` is not what ``child`` was made from; empty when it is."""
    header = child.header
    if parent.uuid == header.parent:
        same = parent.tail.seal == header.parent_seal and parent.summary.view == header.parent_view
    else:
        wanted = (header.parent, header.parent_seal, header.parent_view)
        same = any((row.image, row.seal, row.view) == wanted for row in stands_for)
        same = same and parent.summary.view == header.parent_view
    if not same:
        return "has another seal"
    if parent.header.chunk_size != header.chunk_size or parent.header.sector_size != header.sector_size:
        return "has another chunk or sector size"
    if parent.header.created >= header.created:
        return "was made later"
    if header.kind is Kind.DIFFERENTIAL and parent.header.kind is not Kind.FULL:
        return "is not a full image, as a differential needs"
    return ""


def resolve(layers: Layers) -> RunTable:
    """What the layers show, laid over each other. Opens and reads all of them; FormatError for gaps."""
    tables = [layers[number].table(number) for number in range(len(layers))]
    for lower, upper, table in zip(layers.infos, layers.infos[1:], tables[1:], strict=False):
        _check_growth(lower, upper, table)
    return _complete(overlay_all(tables), layers)


def resolve_over(below: RunTable, layers: Layers) -> RunTable:
    """The same, with what all layers but the leaf resolve to in ``below``. Opens the leaf alone."""
    own = layers[len(layers) - 1].table(len(layers) - 1)
    _check_growth(layers.infos[-2], layers.infos[-1], own)
    return _complete(overlay_all([below, own]), layers)


def _complete(table: RunTable, layers: Layers) -> RunTable:
    leaf = layers.infos[-1]
    table = crop(table, leaf.tail.chunks)
    if not covers(table, 0, leaf.tail.chunks):
        raise FormatError(f"{leaf.name}: some chunks are in no layer of the chain", image=leaf.id)
    return table


def _check_growth(lower: ImageInfo, upper: ImageInfo, table: RunTable) -> None:
    """Absent is allowed only for chunks that lie wholly, and equally long, inside both disks."""
    if lower.summary.disk_size == upper.summary.disk_size:
        return
    shared = min(lower.summary.disk_size, upper.summary.disk_size) // upper.header.chunk_size
    if not covers(table, shared, upper.tail.chunks):
        raise FormatError(f"{upper.name}: chunks past the parent's disk are missing", image=upper.id)
