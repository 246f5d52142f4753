"""The images of a set, told from their tails. Derived from the store each time: nothing to lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from uuid import UUID

from imagefs.errors import ChainError, ImagefsError
from imagefs.format.header import Header, Kind
from imagefs.format.trailer import STANDS_FOR_TYPE, Summary
from imagefs.image.chain import Chain, FindImages, find_parent, open_chain
from imagefs.image.disk import CHUNK_CACHE, VirtualDisk
from imagefs.image.reader import ImageReader, IndexCache, Tail, index_cache, read_tail
from imagefs.interfaces import ObjectInfo, ObjectStore

SUFFIX = ".imagefs"
#: Of the report beside a forensic image.
REPORT_SUFFIX = ".txt"
KIND_WORDS = {Kind.FULL: "full", Kind.INCREMENTAL: "incr", Kind.DIFFERENTIAL: "diff"}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image as a listing sees it: its object's name and what its tail says."""

    name: str
    tail: Tail

    @property
    def id(self) -> str:
        return self.tail.id

    @property
    def uuid(self) -> UUID:
        return self.tail.header.image

    @property
    def header(self) -> Header:
        return self.tail.header

    @property
    def summary(self) -> Summary:
        return self.tail.summary

    @property
    def created(self) -> int:
        """ns since 1970 UTC."""
        return self.tail.header.created


@dataclass(frozen=True)
class Catalog:
    """What a set holds: ``images`` oldest first, ``damaged`` objects with why, ``partials``."""

    store: ObjectStore
    images: tuple[ImageInfo, ...]
    damaged: tuple[tuple[ObjectInfo, ImagefsError], ...]
    partials: tuple[ObjectInfo, ...]

    @cached_property
    def by_uuid(self) -> dict[UUID, ImageInfo]:
        return {info.uuid: info for info in self.images}

    @cached_property
    def _children(self) -> dict[UUID, list[ImageInfo]]:
        found: dict[UUID, list[ImageInfo]] = {}
        for info in self.images:
            if info.header.parent is not None:
                found.setdefault(info.header.parent, []).append(info)
        return found

    def children(self, info: ImageInfo) -> list[ImageInfo]:
        """The images that read through ``info`` directly, oldest first."""
        return self._children.get(info.uuid, [])

    def descendants(self, info: ImageInfo) -> list[ImageInfo]:
        """Every image that needs ``info``, oldest first."""
        found: dict[UUID, ImageInfo] = {}
        waiting = list(self.children(info))
        while waiting:
            child = waiting.pop()
            if child.uuid not in found:
                found[child.uuid] = child
                waiting += self.children(child)
        return sorted(found.values(), key=lambda child: child.created)

    def ancestors(self, info: ImageInfo) -> Iterator[ImageInfo]:
        """The parents of ``info`` that are here, nearest first."""
        seen = {info.uuid}
        parent = info.header.parent
        while parent in self.by_uuid and parent not in seen:
            seen.add(parent)
            yield self.by_uuid[parent]
            parent = self.by_uuid[parent].header.parent

    def newest(self) -> ImageInfo | None:
        return self.images[-1] if self.images else None

    def newest_full(self) -> ImageInfo | None:
        fulls = [info for info in self.images if info.header.kind is Kind.FULL]
        return fulls[-1] if fulls else None

    def open_image(self, info: ImageInfo, *, cache: IndexCache | None = None) -> ImageReader:
        """One image without its chain. Raises FormatError, IntegrityError, StoreError."""
        reader = self.store.open(info.name)
        try:
            return ImageReader(reader, info.name, cache=cache)
        except BaseException:
            reader.close()
            raise

    def open_chain(self, info: ImageInfo) -> Chain:
        """The chain of ``info``. Raises ChainError, FormatError, IntegrityError."""
        cache = index_cache()
        leaf = self.open_image(info, cache=cache)
        try:
            return open_chain(leaf, self._finder(cache))
        except BaseException as error:
            leaf.close()
            if isinstance(error, ChainError):
                self._explain(error)
            raise

    def check_parent(self, info: ImageInfo) -> None:
        """ChainError unless the parent of ``info`` is here and is the one it was sealed with."""
        child = self.open_image(info)
        try:
            find_parent(child, self._finder(index_cache())).close()
        except ChainError as error:
            self._explain(error)
            raise
        finally:
            child.close()

    def _finder(self, cache: IndexCache) -> FindImages:
        def find(uuid: UUID) -> list[ImageReader]:
            found = [self.by_uuid[uuid]] if uuid in self.by_uuid else []
            found += [other for other in self._substitutes() if other.uuid != uuid]
            readers = [self.open_image(wanted, cache=cache) for wanted in found]
            fitting = [r for r in readers if r.header.image == uuid or _lists(r, uuid)]
            for reader in readers:
                if reader not in fitting:
                    reader.close()
            return fitting

        return find

    def open_disk(self, info: ImageInfo, *, cache_bytes: int = CHUNK_CACHE) -> VirtualDisk:
        """The virtual disk at ``info``; closing it closes everything it opened."""
        return VirtualDisk(self.open_chain(info), cache_bytes=cache_bytes)

    def _substitutes(self) -> list[ImageInfo]:
        return [info for info in self.images if STANDS_FOR_TYPE in info.tail.sections]

    def _explain(self, error: ChainError) -> None:
        """A missing parent may be one of the objects that could not be read."""
        parent = error.data.get("parent")
        for found, reason in self.damaged:
            if isinstance(parent, str) and parent[:8] in found.name:
                error.message += f" in a usable state: {reason.message}"


def _lists(reader: ImageReader, uuid: UUID) -> bool:
    return any(row.image == uuid for row in reader.stands_for())


def scan(store: ObjectStore) -> Catalog:
    """Read the tail of every object in ``store``; damaged ones are kept apart, not raised."""
    images: list[ImageInfo] = []
    damaged: list[tuple[ObjectInfo, ImagefsError]] = []
    for found in store.list():
        try:
            images.append(read_info(store, found.name))
        except ImagefsError as error:
            damaged.append((found, error))
    images.sort(key=lambda info: (info.created, info.name))
    return Catalog(store, tuple(images), tuple(damaged), tuple(store.partials()))


def read_info(store: ObjectStore, name: str) -> ImageInfo:
    """The tail of one object."""
    reader = store.open(name)
    try:
        return ImageInfo(name, read_tail(reader, name))
    finally:
        reader.close()


def image_name(header: Header) -> str:
    """``20261117T020004Z-incr-3f2a9c1e.imagefs``."""
    when = datetime.fromtimestamp(header.created // 10**9, UTC)
    return f"{when:%Y%m%dT%H%M%SZ}-{KIND_WORDS[header.kind]}-{header.id[:8]}{SUFFIX}"
