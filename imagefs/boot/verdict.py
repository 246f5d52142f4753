"""What the firmware made of a disk, from what it said. Pure: texts in, a verdict out.

SeaBIOS speaks on its debug port, OVMF on the serial console; the words are theirs.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

#: Where the code of a boot sector ends and the partition table of an MBR begins.
BOOT_CODE = 440

_BIOS_STARTS = re.compile(r"Booting from [0-9a-f]{4}:[0-9a-f]{4}")
_BIOS_FAILS = re.compile(r"Boot failed: (.+)")
_BIOS_GIVES_UP = "No bootable device"
#: What boot sectors print that found nothing to go on with.
_COMPLAINTS = (
    "Missing operating system",
    "Invalid partition table",
    "Error loading operating system",
    "Operating System not found",
    "This is not a bootable disk",
    "Non-System disk",
    "NTLDR is missing",
    "BOOTMGR is missing",
    "No active partition",
    "Remove disks or other media",
)
_UEFI_STARTS = re.compile(r'BdsDxe: starting Boot[0-9A-F]{4} "([^"]*)" from (?!Fv\()')
_UEFI_STARTS_OWN = re.compile(r'BdsDxe: starting Boot[0-9A-F]{4} "[^"]*" from Fv\(')
_UEFI_FAILS = re.compile(r'BdsDxe: failed to (load|start) Boot[0-9A-F]{4} "[^"]*" from (?!Fv\()[^:]*: (.+)')
_UEFI_GIVES_UP = "BdsDxe: No bootable option or device was found"
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78cDEHM])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Firmware(enum.StrEnum):
    """The two kinds that PCs have."""

    BIOS = "bios"
    UEFI = "uefi"


class Stage(enum.Enum):
    """How far the firmware is."""

    WAITING = enum.auto()  # it has not come to booting
    STARTED = enum.auto()  # something from the disk runs
    GAVE_UP = enum.auto()  # there is nothing on the disk, or it came back, or says that it goes no further


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the firmware found a loader, and why; ``evidence`` are the lines that say so."""

    found: bool
    reason: str
    evidence: tuple[str, ...]


def plain(console: bytes) -> str:
    """What a terminal would have shown: no escape sequences, no control characters, no repeated blank lines."""
    text = _ESCAPES.sub("", console.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.rstrip() for line in _CONTROLS.sub("", text).splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip("\n")


def stage_of(firmware: Firmware, debug: str, shown: str, boot_sector: bytes) -> Stage:
    """How far it is, from what the debug port has said and console and screen have shown so far."""
    if firmware is Firmware.BIOS:
        started = _BIOS_STARTS.search(debug) is not None
        if _BIOS_GIVES_UP in debug or (started and (not _has_code(boot_sector) or _complaint(shown))):
            return Stage.GAVE_UP
        return Stage.STARTED if started else Stage.WAITING
    if _UEFI_GIVES_UP in shown or _UEFI_STARTS_OWN.search(shown):
        return Stage.GAVE_UP
    return Stage.STARTED if _UEFI_STARTS.search(shown) else Stage.WAITING


def judge(firmware: Firmware, debug: str, console: str, *, screen: str, boot_sector: bytes) -> Verdict:
    """The verdict at the end; ``screen`` is the text on it, ``boot_sector`` the first one of the disk."""
    if firmware is Firmware.BIOS:
        found, reason = _judge_bios(debug, screen + console, boot_sector)
        said = [
            line for line in debug.splitlines() if line.startswith(("Booting from", "Boot failed", "No boot"))
        ]
    else:
        found, reason = _judge_uefi(console)
        said = [line for line in console.splitlines() if line.startswith("BdsDxe:")]
    return Verdict(found, reason, tuple(said[:20]))


def _has_code(boot_sector: bytes) -> bool:
    """The sector of a disk that only holds data has a table and a signature, which is enough for a BIOS."""
    return any(boot_sector[:BOOT_CODE])


def _complaint(shown: str) -> str:
    return next((text for text in _COMPLAINTS if text in shown), "")


def _judge_bios(debug: str, shown: str, boot_sector: bytes) -> tuple[bool, str]:
    started = _BIOS_STARTS.search(debug) is not None
    if not started:
        failed = _BIOS_FAILS.search(debug)
        if failed:
            return False, f"the BIOS found nothing to boot: {failed[1].strip()}"
        gave_up = _BIOS_GIVES_UP in debug
        return False, "the BIOS found nothing to boot" if gave_up else "the BIOS did not come to booting"
    if not _has_code(boot_sector):
        return False, "the BIOS started the boot sector, but there is no code in it"
    complaint = _complaint(shown)
    if complaint:
        return False, f"the BIOS started the boot sector, which says: {complaint}"
    if _BIOS_GIVES_UP in debug:
        return False, "the BIOS started the boot sector, which gave back to it"
    return True, "the BIOS started the boot sector"


def _judge_uefi(console: str) -> tuple[bool, str]:
    failed = [(step, why.strip()) for step, why in _UEFI_FAILS.findall(console)]
    started = _UEFI_STARTS.search(console)
    if started:
        came_back = next((why for step, why in failed if step == "start"), None)
        ending = f", which came back: {came_back}" if came_back else ""
        return True, f'the UEFI firmware started the loader of "{started[1].strip()}"{ending}'
    if failed:
        return False, f"the UEFI firmware found no loader: {failed[0][1]}"
    if stage_of(Firmware.UEFI, "", console, b"") is Stage.GAVE_UP:
        return False, "the UEFI firmware found no loader"
    return False, "the UEFI firmware did not come to booting"
