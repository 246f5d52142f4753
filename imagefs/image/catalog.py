"""The images of a set, told from their tails. Derived from the store: nothing to lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from uuid import UUID

from imagefs.errors import ChainError, ImagefsError
from imagefs.format.header import Header, Kind
from imagefs.format.trailer import STANDS_FOR_TYPE, StandsFor
from imagefs.image.chain import Candidate, Chain, Layers, find_lineage, find_parent, resolve, resolve_over
from imagefs.image.derived import TailMemory, keep_table, load_table
from imagefs.image.disk import VirtualDisk
from imagefs.image.reader import ImageReader, IndexCache, index_cache
from imagefs.image.runs import RunTable
from imagefs.image.shared import CHUNK_CACHE, Shared
from imagefs.image.tail import ImageInfo as ImageInfo
from imagefs.image.tail import Tail, read_tail
from imagefs.interfaces import DerivedCache, ObjectInfo, ObjectStore

SUFFIX = ".imagefs"
#: Of the report beside a forensic image.
REPORT_SUFFIX = ".txt"
KIND_WORDS = {Kind.FULL: "full", Kind.INCREMENTAL: "incr", Kind.DIFFERENTIAL: "diff"}


@dataclass(frozen=True)
class Catalog:
    """What a set holds: ``images`` oldest first, ``damaged`` objects with why, ``partials``.

    ``cache`` may keep what was worked out of it, or is None: then everything is read afresh.
    """

    store: ObjectStore
    images: tuple[ImageInfo, ...]
    damaged: tuple[tuple[ObjectInfo, ImagefsError], ...]
    partials: tuple[ObjectInfo, ...]
    cache: DerivedCache | None = None

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

    @cached_property
    def _found(self) -> list[Sequence[ImageInfo]]:
        """The lineage that was found last: who opens images in order need not find it a thousand times."""
        return [()]

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

    def open_image(self, info: ImageInfo, *, index: IndexCache | None = None) -> ImageReader:
        """One image without its chain. Raises FormatError, IntegrityError, StoreError."""
        reader = self.store.open(info.name)
        try:
            return ImageReader(reader, info.name, tail=info.tail, cache=index)
        except BaseException:
            reader.close()
            raise

    def open_chain(self, info: ImageInfo, *, shared: Shared | None = None) -> Chain:
        """The chain of ``info``. Raises ChainError, FormatError, IntegrityError.

        ``shared`` is what it has in common with other chains of this set that are open.
        """
        try:
            lineage = find_lineage(info, self._candidates, self._found[-1])
        except ChainError as error:
            self._explain(error)
            raise
        self._found[-1] = lineage
        if shared is None:
            layers = Layers(lineage, partial(self.open_image, index=index_cache()))
        else:
            opening = partial(shared.take, open_image=partial(self.open_image, index=shared.index))
            layers = Layers(lineage, opening, shared.give)
        try:
            return Chain(layers, self._table(layers, shared))
        except BaseException:
            layers.close()
            raise

    def _table(self, layers: Layers, shared: Shared | None) -> RunTable:
        """What the layers resolve to, from the cache where it has that, or laid over the parent's."""
        table = load_table(self.cache, layers.infos) if self.cache else None
        if table is None:
            below = shared.table(layers.infos[:-1]) if shared else None
            table = resolve(layers) if below is None else resolve_over(below, layers)
            if self.cache:
                keep_table(self.cache, layers.infos, table)
        return table

    def check_parent(self, info: ImageInfo) -> None:
        """ChainError unless the parent of ``info`` is here and is the one it was sealed with."""
        try:
            find_parent(info, self._candidates)
        except ChainError as error:
            self._explain(error)
            raise

    def _candidates(self, uuid: UUID) -> Iterator[Candidate]:
        if uuid in self.by_uuid:
            yield self.by_uuid[uuid], []
        for info in self.images:
            if STANDS_FOR_TYPE in info.tail.sections and info.uuid != uuid:
                rows = self._stands_for(info)
                if any(row.image == uuid for row in rows):
                    yield info, rows

    def _stands_for(self, info: ImageInfo) -> list[StandsFor]:
        reader = self.open_image(info)
        try:
            return reader.stands_for()
        finally:
            reader.close()

    def open_disk(
        self, info: ImageInfo, *, cache_bytes: int = CHUNK_CACHE, shared: Shared | None = None
    ) -> VirtualDisk:
        """The virtual disk at ``info``; closing it closes everything it opened. ``shared`` as for ``open_chain``,
        with its own cache of chunks."""
        return VirtualDisk(self.open_chain(info, shared=shared), cache_bytes=cache_bytes, shared=shared)

    def _explain(self, error: ChainError) -> None:
        """A missing parent may be one of the objects that could not be read."""
        parent = error.data.get("parent")
        for found, reason in self.damaged:
            if isinstance(parent, str) and parent[:8] in found.name:
                error.message += f" in a usable state: {reason.message}"


def scan(store: ObjectStore, *, cache: DerivedCache | None = None, place: str = "") -> Catalog:
    """Read the tail of every object in ``store``; damaged ones are kept apart, not raised.

    With ``cache``, tails (under ``place``, where the set is) and tables of chains are kept there; without,
    everything is read.
    """
    images: list[ImageInfo] = []
    damaged: list[tuple[ObjectInfo, ImagefsError]] = []
    memory = TailMemory(cache, place or store.url)
    for found in store.list():
        try:
            tail = memory.get(found) or memory.add(found, _tail(store, found.name))
            images.append(ImageInfo(found.name, tail))
        except ImagefsError as error:
            damaged.append((found, error))
    memory.keep()
    images.sort(key=lambda info: (info.created, info.name))
    return Catalog(store, tuple(images), tuple(damaged), tuple(store.partials()), cache)


def read_info(store: ObjectStore, name: str) -> ImageInfo:
    """The tail of one object."""
    return ImageInfo(name, _tail(store, name))


def _tail(store: ObjectStore, name: str) -> Tail:
    reader = store.open(name)
    try:
        return read_tail(reader, name)
    finally:
        reader.close()


def image_name(header: Header) -> str:
    """``20261117T020004Z-incr-3f2a9c1e.imagefs``."""
    when = datetime.fromtimestamp(header.created // 10**9, UTC)
    return f"{when:%Y%m%dT%H%M%SZ}-{KIND_WORDS[header.kind]}-{header.id[:8]}{SUFFIX}"
