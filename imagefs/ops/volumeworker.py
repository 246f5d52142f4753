"""What runs in the worker process of a volume inside a volume: the parser of its container.

Started by ``browse/workers.py`` and never imported by who asks it, as ``browse/worker.py``.
"""

from __future__ import annotations

from typing import Any

from imagefs.browse import worker
from imagefs.interfaces import Reader


def main(descriptor: int, area: int, memory: int, seconds: int) -> None:
    worker.main(descriptor, area, memory, seconds, opener=open_parser)


def open_parser(reader: Reader, *, parser: str) -> Any:
    """The parser called ``parser`` over ``reader``; a library is loaded when a volume needs it."""
    if parser == "luks":
        from imagefs.volume.luksunlock import LuksKey

        return LuksKey(reader)
    if parser == "bitlocker":
        from imagefs.volume.bitlocker import BitLocker

        return BitLocker(reader)
    if parser == "apfs":
        from imagefs.browse.apfssnapshots import Snapshots

        return Snapshots(reader)
    if parser == "apfs keys":
        from imagefs.browse.apfskeys import ApfsKeys

        return ApfsKeys(reader)
    from imagefs.volume.shadow import Shadows

    return Shadows(reader)
