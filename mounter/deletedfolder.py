"""``deleted/`` of a mount: a tree of deleted files for each volume whose file system tells of any.

Whether one does is known as soon as its own tree is shown; nothing is searched for before a folder in
``deleted/pN`` is listed or a name there looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from imagefs.browse.deletedtree import DeletedTree
from imagefs.errors import ImagefsError, line_of
from imagefs.interfaces import KeepsDeleted
from mounter.entrycache import EntryCache
from mounter.volumetree import VolumeSpec, VolumeTree

DELETED = b"deleted"
#: The slots of deleted trees begin here, so that their inode numbers do not depend on how many volumes there are.
_FIRST_SLOT = 0x4000


class DeletedFolder:
    """The trees below ``deleted/``. Safe to call from several threads."""

    def __init__(
        self, volumes: Mapping[bytes, VolumeTree], *, cache: EntryCache, log: Callable[[str], None]
    ) -> None:
        self._volumes = volumes
        self._trees = {
            name: VolumeTree(_spec(volume, log), _FIRST_SLOT | volume.slot, cache=cache, log=log)
            for name, volume in volumes.items()
        }

    @property
    def shows(self) -> bool:
        """Whether there is anything to show: some volume has a file system that keeps deleted files."""
        return any(_keeps(volume) for volume in self._volumes.values())

    def volume(self, name: bytes) -> VolumeTree | None:
        volume = self._volumes.get(name)
        return self._trees[name] if volume is not None and _keeps(volume) else None

    def volumes(self) -> Iterator[tuple[bytes, VolumeTree]]:
        for name, volume in self._volumes.items():
            if _keeps(volume):
                yield name, self._trees[name]


def _keeps(volume: VolumeTree) -> bool:
    return not volume.spec.later and volume.reason() is None and isinstance(volume.filesystem, KeepsDeleted)


def _spec(volume: VolumeTree, log: Callable[[str], None]) -> VolumeSpec:
    """The tree is opened over the file system that shows the live files; it owns nothing."""

    def told(error: ImagefsError) -> None:
        log(line_of(error, f"deleted/{volume.spec.id}"))

    return VolumeSpec(
        volume.spec.id, volume.spec.reader, lambda: DeletedTree(volume.filesystem, onerror=told)
    )
