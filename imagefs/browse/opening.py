"""Opens whatever file system is on a volume: what The Sleuth Kit does not know by its magic word, then TSK, then what
TSK refuses. The adapters of the others are loaded when a volume needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, tzinfo
from functools import partial

from imagefs.errors import NotAFileSystem
from imagefs.interfaces import FileSystem, Reader


def open_filesystem(
    reader: Reader, *, fat_zone: tzinfo = UTC, keys: Mapping[str, bytes] | None = None
) -> FileSystem:
    """The file system on ``reader``, which stays the caller's to close. ``fat_zone`` is the one in which the
    times of FAT, and of exFAT where it does not say so itself, were written; ``keys`` are those of encrypted
    volumes of APFS (``open_apfs``).

    NotAFileSystem names what the volume seems to be and the way out. Errors of the reader come
    through as they are. The parsers run in this process; ``apart.open_apart`` gives them one of their own.
    """
    from imagefs.browse.iso9660 import open_iso
    from imagefs.browse.tsk import open_tsk

    own = _own(reader, keys)
    ours: NotAFileSystem | None = None
    # Before TSK: looking for others, it reads megabytes, which an image of mode used may not have.
    if own is not None:
        try:
            return own(reader)
        except NotAFileSystem as error:
            ours = error
    try:
        found = open_tsk(reader, fat_zone=fat_zone)
        return open_iso(reader) if found.kind == "iso9660" else found
    except NotAFileSystem as error:
        if ours is not None:
            raise ours from error
        refused = error
    from imagefs.browse.fat import open_fat
    from imagefs.browse.sniff import refusal

    for opener in (open_iso, partial(open_fat, zone=fat_zone)):
        with suppress(NotAFileSystem):
            return opener(reader)
    message, hint = refusal(reader, str(refused.data.get("reason", "")))
    raise NotAFileSystem(message, hint=hint) from refused


def _own(reader: Reader, keys: Mapping[str, bytes] | None) -> Callable[[Reader], FileSystem] | None:
    """What opens a file system that TSK does not know, by its first bytes."""
    head = reader.read_at(0, 36)
    if head[:4] == b"XFSB":
        from imagefs.browse.xfs import open_xfs

        return open_xfs
    if head[32:] == b"NXSB":
        from imagefs.browse.apfs import open_apfs

        return partial(open_apfs, keys=keys)
    return None
