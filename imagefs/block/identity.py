"""Who a source is: model, serial number and WWN of the disk, as far as the kernel tells.

Nothing here is trusted further than a comparison of strings; all of it is bounded and cleaned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imagefs.block.sysfs import HOST, System, read_bytes, read_text

_LIMIT = 128


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """``model``, ``serial`` and ``wwn`` are those of the disk, empty where unknown; ``partition``
    is 0 for a whole disk; ``path`` is what the user named, ``size`` is in bytes."""

    path: str
    size: int
    model: str = ""
    serial: str = ""
    wwn: str = ""
    partition: int = 0


def identify_source(path: str, size: int, *, system: System = HOST) -> SourceIdentity:
    """The identity of a device or file. Never fails: what is not known stays empty."""
    number = system.number(path)
    disk = system.disk(number) if number else None
    folder = system.directory(disk) if disk else None
    if number is None or disk is None or folder is None:
        return SourceIdentity(clean(path, 4096), size)
    udev = system.udev(disk)
    return SourceIdentity(
        path=clean(path, 4096),
        size=size,
        model=_first(read_text(folder / "device/model"), udev.get("ID_MODEL", "").replace("_", " ")),
        serial=_first(*_serials(folder), udev.get("ID_SERIAL_SHORT", "")),
        wwn=_first(read_text(folder / "wwid"), read_text(folder / "device/wwid"), udev.get("ID_WWN", "")),
        partition=system.partition(number),
    )


def _serials(folder: Path) -> list[str]:
    """The places where drivers put a serial number: NVMe and MMC, virtio, SCSI, device mapper, md."""
    plain = ("device/serial", "serial")
    built = ("dm/uuid", "md/uuid")
    found = [read_text(folder / name) for name in plain]
    found.append(_page80(read_bytes(folder / "device/vpd_pg80")))
    return found + [read_text(folder / name) for name in built]


def _page80(page: bytes) -> str:
    """The serial number out of SCSI's vital product data page 0x80."""
    if len(page) < 4 or page[1] != 0x80:
        return ""
    length = int.from_bytes(page[2:4], "big")
    return page[4 : 4 + length].decode("ascii", "replace")


def _first(*candidates: str) -> str:
    """The first candidate that says anything; cheap bridges answer with rows of zeros."""
    for candidate in candidates:
        text = clean(candidate, _LIMIT)
        if text.strip("0 -.:_"):
            return text
    return ""


def clean(text: str, limit: int) -> str:
    """``text`` on one line, printable, without runs of blanks, of at most ``limit`` characters."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 4 * limit])
    return " ".join(shown.split())[:limit]
