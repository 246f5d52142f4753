"""Whose disk it is: the facts a set remembers of its source, and whether another is the same one."""

from __future__ import annotations

from typing import Any

from imagefs.block.devices import DeviceReader
from imagefs.block.views import SliceReader
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader, Volume
from imagefs.volume import FileSystemFacts, VolumeTable, probe, read_table

#: More volumes than this are counted, not described, so that the summary fits in the tail.
MAX_VOLUMES = 64


def describe_source(reader: Reader, *, sector_size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(identity, volumes): what the header and the summary keep of a source.

    ``identity`` may hold path, size, model, serial, wwn, partition, sector sizes (of a device), disk_id
    and fs_uuid, each only where it is known. Contents that cannot be read or understood are left out, never an error.
    """
    identity: dict[str, Any] = {}
    if isinstance(reader, DeviceReader):
        found = reader.identity
        identity = {
            "path": found.path,
            "size": reader.size,
            "model": found.model,
            "serial": found.serial,
            "wwn": found.wwn,
            "partition": found.partition,
            "sector_size": reader.sector_size if reader.is_device else 0,
            "physical_sector_size": reader.physical_sector_size if reader.is_device else 0,
            # Of a file it shows whether an interrupted capture can be resumed.
            "mtime_ns": 0 if reader.is_device else reader.mtime_ns,
        }
    try:
        table = read_table(reader, sector_size=sector_size)
        # An MBR that nobody gave an id has zeros there, and says nothing.
        identity["disk_id"] = table.disk_id.strip("0") and table.disk_id
        volumes = describe_volumes(reader, table)
    except ImagefsError:
        return _known(identity), []
    if table.scheme == "none" and volumes:
        identity["fs_uuid"] = volumes[0]["uuid"]
    return _known(identity), volumes


def describe_volumes(reader: Reader, table: VolumeTable) -> list[dict[str, Any]]:
    """Each volume's number, place, type and what its first bytes say, as the summary keeps it."""
    return [
        describe_volume(volume, SliceReader(reader, volume.start, volume.length))
        for volume in table.volumes[:MAX_VOLUMES]
    ]


def describe_volume(volume: Volume, reader: Reader | None) -> dict[str, Any]:
    """One volume, of whose bytes nothing is said where ``reader`` is None."""
    facts = _probe(reader) if reader is not None else FileSystemFacts("")
    return {
        "id": volume.id,
        "start": volume.start,
        "length": volume.length,
        "type": volume.type,
        "role": volume.role,
        "name": volume.name[:72],
        "filesystem": facts.kind,
        "label": facts.label[:128],
        "uuid": facts.uuid[:64],
    }


def _probe(reader: Reader) -> FileSystemFacts:
    """What the first bytes of a volume say; nothing where they cannot be read."""
    try:
        return probe(reader)
    except ImagefsError:
        return FileSystemFacts("")


def difference(old: dict[str, Any], new: dict[str, Any], *, old_size: int, new_size: int | None) -> str:
    """Why ``new`` is another disk than ``old``; empty when it is the same one.

    The first sign that both have decides: serial number and WWN, then disk GUID or MBR id, then
    file-system UUID, then size, where a disk that grew is still the same. A sign that the old one
    had and the new one lost is a difference, except of the hardware: a raw copy has none.
    """
    for names in (("serial", "wwn"), ("disk_id",), ("fs_uuid",)):
        shared = [name for name in names if old.get(name) and new.get(name)]
        if shared:
            return _compare(shared, old, new)
        lost = [name for name in names if old.get(name)]
        if lost and names != ("serial", "wwn"):
            return f"it has no {_WORDS[lost[0]]}, the set's source has {old[lost[0]]}"
    if new_size is not None and new_size < old_size:
        return f"it has {new_size} bytes, the set's source has {old_size}"
    return ""


_WORDS = {
    "serial": "serial number",
    "wwn": "WWN",
    "disk_id": "disk id",
    "fs_uuid": "file-system UUID",
}


def _compare(names: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    for name in names:
        if old[name] != new[name]:
            return f"its {_WORDS[name]} is {new[name]}, that of the set's source is {old[name]}"
    if "serial" in names and old.get("partition", 0) != new.get("partition", 0):
        return "it is another partition of the same disk, or the whole of it"
    return ""


def _known(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if value}
