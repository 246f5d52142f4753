"""``imagefs info --growth``: which files, and which metadata, account for the size of one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagefs.cli.console import Console
from imagefs.cli.rows import path_fields
from imagefs.cli.text import quote, size_text
from imagefs.image.catalog import Catalog, ImageInfo

if TYPE_CHECKING:
    from imagefs.ops.diskimage import DiskImage
    from imagefs.ops.growth import Growth, Owner

#: So many shares are shown as text.
_SHOWN = 40


def say_growth(console: Console, catalog: Catalog, info: ImageInfo, disk: DiskImage) -> None:
    from imagefs.ops.growth import growth

    layers = disk.disk.chain.infos
    parent = catalog.open_disk(layers[-2]) if len(layers) > 1 else None
    try:
        with console.progress() as progress:
            found = growth(disk, parent, progress=progress)
    finally:
        if parent is not None:
            parent.close()
    stored = sum(size for _, size, _ in found.shares)
    console.document(
        {
            "image": info.id,
            "parent": layers[-2].id if len(layers) > 1 else None,
            "stored_bytes": stored + found.overhead,
            "chunks": found.chunks,
            "overhead": found.overhead,
            "shares": [_row(owner, size, chunks) for owner, size, chunks in found.shares],
            "notes": found.notes,
        }
    )
    for line in _lines(found, stored + found.overhead):
        console.line(line)
    for note in found.notes:
        console.warn(note)
        console.exit_code = 3


def _row(owner: Owner, size: int, chunks: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "volume": owner.volume,
        "kind": owner.kind,
        "bytes": size,
        "chunks": chunks,
    }
    if owner.name.startswith(b"/"):
        return row | path_fields("path", _shown(owner))
    return row | {"name": owner.name.decode()}


def _lines(found: Growth, total: int) -> list[str]:
    lines = [f"{total} bytes ({size_text(total)}), {found.chunks} chunks"]
    for owner, size, chunks in found.shares[:_SHOWN]:
        name = quote(_shown(owner)) if owner.name.startswith(b"/") else _words(owner)
        count = f"{chunks} chunk{'s' if chunks != 1 else ''}"
        lines.append(f"{size / total:>6.1%} {size_text(size):>10} {count:>12}  {owner.kind:<10} {name}")
    rest = found.shares[_SHOWN:]
    if rest:
        size = sum(each for _, each, _ in rest)
        lines.append(f"{size / total:>6.1%} {size_text(size):>10}  {len(rest)} more; all with --json")
    lines.append(f"{found.overhead / total:>6.1%} {size_text(found.overhead):>10}  header, index and facts")
    return lines


def _words(owner: Owner) -> str:
    words = owner.name.decode()
    return words if owner.volume is None else f"{words} of {owner.volume}"


def _shown(owner: Owner) -> bytes:
    return f"/{owner.volume}".encode() + (b"" if owner.name == b"/" else owner.name)
