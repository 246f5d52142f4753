"""imagefs: disk images that form chains; captured, mounted, browsed, verified, restored.

``imagefs.open(path)`` opens an image, or a point of a set as on the command line
(``"backups@latest~1"``), and gives a ``DiskImage``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagefs.ops.diskimage import DiskImage

__all__ = ["open"]


def open(path: str | os.PathLike[str]) -> DiskImage:
    """Open ``path``: an image file, a set (its newest image), or ``SET@WHICH``.

    Raises FormatError (not an image), IntegrityError (damaged), ChainError (a parent is missing),
    StoreError (not there, or not readable).
    """
    from imagefs.cli.wiring import open_image

    return open_image(path)
