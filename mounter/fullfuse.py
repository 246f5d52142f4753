"""mfusepy's FUSE for libfuse 3 with two callbacks that it lacks.

``readdir`` with attributes: the kernel can take the attributes of an entry along with its name
(READDIRPLUS) and then asks nothing more for ``ls -l`` or ``find``; mfusepy only ever gives names.
``lseek``: where the holes of a file are. Gets the module handed in by mounter/binding.py and imports
no FUSE itself.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

_FILL_DIR_PLUS = 1 << 1
_CAP_READDIRPLUS_AUTO = 1 << 14


def full_fuse(module: ModuleType) -> Any:
    """A subclass of ``mfusepy.FUSE`` for libfuse 3."""

    class FullFUSE(module.FUSE):  # type: ignore[misc,name-defined]
        def _readdir(self, path: bytes | None, buffer: Any, fill: Any, offset: int, info: Any) -> int:
            status = module.c_stat()
            decoded = None if path is None else path.decode(self.encoding)
            items = self.operations.readdir_with_offset(decoded, offset, info.contents.fh)
            for name, attributes, position in items:
                ctypes.memset(ctypes.byref(status), 0, ctypes.sizeof(status))
                module.set_st_attrs(status, attributes, use_ns=True)
                if fill(buffer, name.encode(self.encoding), status, position, _FILL_DIR_PLUS) != 0:
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
