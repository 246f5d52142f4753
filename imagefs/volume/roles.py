"""What the partition types mean: type GUIDs and MBR ids to a role word and a short description.

A table and two look-ups, nothing else. Roles are words a person reads in a listing; only ``esp``,
``swap`` and the like say what is inside: ``windows`` on a basic data partition may well be FAT.
"""

from __future__ import annotations

_GPT = {
    "024dee41-33e7-11d3-9d69-0008c781f39f": ("mbr", "MBR partition scheme"),
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": ("esp", "EFI system"),
    "21686148-6449-6e6f-744e-656564454649": ("bios-boot", "BIOS boot"),
    # Microsoft
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": ("msr", "Microsoft reserved"),
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": ("windows", "Microsoft basic data"),
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": ("recovery", "Windows recovery environment"),
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": ("ldm", "Windows LDM metadata"),
    "af9b60a0-1431-4f62-bc68-3311714a69ad": ("ldm", "Windows LDM data"),
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": ("storage-spaces", "Windows Storage Spaces"),
    "558d43c5-a1ac-43c0-aac8-d1472b2923d1": ("storage-replica", "Windows Storage Replica"),
    # Linux
    "0fc63daf-8483-4772-8e79-3d69d8477de4": ("linux", "Linux file system"),
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": ("swap", "Linux swap"),
    "e6d6d379-f507-44c2-a23c-238f2a3df928": ("lvm", "Linux LVM"),
    "a19d880f-05fc-4d3b-a006-743f0f84911e": ("raid", "Linux RAID"),
    "8da63339-0007-60c0-c436-083ac8230908": ("reserved", "Linux reserved"),
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": ("boot", "Linux extended boot"),
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": ("home", "Linux home"),
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": ("srv", "Linux server data"),
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": ("var", "Linux variable data"),
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": ("tmp", "Linux temporary data"),
    "773f91ef-66d4-49b5-bd83-d683bf40ad16": ("home", "Linux user home"),
    "44479540-f297-41b2-9af7-d131d5f0458a": ("root", "Linux root (x86)"),
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": ("root", "Linux root (x86-64)"),
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": ("root", "Linux root (ARM)"),
    "b921b045-1df0-41c3-af44-4c6f280d3fae": ("root", "Linux root (ARM-64)"),
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224": ("root", "Linux root (RISC-V-64)"),
    "8484680c-9521-48c6-9c11-b0720656f69e": ("usr", "Linux usr (x86-64)"),
    "b0e01050-ee5f-4390-949a-9101b17104e9": ("usr", "Linux usr (ARM-64)"),
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5": ("verity", "Linux root verity (x86-64)"),
    "df3300ce-d69f-4c92-978c-9bfb0f38d820": ("verity", "Linux root verity (ARM-64)"),
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": ("luks", "LUKS"),
    "7ffec5c9-2d00-49b7-8941-3ea10a5586b7": ("crypt", "Linux dm-crypt"),
    # Apple
    "48465300-0000-11aa-aa11-00306543ecac": ("apple", "Apple HFS/HFS+"),
    "7c3457ef-0000-11aa-aa11-00306543ecac": ("apple", "Apple APFS"),
    "53746f72-6167-11aa-aa11-00306543ecac": ("apple", "Apple Core Storage"),
    "55465300-0000-11aa-aa11-00306543ecac": ("apple", "Apple UFS"),
    "52414944-0000-11aa-aa11-00306543ecac": ("raid", "Apple RAID"),
    "426f6f74-0000-11aa-aa11-00306543ecac": ("boot", "Apple boot"),
    "69646961-6700-11aa-aa11-00306543ecac": ("boot", "Apple silicon boot"),
    "52637672-7900-11aa-aa11-00306543ecac": ("recovery", "Apple recovery"),
    "6a898cc3-1dd2-11b2-99a6-080020736631": ("zfs", "ZFS (also Solaris /usr)"),
    # BSD
    "83bd6b9d-7f41-11dc-be0b-001560b84f0f": ("boot", "FreeBSD boot"),
    "516e7cb4-6ecf-11d6-8ff8-00022d09712b": ("bsd", "FreeBSD disklabel"),
    "516e7cb5-6ecf-11d6-8ff8-00022d09712b": ("swap", "FreeBSD swap"),
    "516e7cb6-6ecf-11d6-8ff8-00022d09712b": ("bsd", "FreeBSD UFS"),
    "516e7cb8-6ecf-11d6-8ff8-00022d09712b": ("bsd", "FreeBSD Vinum"),
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": ("zfs", "FreeBSD ZFS"),
    "824cc7a0-36a8-11e3-890a-952519ad3f61": ("bsd", "OpenBSD data"),
    "49f48d32-b10e-11dc-b99b-0019d1879648": ("swap", "NetBSD swap"),
    "49f48d5a-b10e-11dc-b99b-0019d1879648": ("bsd", "NetBSD FFS"),
    # Machines and hypervisors
    "aa31e02a-400f-11db-9590-000c2911d1b8": ("vmfs", "VMware VMFS"),
    "9d275380-40ad-11db-bf97-000c2911d1b8": ("vmware", "VMware diagnostics"),
    "9198effc-31c0-11db-8f78-000c2911d1b8": ("vmware", "VMware reserved"),
    "fe3a2a5d-4f32-41a7-b725-accc3285a309": ("chromeos", "ChromeOS kernel"),
    "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec": ("chromeos", "ChromeOS root"),
    "2e0a753d-9e48-43b0-8337-b15192cb1b5e": ("chromeos", "ChromeOS reserved"),
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": ("boot", "PowerPC PReP boot"),
    "4fbd7e29-9d25-41b8-afd0-062c0ceff05d": ("ceph", "Ceph OSD"),
    "bfbfafe7-a34f-448a-9a5b-6213eb736c22": ("recovery", "Lenovo boot/recovery"),
    "f4019732-066e-4e12-8273-346c5641494f": ("recovery", "Sony boot/recovery"),
    "d3bfe2de-3daf-11df-ba40-e3a556d89593": ("intel-rst", "Intel Rapid Start"),
}

_MBR = {
    0x00: ("", "untyped"),
    0x01: ("fat", "FAT12"),
    0x04: ("fat", "FAT16 below 32 MiB"),
    0x05: ("extended", "extended"),
    0x06: ("fat", "FAT16"),
    0x07: ("windows", "NTFS, exFAT or HPFS"),
    0x0B: ("fat", "FAT32"),
    0x0C: ("fat", "FAT32 (LBA)"),
    0x0E: ("fat", "FAT16 (LBA)"),
    0x0F: ("extended", "extended (LBA)"),
    0x11: ("fat", "hidden FAT12"),
    0x12: ("recovery", "diagnostics or recovery"),
    0x14: ("fat", "hidden FAT16 below 32 MiB"),
    0x16: ("fat", "hidden FAT16"),
    0x17: ("windows", "hidden NTFS or HPFS"),
    0x1B: ("fat", "hidden FAT32"),
    0x1C: ("fat", "hidden FAT32 (LBA)"),
    0x1E: ("fat", "hidden FAT16 (LBA)"),
    0x27: ("recovery", "Windows recovery environment"),
    0x39: ("plan9", "Plan 9"),
    0x41: ("boot", "PowerPC PReP boot"),
    0x42: ("ldm", "Windows LDM (dynamic disk)"),
    0x63: ("unix", "GNU Hurd or SysV"),
    0x81: ("minix", "Minix"),
    0x82: ("swap", "Linux swap"),
    0x83: ("linux", "Linux file system"),
    0x84: ("hibernation", "hibernation"),
    0x85: ("extended", "Linux extended"),
    0x88: ("linux", "Linux plain text"),
    0x8E: ("lvm", "Linux LVM"),
    0xA0: ("hibernation", "laptop hibernation"),
    0xA5: ("bsd", "FreeBSD"),
    0xA6: ("bsd", "OpenBSD"),
    0xA8: ("apple", "Apple UFS"),
    0xA9: ("bsd", "NetBSD"),
    0xAB: ("boot", "Apple boot"),
    0xAF: ("apple", "Apple HFS/HFS+"),
    0xBE: ("boot", "Solaris boot"),
    0xBF: ("solaris", "Solaris"),
    0xDE: ("recovery", "Dell utility"),
    0xE8: ("luks", "LUKS"),
    0xEA: ("boot", "Linux extended boot"),
    0xEB: ("beos", "BeOS"),
    0xEE: ("protective", "GPT protective"),
    0xEF: ("esp", "EFI system"),
    0xFB: ("vmfs", "VMware VMFS"),
    0xFC: ("vmware", "VMware diagnostics"),
    0xFD: ("raid", "Linux RAID"),
}


def gpt_role(type_guid: str) -> str:
    """The role word of a GPT type GUID in lower case; empty for one we do not know."""
    return _GPT.get(type_guid, ("", ""))[0]


def mbr_role(type_id: int) -> str:
    """The role word of an MBR type; empty for one we do not know."""
    return _MBR.get(type_id, ("", ""))[0]


def describe(type_: str) -> str:
    """What a person calls the ``type`` of a Volume (a GUID, or ``0x0c``); empty if unknown."""
    if type_.startswith("0x") and len(type_) == 4:
        return _MBR.get(int(type_, 16), ("", ""))[1]
    return _GPT.get(type_.lower(), ("", ""))[1]
