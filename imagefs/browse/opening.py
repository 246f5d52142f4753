"""Opens whatever file system is on a volume: The Sleuth Kit first, pyfatfs where TSK refuses FAT."""

from __future__ import annotations

from imagefs.errors import NotAFileSystem
from imagefs.interfaces import FileSystem, Reader


def open_filesystem(reader: Reader) -> FileSystem:
    """The file system on ``reader``, which stays the caller's to close.

    NotAFileSystem names what the volume seems to be and the way out. Errors of the reader come
    through as they are. The parsers run in this process; ``apart.open_apart`` gives them one of their own.
    """
    from imagefs.browse.tsk import open_tsk  # parsers load when a volume needs them

    try:
        return open_tsk(reader)
    except NotAFileSystem as error:
        refused = error
    from imagefs.browse.fat import open_fat

    try:
        return open_fat(reader)
    except NotAFileSystem:
        from imagefs.browse.sniff import refusal

        message, hint = refusal(reader, str(refused.data.get("reason", "")))
    raise NotAFileSystem(message, hint=hint) from refused
