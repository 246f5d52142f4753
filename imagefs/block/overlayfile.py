"""The file behind a writable view: which blocks of a disk were changed, and what they hold now.

One sparse file. All numbers are unsigned and little-endian; CRC is the CRC-32 of zlib. ``B`` is the
block size, a power of two from 4 KiB to 1 MiB, ``N`` the number of blocks of the disk, rounded up.

::

    offset        what
    0             header, 4096 bytes
    4096          map: ceil(N / 32512) pages, each in two slots of 4096 bytes
    D             data: block n at D + n * B, a hole where nothing was written (reads as zeros);
                  D is the end of the map rounded up to 1 MiB; the file ends at D + disk size

    header        0 magic 89 69 6d 67 6f 76 0d 0a, 8 u16 version 1, 10 u16 reserved, 12 u32 B,
                  16 u64 incompatible feature bits (none yet), 24 u64 disk size, 32 view digest
                  (32 bytes) and 64 UUID (16) of the image it was made for, 80 u64 made (ns since 1970),
                  88 reserved, 4092 u32 CRC of everything before it
    slot          0 magic OMAP, 4 u32 CRC of everything behind it, 8 u64 number of the page,
                  16 u64 sequence, 24 u64 reserved, 32 bits: block page * 32512 + i is bit i % 8 of
                  byte i / 8, one when the block was changed; bits past the end of the disk are zero

A block whose bit is zero is the image's, whatever lies in its data. Slots with sequence 1, 3, … are
the first of a page, 2, 4, … the second: each new version is written over the older one. The valid
slot with the higher sequence counts; one that is torn fails its CRC, and the other has all that was
durable before. Two slots of zeros, or one torn and one of zeros, are a page without changes; two
that are neither are damage. Data is made durable before the map that shows it (overlay.py).

The header of an overlay of 8 TiB, and the first slot of its page 3 where blocks 0, 1 and 9 of that page
were changed, sequence 5. What is not shown is zero::

    0     89 69 6d 67 6f 76 0d 0a 01 00 00 00 00 40 00 00
    16    00 00 00 00 00 00 00 00 00 00 00 00 00 08 00 00
    32    ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab
    48    ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab
    64    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
    80    00 00 2a 36 fe 9c 97 17 00 00 00 00 00 00 00 00
    4080  00 00 00 00 00 00 00 00 00 00 00 00 cf c5 6d 07

    0     4f 4d 41 50 27 ab 4d ea 03 00 00 00 00 00 00 00
    16    05 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    32    03 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00

The file belongs to the image whose view digest it has. Knows nothing of who writes to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from imagefs.block.naming import FinalName
from imagefs.errors import ChainError, FormatError, ImagefsError, IntegrityError, TargetError

MAGIC = b"\x89imgov\r\n"
PAGE_BLOCKS = 32_512
SLOT = 4096
_VERSION = 1
_HEADER = struct.Struct("<8sHHIQQ32s16sQ")
_PAGE = struct.Struct("<4sIQQQ")
_DATA_ALIGN = 1 << 20
_MAX_SEQUENCE = 1 << 62  # never reached; one more must still fit its field
_MIN_BLOCK, _MAX_BLOCK = 4096, 1 << 20
#: Blocks of 4 KiB up to here, then larger ones: the map of any disk stays under 64 MiB.
_MAX_BLOCKS = 1 << 29


@dataclass(frozen=True, slots=True)
class OverlayHeader:
    """Whose changes these are, and in blocks of how many bytes."""

    disk_size: int
    view: bytes
    image: bytes
    made_ns: int
    block_size: int

    @property
    def blocks(self) -> int:
        return -(-self.disk_size // self.block_size)

    @property
    def pages(self) -> int:
        return -(-self.blocks // PAGE_BLOCKS)

    @property
    def data_offset(self) -> int:
        end = SLOT + self.pages * 2 * SLOT
        return -(-end // _DATA_ALIGN) * _DATA_ALIGN

    @property
    def file_size(self) -> int:
        return self.data_offset + self.disk_size

    def slot_offset(self, page: int, sequence: int) -> int:
        """Where the version ``sequence`` (1, 2, …) of a page goes."""
        return SLOT + (2 * page + (sequence + 1) % 2) * SLOT


@dataclass(slots=True)
class OpenOverlay:
    """An overlay file, locked: its map by page as whole numbers (bit i: block i), and the sequence of
    each. ``made`` when it is new."""

    fd: int
    path: str
    header: OverlayHeader
    made: bool
    pages: dict[int, int] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)


def block_size_for(disk_size: int) -> int:
    """The smallest block size whose map is bounded; TargetError for a disk that is too large."""
    size = _MIN_BLOCK
    while size * _MAX_BLOCKS < disk_size:
        size *= 2
    if size > _MAX_BLOCK:
        raise TargetError(f"a disk of {disk_size} bytes is too large for an overlay", size=disk_size)
    return size


def encode_header(header: OverlayHeader) -> bytes:
    fixed = _HEADER.pack(
        MAGIC, _VERSION, 0, header.block_size, 0, header.disk_size, header.view, header.image, header.made_ns
    )
    body = fixed.ljust(SLOT - 4, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "little")


def decode_header(data: bytes, path: str) -> OverlayHeader:
    """TargetError for what is no overlay, FormatError for one of another version, IntegrityError for a
    damaged one."""
    if data[: len(MAGIC)] != MAGIC:
        raise TargetError(
            f"{path} is not an overlay of imagefs; it is left as it is",
            hint="name another file; one that does not exist is made",
            path=path,
        )
    if len(data) != SLOT or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise IntegrityError(f"the header of the overlay {path} is damaged", path=path)
    _, version, reserved, block_size, features, disk_size, view, image, made = _HEADER.unpack_from(data)
    if version != _VERSION or features or reserved or any(data[_HEADER.size : -4]):
        raise FormatError(f"the overlay {path} was made by a newer imagefs", path=path)
    header = OverlayHeader(disk_size, view, image, made, block_size)
    size_fits = _MIN_BLOCK <= block_size <= _MAX_BLOCK and not block_size & (block_size - 1)
    if not size_fits or header.blocks > _MAX_BLOCKS:
        raise FormatError(f"the overlay {path} has blocks of {block_size} bytes", path=path)
    return header


def encode_slot(page: int, sequence: int, bits: int) -> bytes:
    content = bits.to_bytes(PAGE_BLOCKS // 8, "little")
    checked = _PAGE.pack(b"OMAP", 0, page, sequence, 0)[8:] + content
    return b"OMAP" + zlib.crc32(checked).to_bytes(4, "little") + checked


def decode_slot(data: bytes, page: int) -> tuple[int, int] | None:
    """(sequence, bits) of a slot of ``page``; (0, 0) for one never written, None for a torn one."""
    if not any(data):
        return 0, 0
    magic, crc, number, sequence, reserved = _PAGE.unpack_from(data)
    if (
        magic != b"OMAP"
        or number != page
        or reserved
        or sequence > _MAX_SEQUENCE
        or zlib.crc32(data[8:]) != crc
    ):
        return None
    return sequence, int.from_bytes(data[_PAGE.size :], "little")


def decode_page(data: bytes, page: int, path: str) -> tuple[int, int]:
    """(sequence, bits) of the version of a page that counts, from both its slots."""
    slots = [decode_slot(data[:SLOT], page), decode_slot(data[SLOT:], page)]
    sound = [slot for slot in slots if slot is not None]
    if not sound:
        raise IntegrityError(
            f"the map of the overlay {path} is damaged: both copies of page {page} fail their check",
            path=path,
            page=page,
        )
    return max(sound)


def open_overlay_file(path: str, wanted: OverlayHeader) -> OpenOverlay:
    """Open or make the overlay of a disk, for this process alone.

    ``wanted`` says what it must belong to; image, time and block size are those of a new one. What is
    no overlay is never touched; an empty file counts as missing. ChainError for the overlay of another
    disk, TargetError while another mount has it.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return _make(path, wanted, overwrite=False)
    except OSError as error:
        raise _cannot(path, "cannot be opened", error) from error
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            os.close(fd)
            fd = -1
            return _make(path, wanted, overwrite=True)
        return _resume(fd, path, wanted, status)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise


def _make(path: str, header: OverlayHeader, *, overwrite: bool) -> OpenOverlay:
    """Under a name of its own until it is whole: a crash leaves no half-made overlay."""
    final = FinalName(os.path.realpath(path), path, overwrite=overwrite)
    fd = final.open()
    try:
        os.pwrite(fd, encode_header(header), 0)
        os.ftruncate(fd, header.file_size)
        os.fsync(fd)
        final.take()
    except OSError as error:
        final.abandon()
        os.close(fd)
        raise _cannot(path, "cannot be made", error) from error
    except BaseException:
        final.abandon()
        os.close(fd)
        raise
    return OpenOverlay(fd, path, header, made=True)


def _resume(fd: int, path: str, wanted: OverlayHeader, status: os.stat_result) -> OpenOverlay:
    head = os.pread(fd, SLOT, 0) if stat.S_ISREG(status.st_mode) else b""
    header = decode_header(head, path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TargetError(
            f"the overlay {path} is in use by another mount",
            hint="`imagefs mount` lists the mounts; unmount it, or name another file",
            path=path,
        ) from error
    except OSError as error:
        raise _cannot(path, "cannot be locked", error) from error
    if (header.view, header.disk_size) != (wanted.view, wanted.disk_size):
        raise ChainError(
            f"the overlay {path} holds changes to another image, {header.image.hex()}",
            hint=f"mount that one, or name another file; rm {path} throws the changes away",
            path=path,
            image=header.image.hex(),
        )
    if status.st_size != header.file_size:
        said = f"the overlay {path} has {status.st_size} bytes, not {header.file_size}: it was cut or copied badly"
        raise IntegrityError(said, path=path, size=status.st_size)
    opened = OpenOverlay(fd, path, header, made=False)
    _read_map(opened)
    return opened


def _read_map(opened: OpenOverlay) -> None:
    """Only pages that were ever written; the rest of the map is a hole."""
    header = opened.header
    blocks = header.blocks
    for page in _written_pages(opened.fd, header.pages):
        data = os.pread(opened.fd, 2 * SLOT, header.slot_offset(page, 1))
        sequence, bits = decode_page(data, page, opened.path)
        if bits >> max(0, min(PAGE_BLOCKS, blocks - page * PAGE_BLOCKS)):
            raise IntegrityError(f"the map of the overlay {opened.path} goes past the disk", path=opened.path)
        if sequence:
            opened.pages[page], opened.sequences[page] = bits, sequence


def _written_pages(fd: int, pages: int) -> Iterator[int]:
    page = 0
    while page < pages:
        try:
            place = os.lseek(fd, SLOT + page * 2 * SLOT, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            place = 0  # a file system without holes
        page = max(page, (place - SLOT) // (2 * SLOT))
        if page < pages:
            yield page
        page += 1


def _cannot(path: str, what: str, error: OSError) -> ImagefsError:
    hints = {
        errno.EFBIG: "its file system does not take files of the size of the disk; put it on XFS or Btrfs",
        errno.ENOENT: "make the folder first",
        errno.EACCES: "run it with sudo, or name a file in a folder of your own",
        errno.EROFS: "name a file on a disk that can be written",
        errno.ENOSPC: "free some space, or name a file on another disk",
    }
    number = error.errno or 0
    said = f"the overlay {path} {what}: {os.strerror(number)}"
    return TargetError(said, hint=hints.get(number, ""), path=path, errno=number)
