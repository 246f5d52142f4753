"""Verdicts from what SeaBIOS 1.16.2 and OVMF 2022.11 said when they were asked, recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.boot.verdict import Firmware, Stage, judge, plain, stage_of

CODE = b"\xfa" + bytes(509) + b"\x55\xaa"
NO_CODE = bytes(510) + b"\x55\xaa"
BOOTED = (
    "All threads complete.\nenter handle_19:\n  NULL\nBooting from Hard Disk...\nBooting from 0000:7c00\n"
)
NOT_BOOTABLE = (
    "enter handle_19:\n  NULL\nBooting from Hard Disk...\nBoot failed: not a bootable disk\n\n"
    "enter handle_18:\n  NULL\nNo bootable device.\n"
)
GAVE_BACK = BOOTED + "enter handle_18:\n  NULL\nNo bootable device.\n"
DISK = '"UEFI QEMU HARDDISK QM00011 " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x5,0xFFFF,0x0)'
SHELL = (
    'BdsDxe: loading Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)/FvFile(7C04A583)\n'
    'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)/FvFile(7C04A583)\n'
)
STARTED = f"BdsDxe: loading Boot0001 {DISK}\nBdsDxe: starting Boot0001 {DISK}\n"
NOT_FOUND = f"BdsDxe: failed to load Boot0001 {DISK}: Not Found\n"
CAME_BACK = f"{STARTED}BdsDxe: failed to start Boot0001 {DISK}: Load Error\n{SHELL}"
NOTHING = (
    "BdsDxe: No bootable option or device was found.\nBdsDxe: Press any key to enter the Boot Manager Menu.\n"
)


@pytest.mark.parametrize(
    ("debug", "screen", "sector", "stage", "found", "reason"),
    [
        ("Running on QEMU", "", CODE, Stage.WAITING, False, "did not come to booting"),
        (BOOTED, "", CODE, Stage.STARTED, True, "started the boot sector"),
        (BOOTED, "", NO_CODE, Stage.GAVE_UP, False, "no code"),
        (BOOTED, "Missing operating system.", CODE, Stage.GAVE_UP, False, "says: Missing operating system"),
        (BOOTED, "BOOTMGR is missing\nPress", CODE, Stage.GAVE_UP, False, "says: BOOTMGR is missing"),
        (NOT_BOOTABLE, "", bytes(512), Stage.GAVE_UP, False, "not a bootable disk"),
        (GAVE_BACK, "", CODE, Stage.GAVE_UP, False, "gave back"),
        ("No bootable device.", "", CODE, Stage.GAVE_UP, False, "found nothing to boot"),
    ],
)
def test_a_bios(debug: str, screen: str, sector: bytes, stage: Stage, found: bool, reason: str) -> None:
    assert stage_of(Firmware.BIOS, debug, screen, sector) is stage
    verdict = judge(Firmware.BIOS, debug, "", screen=screen, boot_sector=sector)
    assert verdict.found is found
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("console", "stage", "found", "reason"),
    [
        ("", Stage.WAITING, False, "did not come to booting"),
        (STARTED + "hello", Stage.STARTED, True, '"UEFI QEMU HARDDISK QM00011"'),
        (NOT_FOUND + SHELL, Stage.GAVE_UP, False, "found no loader: Not Found"),
        (NOT_FOUND + NOTHING, Stage.GAVE_UP, False, "found no loader: Not Found"),
        (NOTHING, Stage.GAVE_UP, False, "found no loader"),
        (SHELL, Stage.GAVE_UP, False, "found no loader"),
        (CAME_BACK, Stage.GAVE_UP, True, "came back: Load Error"),
    ],
)
def test_uefi(console: str, stage: Stage, found: bool, reason: str) -> None:
    assert stage_of(Firmware.UEFI, "", console, CODE) is stage
    verdict = judge(Firmware.UEFI, "", console, screen="", boot_sector=CODE)
    assert verdict.found is found
    assert reason in verdict.reason
    assert len(verdict.evidence) == console.count("BdsDxe:")


def test_a_console_is_shown_without_what_only_a_terminal_understands() -> None:
    raw = (
        b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[40m\x1b[37mBdsDxe: loading\r\n\r\n\r\n\r\nmenu\x07\x00\x9b31m\tend\r"
    )
    assert plain(raw) == "BdsDxe: loading\n\nmenu�31m\tend"


@given(st.binary(max_size=300))
def test_no_console_brings_control_characters(raw: bytes) -> None:
    assert all(char in "\n\t" or ord(char) >= 32 for char in plain(raw))
    assert not any(0x7F <= ord(char) < 0xA0 for char in plain(raw))


@given(st.text(max_size=200))
def test_no_text_is_too_much(text: str) -> None:
    for firmware in Firmware:
        stage_of(firmware, text, text, CODE)
        judge(firmware, text, text, screen=text, boot_sector=b"")
