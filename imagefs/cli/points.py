"""The points in time of a set, for ``mount --history``: their names, and how each is opened.

All disks share one set of readers, caches and workers; a point costs nothing before it is opened.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import TYPE_CHECKING

from imagefs.browse.crew import Crew
from imagefs.cli.console import default_set
from imagefs.cli.serving import mount_spec
from imagefs.cli.wiring import look_at, open_disk, open_set
from imagefs.errors import UsageError
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.image.shared import Shared
from imagefs.interfaces import ObjectInfo
from imagefs.store import LocalStore
from mounter.points import OpenedPoint, PointSpec

if TYPE_CHECKING:
    from imagefs.ops.innervolumes import Secret

#: Of a table of runs and what finds one in it quickly.
_BYTES_A_RUN = 40

Opener = Callable[[Catalog, ImageInfo], OpenedPoint]


class Points:
    """What the set in ``store`` holds, asked as often as anybody likes: read again when its listing has changed."""

    def __init__(
        self,
        store: LocalStore,
        *,
        fat_zone: tzinfo = UTC,
        unreadable: str = "zeros",
        secrets: Mapping[str, Secret] | None = None,
    ) -> None:
        """``secrets`` are by the id of the volume that they open; what they do not open in an image stays locked."""
        self._store = store
        self._secrets = secrets or {}
        self._fat_zone = fat_zone
        self._unreadable = unreadable
        self._listing: tuple[ObjectInfo, ...] | None = None
        self._points: Sequence[PointSpec] = ()
        self.shared = Shared()
        self.crew = Crew()

    def __call__(self) -> Sequence[PointSpec]:
        """Oldest first, behind them what is damaged. Raises StoreError."""
        listing = tuple(self._store.list())
        if listing != self._listing:
            self._points = point_specs(look_at(self._store), self._open)
            self._listing = listing
        return self._points

    def _open(self, catalog: Catalog, info: ImageInfo) -> OpenedPoint:
        image = open_disk(catalog, info, fat_zone=self._fat_zone, shared=self.shared)
        image.crew = self.crew
        image.unlock(self._secrets, lenient=True)
        try:
            spec = mount_spec(image, catalog.store.url, unreadable=self._unreadable)
        except BaseException:
            image.close()
            raise
        return OpenedPoint(spec, _BYTES_A_RUN * len(image.disk.chain.table), image.close)


def set_of(text: str) -> LocalStore:
    """The set that is to be shown as a whole; nothing means that of ``IMAGEFS_SET``. UsageError for an image."""
    text = text or default_set()
    if os.path.isfile(text) or ("@" in text and not os.path.isdir(text)):
        raise UsageError(
            f"--history shows a whole set, but {text} is one image of it", hint="name the folder of the set"
        )
    return open_set(os.path.abspath(text))  # wherever the serving process goes


def point_specs(catalog: Catalog, open_point: Opener) -> list[PointSpec]:
    """A folder for each image, a text for each object that cannot be read. A copy of an image is the same point."""
    images = {info.uuid: info for info in catalog.images}
    found = [
        PointSpec(
            name=name,
            id=info.uuid.bytes,
            mtime_ns=info.created,
            size=info.summary.disk_size,
            aliases=aliases,
            open=partial(open_point, catalog, info),
        )
        for info, name, aliases in _named(list(images.values()))
    ]
    for damaged, error in catalog.damaged:
        name = os.fsencode(damaged.name)
        reason = f"{damaged.name} cannot be read: {error.message}"
        found.append(PointSpec(name + b".txt", b"object " + name, damaged.mtime_ns, reason=reason))
    return found


def _named(images: Sequence[ImageInfo]) -> Iterator[tuple[ImageInfo, bytes, tuple[bytes, ...]]]:
    """Each image with the name of its folder: its second, and its id where several are of that second. The
    oldest of those is found by the second alone too, as it was before the others came."""
    of_second: dict[str, list[ImageInfo]] = defaultdict(list)
    for info in images:
        when = datetime.fromtimestamp(info.created // 10**9, UTC)
        of_second[f"{when:%Y%m%dT%H%M%SZ}"].append(info)
    for second, group in of_second.items():
        short = Counter(info.id[:8] for info in group)
        for info in group:
            plain = second.encode()
            if len(group) == 1:
                yield info, plain, ()
                continue
            mark = info.id[:8] if short[info.id[:8]] == 1 else info.id
            yield info, f"{second}~{mark}".encode(), (plain,) if info is group[0] else ()
