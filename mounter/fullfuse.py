"""mfusepy's FUSE for libfuse 3 with callbacks that it lacks.

``readdir`` with attributes: the kernel can take the attributes of an entry along with its name
(READDIRPLUS) and then asks nothing more for ``ls -l`` or ``find``; mfusepy only ever gives names.
Entries past the first ones of a large folder get names alone: libfuse keeps 200 bytes for each entry
that the kernel was told the attributes of, for as long as the kernel remembers it.
``lseek``: where the holes of a file are.

Gets the module handed in by mounter/binding.py and imports no FUSE itself.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from operator import itemgetter
from types import ModuleType
from typing import Any

from mounter.attributes import Attributes

_FILL_DIR_PLUS = 1 << 1
_CAP_READDIRPLUS_AUTO = 1 << 14
#: Entries of one folder whose attributes are handed out with their names.
MAX_PLUS = 32_768
_SECOND = 1_000_000_000
_STAT_FIELDS = (
    *("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks"),
    *("st_mtimespec", "st_atimespec", "st_ctimespec"),
)
_FIRST_TIME = 8
_LETTERS = {2: "H", 4: "I", 8: "Q"}


def full_fuse(module: ModuleType) -> Any:
    """A subclass of ``mfusepy.FUSE`` for libfuse 3."""
    pack = stat_packer(module.c_stat)
    # holds the interpreter's lock: one call an entry, and each is a microsecond
    filler = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int
    )

    class FullFUSE(module.FUSE):  # type: ignore[misc,name-defined]
        def _readdir(self, path: bytes | None, buffer: Any, fill: Any, offset: int, info: Any) -> int:
            put = filler(ctypes.cast(fill, ctypes.c_void_p).value or 0)
            for position, name, attributes in self.operations.folder_items(offset, info.contents.fh):
                plus = _FILL_DIR_PLUS if attributes.nlink and position <= MAX_PLUS else 0
                if put(buffer, name, pack(attributes), position, plus):
                    break
            return 0

        def lseek(self, path: bytes | None, offset: int, whence: int, info: Any) -> int:
            decoded = None if path is None else path.decode(self.encoding)
            return int(self.operations.lseek(decoded, offset, whence, info.contents.fh))

        def _init(self, connection: Any, config: Any) -> None:
            # left to itself the kernel takes attributes for the first buffer of a folder only
            connection.contents.want &= ~_CAP_READDIRPLUS_AUTO
            super()._init(connection, config)

    return FullFUSE


def stat_packer(layout: Any) -> Callable[[Attributes], bytes]:
    """What writes a ``struct stat`` of this machine; ``layout`` is the binding's class of it."""
    places = sorted(
        (getattr(layout, name).offset, getattr(layout, name).size, number)
        for number, name in enumerate(_STAT_FIELDS)
    )
    words, order, at = ["="], [], 0
    for offset, size, number in places:
        is_time = number >= _FIRST_TIME
        words.append(f"{offset - at}x{'qq' if is_time else _LETTERS[size]}")
        first = _FIRST_TIME + 2 * (number - _FIRST_TIME) if is_time else number
        order += [first, first + 1] if is_time else [first]
        at = offset + size
    pack = struct.Struct("".join([*words, f"{ctypes.sizeof(layout) - at}x"])).pack
    in_order = itemgetter(*order)
    nothing = (0,) * (_FIRST_TIME - 2 + 6)

    def packed(a: Attributes) -> bytes:
        if not a.nlink:  # no more is known
            return pack(*in_order((a.mode, a.inode, *nothing)))
        used = a.size if a.allocated is None else a.allocated
        values = (
            *(a.mode, a.inode, a.nlink, a.uid, a.gid, a.rdev, a.size, (used + 511) >> 9),
            *(*divmod(a.mtime_ns, _SECOND), *divmod(a.atime_ns, _SECOND), *divmod(a.ctime_ns, _SECOND)),
        )
        return pack(*in_order(values))

    return packed
