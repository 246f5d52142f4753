"""What an image is, as one JSON document: for ``info`` and for ``image.json`` in a mount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from imagefs.cli.text import time_json
from imagefs.image.catalog import ImageInfo
from imagefs.image.disk import VirtualDisk
from imagefs.image.runs import RunTable
from imagefs.interfaces import State

if TYPE_CHECKING:
    from imagefs.ops.diskimage import DiskImage

#: What the summary says of the source, in the words of the command line (FORMAT.md, 6).
CONSISTENCY = {0: "none", 1: "offline", 2: "snapshot", 3: "none"}
#: More unreadable ranges than this are not listed in a document.
MAX_RANGES = 10_000
SHOWN = (State.STORED, State.ZERO, State.SKIPPED, State.UNREADABLE, State.ABSENT)


def image_row(info: ImageInfo, folder: str) -> dict[str, Any]:
    """One image of ``list``."""
    return {
        "id": info.id,
        "kind": info.header.kind.name.lower(),
        "parent": info.header.parent.hex if info.header.parent else None,
        "created": time_json(info.created),
        "path": os.path.join(folder, info.name),
        "disk_size": info.summary.disk_size,
        "stored_bytes": info.tail.size,
        "mode": info.header.mode.name.lower(),
        "consistency": CONSISTENCY.get(info.summary.consistency, "none"),
    }


def unreadable_ranges(image: DiskImage) -> list[dict[str, int]]:
    """What the source could not read when this image was made, in bytes of the disk."""
    return [{"offset": first, "length": count} for first, count in ranges_in(image, State.UNREADABLE)]


def ranges_in(image: DiskImage, state: State) -> list[tuple[int, int]]:
    """(offset, length) of what was skipped or unreadable when this image was made."""
    ranges = image.disk.chain.leaf.ranges()
    these = ranges.state == state
    return list(zip(ranges.first[these].tolist(), ranges.count[these].tolist(), strict=True))


def linear_digests(info: ImageInfo) -> dict[str, str]:
    """The digests of the whole device that were made while it was captured, in hex by name."""
    found = info.summary.facts.get("digests", {})
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def unreadable_bytes(info: ImageInfo) -> int:
    """How much the source could not read; 0 where the image does not say it in a number."""
    errors = info.summary.facts.get("errors")
    told = errors.get("bytes") if isinstance(errors, dict) else 0
    return told if isinstance(told, int) else 0


def image_document(image: DiskImage, folder: str) -> dict[str, Any]:
    """Every fact of one image: header, summary, chain, states and volumes."""
    info, disk, lost = image.info, image.disk, unreadable_ranges(image)
    header, summary = info.header, info.summary
    return image_row(info, folder) | {
        "set": header.set.hex,
        "chain": [layer.id for layer in disk.chain.infos],
        "chunk_size": header.chunk_size,
        "sector_size": header.sector_size,
        "codec": "zstd",
        "level": header.level,
        "digest": "blake3",
        "seal": info.tail.seal.hex(),
        "view_digest": summary.view.hex(),
        "started": time_json(summary.started),
        "ended": time_json(summary.ended),
        "read_bytes": summary.read_bytes,
        "frame_bytes": summary.frame_bytes,
        "source": header.facts.get("source", {}),
        "tool": header.facts.get("tool", ""),
        "note": header.facts.get("note", ""),
        "case": header.facts.get("case", {}),
        "host": header.facts.get("host", {}),
        "digests": linear_digests(info),
        "allocation": _allocation(info),
        "errors": summary.facts.get("errors", {}),
        "resumed": summary.facts.get("resumed"),
        "unreadable_bytes": unreadable_bytes(info),
        "unreadable": lost[:MAX_RANGES],
        "states": _states(disk.chain.table, disk, lost),
        "layer_states": _layer_states(disk, lost),
        "scheme": image.table.scheme,
        "disk_id": image.table.disk_id,
        "volumes": volume_rows(image),
    }


def volume_rows(image: DiskImage) -> list[dict[str, Any]]:
    """Every volume, each followed by those inside it. Those that hold others, or could, have ``state`` and ``message``
    (``needs`` where they are locked); shadow copies the time they were made."""
    from imagefs.ops.source import describe_volume  # with all that knows volumes; `list` does not need it

    rows = []
    readers = {volume.id: reader for volume, reader in image.readable_volumes()}
    made = image.inner.made
    for volume in image.all_volumes:
        row = describe_volume(volume, readers.get(volume.id))
        container = image.container(volume.id)
        if container is not None:
            row |= {"state": container.state, "message": container.message, "needs": list(container.needs)}
        if volume.inside:
            row |= {"inside": volume.inside, "start": None, "made": time_json(made.get(volume.id))}
        rows.append(row)
    return rows


def _allocation(info: ImageInfo) -> list[dict[str, Any]]:
    """What was captured of each volume in mode used, and by which map or why all of it."""
    found = info.summary.facts.get("allocation", [])
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [
        {name: str(row.get(name, "")) for name in ("id", "source", "whole")} | {"used": row["used"]}
        for row in rows
        if isinstance(row.get("used"), int)
    ]


def _states(table: RunTable, disk: VirtualDisk, lost: list[dict[str, int]]) -> dict[str, int]:
    """Bytes of the disk in each state; what was ``lost`` to the sector, the others in chunks."""
    size = disk.chunk_size
    found = {state: table.chunks_in(state) * size for state in SHOWN}
    short = disk.chain.leaf.chunks * size - disk.size
    last = table.find(disk.chain.leaf.chunks - 1)
    if short and last >= 0:
        found[State(int(table.state[last]))] -= short
    for row in lost:
        start, stop = row["offset"], row["offset"] + row["length"]
        found[State.UNREADABLE] += stop - start
        for run in table.between(start // size, -(-stop // size)):
            found[run.state] -= min(stop, (run.first + run.count) * size) - max(start, run.first * size)
    return {state.name.lower(): found[state] for state in SHOWN}


def _layer_states(disk: VirtualDisk, lost: list[dict[str, int]]) -> dict[str, int]:
    """The same of this layer alone; what it does not list is absent, so read through the parent."""
    chain = disk.chain
    table = chain.table if len(chain.infos) == 1 else chain.leaf.table(0)
    found = _states(table, disk, lost)
    return found | {"absent": disk.size - sum(found.values())}
