"""File systems over any Reader: opening one, walking, finding, extracting. Nothing here writes to a
volume, and nothing here knows where the bytes come from."""

from imagefs.browse.opening import open_filesystem

__all__ = ["open_filesystem"]
