"""What of a Linux swap area is worth keeping: its header, so that ``swapon`` finds it again.

Source: mkswap of util-linux. Areas that hold a hibernated machine bear another signature.
"""

from __future__ import annotations

import struct

from imagefs.allocation.usedmap import UsedMap, UsedRuns
from imagefs.errors import AllocationError
from imagefs.interfaces import Reader

_PAGES = (4096, 8192, 16384, 32768, 65536)


def read_swap(volume: Reader) -> UsedMap:
    """The header page of the swap area on ``volume``, and what lies behind the area.

    Raises AllocationError where it is not version 1 of the new style, and what reading raises.
    """
    for page in _PAGES:
        header = volume.read_at(0, page)
        if header[page - 10 : page] != b"SWAPSPACE2":
            continue
        order = "<" if header[1024:1028] == b"\x01\0\0\0" else ">"
        version, last = struct.unpack_from(f"{order}II", header, 1024)
        end = (last + 1) * page
        if version != 1 or last < 1 or end > volume.size:
            raise AllocationError("its swap header makes no sense")
        used = UsedRuns(volume.size, page)
        used.add(0, 1)
        used.add_bytes(end, volume.size)
        return used.finish("swap header")
    raise AllocationError("it is swap of an old kind, or holds a hibernated machine")
