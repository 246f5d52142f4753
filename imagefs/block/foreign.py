"""Files that hold a disk but are not one: images of other programs, archives, compressed data.

Captured as they are, they would give an image in which nothing can be browsed. Recognises by magic
numbers only; reads the first sectors and the last, believes no length it finds.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from imagefs.block.views import clamp
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader

#: The first bytes of an imagefs image.
IMAGEFS_MAGIC = b"\x89imgfs\r\n"

_HEAD = 4096
_TAIL = 512


@dataclass(frozen=True, slots=True)
class ForeignImage:
    """``kind`` is a short word, ``name`` what people call it, ``advice`` a way to get at the disk in
    it (``SOURCE`` standing for the file), ``refuse`` whether it holds a disk inside a container
    and must not be captured as if it were one (else it deserves a warning)."""

    kind: str
    name: str
    advice: str
    refuse: bool = True

    def hint(self, path: str) -> str:
        """``advice`` for the file at ``path``; the name can be pasted into a shell."""
        return self.advice.replace("SOURCE", shlex.quote(path))


def _qemu(kind: str, name: str, form: str = "") -> ForeignImage:
    advice = f"convert it with: qemu-img convert -f {form or kind} -O raw SOURCE disk.raw"
    return ForeignImage(kind, name, advice)


def _packed(kind: str, name: str, command: str) -> ForeignImage:
    return ForeignImage(kind, name, f"feed it in with: {command} SOURCE | imagefs capture - SET")


def _evidence(kind: str, name: str) -> ForeignImage:
    return ForeignImage(kind, name, "show it as a raw disk with: ewfmount SOURCE DIR, and take DIR/ewf1")


def _archive(kind: str, name: str, advice: str) -> ForeignImage:
    return ForeignImage(kind, name, advice)


_IMAGEFS = ForeignImage(
    "imagefs", "an imagefs image", "take the disk in it with: imagefs restore SOURCE disk.raw"
)
_FILES_ONLY = "it holds files, not a disk: unpack it where they are wanted"

#: What stands at byte 0. A longer magic goes before a shorter one that begins the same way.
_AT_START: tuple[tuple[bytes, ForeignImage], ...] = (
    (b"QFI\xfb\0\0\0\x01", _qemu("qcow", "a QEMU image, version 1 (qcow)")),
    (b"QFI\xfb", _qemu("qcow2", "a QEMU image (qcow2)")),
    (b"QED\0", _qemu("qed", "a QEMU image (QED)")),
    (b"KDMV", _qemu("vmdk", "a VMware disk (VMDK)")),
    (b"COWD", _qemu("vmdk", "a VMware ESX disk (VMDK, COWD)")),
    (b"vhdxfile", _qemu("vhdx", "a Hyper-V disk (VHDX)")),
    (b"WithoutFreeSpace", _qemu("parallels", "a Parallels disk")),
    (b"WithouFreSpacExt", _qemu("parallels", "a Parallels disk")),
    (b"Bochs Virtual HD Image", _qemu("bochs", "a Bochs disk")),
    (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", _qemu("cloop", "a compressed loop image (cloop)")),
    (b"EVF\x09\x0d\x0a\xff\x00", _evidence("ewf", "an EnCase image (E01)")),
    (b"EVF2\x0d\x0a\x81\x00", _evidence("ewf2", "an EnCase image, version 2 (Ex01)")),
    (b"LVF\x09\x0d\x0a\xff\x00", _archive("lef", "an EnCase file archive (L01)", _FILES_ONLY)),
    (b"LEF2\x0d\x0a\x81\x00", _archive("lef2", "an EnCase file archive (Lx01)", _FILES_ONLY)),
    (
        b"AFF10\r\n\0",
        _archive("aff", "an AFF image", "show it as a raw disk with: xmount --in aff SOURCE DIR"),
    ),
    (
        b"partclone-image",
        _archive(
            "partclone",
            "a partclone image",
            "turn it back into a file system with: partclone.restore -W -C -s SOURCE -O disk.raw",
        ),
    ),
    (
        b"\0ntfsclone-image",
        _archive(
            "ntfsclone",
            "an ntfsclone image",
            "turn it back into a file system with: ntfsclone --restore-image -O disk.raw SOURCE",
        ),
    ),
    (b"MSWIM\0\0\0", _archive("wim", "a Windows image of files (WIM)", _FILES_ONLY)),
    (
        b"\x3a\xff\x26\xed\x01\0",
        _archive("sparse", "an Android sparse image", "convert it with: simg2img SOURCE disk.raw"),
    ),
    (b"\xfd7zXZ\0", _packed("xz", "xz-compressed data", "xz -dc")),
    (b"\x28\xb5\x2f\xfd", _packed("zstd", "zstd-compressed data", "zstd -dc")),
    (b"\x04\x22\x4d\x18", _packed("lz4", "lz4-compressed data", "lz4 -dc")),
    (b"7z\xbc\xaf\x27\x1c", _packed("7z", "a 7-Zip archive", "7z x -so")),
)


def identify(reader: Reader, *, magic: bytes = IMAGEFS_MAGIC) -> ForeignImage | None:
    """What kind of image or archive ``reader`` holds; None for a raw disk, or what cannot be read.

    ``magic`` is what an imagefs image begins with.
    """
    head = _read(reader, 0, _HEAD)
    if magic and head.startswith(magic):
        return _IMAGEFS
    for start, foreign in _AT_START:
        if head.startswith(start):
            return foreign
    tail = _read(reader, max(0, reader.size - _TAIL), _TAIL)
    for look in _LOOKS:
        found = look(reader, head, tail)
        if found is not None:
            return found
    return None


def _read(reader: Reader, offset: int, length: int) -> bytes:
    """An unreadable first sector is no reason not to capture the rest."""
    try:
        return reader.read_at(offset, clamp(reader.size, offset, length))
    except ImagefsError:
        return b""


# -- magics that need a second look: short ones, and those that are not at byte 0 -----------------


def _vdi(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe" and head[0x46:0x48] in (b"\0\0", b"\x01\0"):
        return _qemu("vdi", "a VirtualBox disk (VDI)")
    return None


def _vmdk_descriptor(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if head[:64].lstrip().lower().startswith(b"# disk descriptorfile"):
        return _qemu("vmdk", "the description of a VMware disk (VMDK) whose bytes lie in other files")
    return None


def _vhd(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if _is_growing_vhd(reader, head[:512]) or _is_growing_vhd(reader, tail) or _is_fixed_vhd(reader, tail):
        return _qemu("vhd", "a Virtual PC or Hyper-V disk (VHD)", "vpc")
    return None


def _is_growing_vhd(reader: Reader, footer: bytes) -> bool:
    """A dynamic or differencing disk: the footer, first and last, points to a second header. Its sum
    is not asked for: there are disks about whose sum is wrong, and raw disks they are not."""
    if footer[:8] != b"conectix" or footer[60:64] not in (b"\0\0\0\3", b"\0\0\0\4"):
        return False
    return _read(reader, int.from_bytes(footer[16:24], "big"), 8) == b"cxsparse"


def _is_fixed_vhd(reader: Reader, footer: bytes) -> bool:
    """A raw disk with a footer behind it. A raw disk may also hold a VHD file that ends where it ends:
    only a footer that is sound and describes exactly this file counts."""
    if len(footer) != 512 or footer[:8] != b"conectix" or footer[60:64] != b"\0\0\0\2":
        return False
    total = sum(footer) - sum(footer[64:68])
    if ~total & 0xFFFFFFFF != int.from_bytes(footer[64:68], "big"):
        return False
    return int.from_bytes(footer[48:56], "big") == reader.size - 512


def _dmg(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    """UDIF: a trailer of 512 bytes that says so itself."""
    if tail[:4] == b"koly" and tail[8:12] == b"\0\0\x02\0":
        return _qemu("dmg", "an Apple disk image (DMG)")
    return None


def _gzip(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if head[:3] == b"\x1f\x8b\x08" and head[3:4] < b"\x20":
        return _packed("gzip", "gzip-compressed data", "gzip -dc")
    return None


def _bzip2(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if head[:3] == b"BZh" and head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return _packed("bzip2", "bzip2-compressed data", "bzip2 -dc")
    return None


def _zip(reader: Reader, head: bytes, tail: bytes) -> ForeignImage | None:
    if head[:4] != b"PK\x03\x04":
        return None
    if b"container.description" in head[:512] or b"information.turtle" in head[:512]:
        return _archive("aff4", "an AFF4 image", "export a raw disk from it with the program that made it")
    return _packed("zip", "a ZIP archive", "unzip -p")


_LOOKS: tuple[Callable[[Reader, bytes, bytes], ForeignImage | None], ...] = (
    _vdi,
    _vmdk_descriptor,
    _vhd,
    _dmg,
    _gzip,
    _bzip2,
    _zip,
)
