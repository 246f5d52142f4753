"""Chains: from an image through its parents to the full image, each held to its seal."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from imagefs.errors import ChainError, FormatError
from imagefs.format.header import Kind
from imagefs.image.reader import ImageReader
from imagefs.image.runs import RunTable, covers, crop, overlay_all

#: Longer chains are not believed.
MAX_LAYERS = 65_536

#: Finds an image by UUID: the image itself first, then any that may stand for it.
FindImages = Callable[[UUID], list[ImageReader]]


class Chain:
    """Layers from the full image to ``leaf``, and the table of runs they resolve to."""

    def __init__(self, layers: list[ImageReader]) -> None:
        self.layers = layers
        self.leaf = layers[-1]
        self.table: RunTable = _resolve(layers)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()


def open_chain(leaf: ImageReader, find: FindImages) -> Chain:
    """The chain of ``leaf``; ``find`` gives its ancestors. Closes what it opened when it fails.

    Raises ChainError when a parent is missing or not the one the child was sealed with.
    """
    layers = [leaf]
    try:
        while layers[-1].header.parent is not None:
            if len(layers) >= MAX_LAYERS:
                raise ChainError(f"{leaf.name}: the chain has more than {MAX_LAYERS} layers")
            layers.append(find_parent(layers[-1], find))
        return Chain(layers[::-1])
    except BaseException:
        for layer in layers[1:]:
            layer.close()
        raise


def find_parent(child: ImageReader, find: FindImages) -> ImageReader:
    """The open parent of ``child``; ChainError when it is missing or not the one it was sealed with."""
    assert child.header.parent is not None
    candidates = find(child.header.parent)
    chosen, reasons = None, []
    for candidate in candidates:
        reason = mismatch(child, candidate)
        if reason:
            reasons.append(f"{candidate.name} {reason}")
        if chosen is None and not reason:
            chosen = candidate
        else:
            candidate.close()
    if chosen is not None:
        return chosen
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


def mismatch(child: ImageReader, parent: ImageReader) -> str:
    """Why ``parent`` is not what ``child`` was made from; empty when it is."""
    header = child.header
    if parent.header.image == header.parent:
        same = parent.seal == header.parent_seal and parent.summary.view == header.parent_view
    else:
        wanted = (header.parent, header.parent_seal, header.parent_view)
        same = any((row.image, row.seal, row.view) == wanted for row in parent.stands_for())
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


def _resolve(layers: list[ImageReader]) -> RunTable:
    tables = [layer.table(number) for number, layer in enumerate(layers)]
    for lower, upper, table in zip(layers, layers[1:], tables[1:], strict=False):
        _check_growth(lower, upper, table)
    table = crop(overlay_all(tables), layers[-1].chunks)
    if not covers(table, 0, layers[-1].chunks):
        raise FormatError(f"{layers[-1].name}: some chunks are in no layer of the chain", image=layers[-1].id)
    return table


def _check_growth(lower: ImageReader, upper: ImageReader, table: RunTable) -> None:
    """Absent is allowed only for chunks that lie wholly, and equally long, inside both disks."""
    if lower.disk_size == upper.disk_size:
        return
    shared = min(lower.disk_size, upper.disk_size) // upper.header.chunk_size
    if not covers(table, shared, upper.chunks):
        raise FormatError(f"{upper.name}: chunks past the parent's disk are missing", image=upper.id)
