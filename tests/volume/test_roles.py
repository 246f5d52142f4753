"""Types and roles: against the type table of sfdisk."""

from __future__ import annotations

import uuid

import pytest

from imagefs.volume import describe, roles
from tests.support.oracles import tool_text

#: Words that must be in sfdisk's description of a type for the role we give it.
WORDS = {
    "swap": ("swap",),
    "lvm": ("LVM",),
    "raid": ("RAID", "raid"),
    "esp": ("EFI",),
    "bios-boot": ("BIOS boot",),
    "msr": ("Microsoft reserved",),
    "home": ("home",),
    "srv": ("server data",),
    "var": ("variable data",),
    "tmp": ("temporary data",),
    "root": ("root",),
    "usr": ("/usr",),
    "verity": ("verity",),
    "zfs": ("ZFS",),
    "bsd": ("BSD",),
    "chromeos": ("ChromeOS",),
    "ceph": ("Ceph",),
    "vmware": ("VMware", "VMKCORE"),
    "extended": ("xtended", "Ext'd"),
    "ldm": ("LDM", "SFS"),
    "minix": ("Minix",),
    "beos": ("BeOS",),
    "protective": ("GPT",),
}


def sfdisk_types(label: str) -> dict[str, str]:
    lines = (line.split(None, 1) for line in tool_text("sfdisk", "-T", "--label", label).splitlines())
    return {words[0].lower(): words[1] for words in lines if len(words) == 2 and words[0] != "Id"}


def check_words(role: str, theirs: str) -> None:
    wanted = WORDS.get(role)
    assert wanted is None or any(word in theirs for word in wanted), (role, theirs)


def test_gpt_types_mean_what_sfdisk_says() -> None:
    known = sfdisk_types("gpt")
    shared = set(known) & set(roles._GPT)
    assert len(shared) > 50
    for type_ in shared:
        check_words(roles.gpt_role(type_), known[type_])


def test_mbr_types_mean_what_sfdisk_says() -> None:
    known = sfdisk_types("dos")
    shared = {f"{type_:x}" for type_ in roles._MBR} & set(known)
    assert len(shared) > 35
    for type_ in shared:
        check_words(roles.mbr_role(int(type_, 16)), known[type_])


def test_the_guids_are_guids_in_lower_case() -> None:
    assert all(str(uuid.UUID(type_)) == type_ for type_ in roles._GPT)


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
        ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system"),
        ("0x0c", "FAT32 (LBA)"),
        ("0x99", ""),
        ("", ""),
        ("0x", ""),
        ("c12a7328-0000-0000-0000-000000000000", ""),
    ],
)
def test_descriptions(type_: str, words: str) -> None:
    assert describe(type_) == words


def test_unknown_types_have_no_role() -> None:
    assert roles.gpt_role(str(uuid.uuid4())) == ""
    assert roles.mbr_role(0x99) == ""
