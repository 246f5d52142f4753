"""Named write-once objects: a folder, or memory. Knows nothing of what the objects hold."""

from imagefs.store.cachefolder import CacheFolder
from imagefs.store.local import LocalStore
from imagefs.store.memory import MemoryStore

__all__ = ["CacheFolder", "LocalStore", "MemoryStore"]
