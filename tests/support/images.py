"""Disks and images for tests: disks from bytes, captures into any store, and images made by hand.

``Craft`` builds an image that no capture would make, field by field, and seals it correctly, so that
a test reaches the check behind the seal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from blake3 import blake3

from imagefs.block.devices import StreamSource, open_source
from imagefs.format.codec import FRAME_SIZE, digest_of, make_frame
from imagefs.format.extents import encode_runs, make_runs
from imagefs.format.header import Header, Kind, encode_header
from imagefs.format.index import DirectoryEntry, Rows, encode_block, encode_directory, make_rows
from imagefs.format.trailer import (
    DIRECTORY,
    EXTENTS,
    FOOTER_SIZE,
    HEADER_COPY,
    RANGES,
    STANDS_FOR_TYPE,
    SUMMARY_TYPE,
    Footer,
    Section,
    StandsFor,
    Summary,
    encode_footer,
    encode_stands_for,
    encode_summary,
    encode_table,
    seal_of,
)
from imagefs.image.catalog import Catalog, ImageInfo, scan
from imagefs.interfaces import ObjectStore, State
from imagefs.ops.capture import CaptureResult, capture
from imagefs.ops.plan import CaptureOptions

CHUNK = 16 * 1024
SET = UUID(int=0x5E7)


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that no compressor makes smaller, the same for the same seed."""
    return blake3(seed.to_bytes(8, "little")).digest(length)


def text(length: int, seed: int = 1) -> bytes:
    """Bytes that compress well and are nowhere zero."""
    line = f"line {seed} of a file that compresses well\n".encode()
    return (line * (length // len(line) + 1))[:length]


def write_disk(path: Path, data: bytes) -> Path:
    """A file that holds ``data``, its zero blocks as holes. Replaces what was there."""
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        for start in range(0, len(data), 4096):
            block = data[start : start + 4096]
            if any(block):
                stream.seek(start)
                stream.write(block)
        stream.truncate(len(data))
    return path


def capture_bytes(store: ObjectStore, data: bytes, path: Path, **options: Any) -> CaptureResult:
    """Capture ``data`` as a raw disk that lies in ``path``; chunks of 16 KiB for a first image."""
    return capture_file(store, write_disk(path, data), **options)


def capture_file(store: ObjectStore, path: Path, **options: Any) -> CaptureResult:
    chosen = CaptureOptions(**({"threads": 2, "level": 1, "raw": True} | options))
    source = open_source(os.fspath(path))
    try:
        return capture(source, store, _with_chunk_size(store, chosen))
    finally:
        source.close()


def capture_stream(store: ObjectStore, data: bytes, folder: Path, **options: Any) -> CaptureResult:
    """Capture ``data`` as it would come from standard input."""
    path = folder / "stream.bin"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        chosen = CaptureOptions(**({"threads": 2, "level": 1, "raw": True} | options))
        return capture(StreamSource(fd), store, _with_chunk_size(store, chosen))
    finally:
        os.close(fd)


def _with_chunk_size(store: ObjectStore, options: CaptureOptions) -> CaptureOptions:
    first = options.kind is Kind.FULL or options.new_source or not any(store.list())
    return replace(options, chunk_size=CHUNK) if first and options.chunk_size is None else options


def disk_bytes(catalog: Catalog, info: ImageInfo) -> bytes:
    """All bytes of the virtual disk at ``info``."""
    disk = catalog.open_disk(info)
    try:
        return disk.read_at(0, disk.size)
    finally:
        disk.close()


def newest_bytes(store: ObjectStore) -> bytes:
    catalog = scan(store)
    newest = catalog.newest()
    assert newest is not None
    return disk_bytes(catalog, newest)


def plain_view_digest(data: bytes, chunk_size: int = CHUNK) -> bytes:
    """The view digest of a disk that was captured whole, from its bytes alone (FORMAT.md, 7).

    Written from the document and not from the code: it knows no image.
    """
    runs: list[tuple[int, int, int, bytes]] = []
    for number, start in enumerate(range(0, len(data), chunk_size)):
        piece = data[start : start + chunk_size]
        state = 1 if any(piece) else 2
        digest = blake3(piece).digest() if state == 1 else b""
        if runs and runs[-1][0] == state:
            runs[-1] = (state, runs[-1][1], runs[-1][2] + 1, runs[-1][3] + digest)
        else:
            runs.append((state, number, 1, digest))
    text = len(data).to_bytes(8, "little") + chunk_size.to_bytes(4, "little")
    for state, first, count, digests in runs:
        text += bytes([state]) + first.to_bytes(8, "little") + count.to_bytes(8, "little")
        text += blake3(digests).digest() if state == 1 else b""
    return blake3(text).digest()


@dataclass
class Craft:
    """An image by hand. Everything may be set, or replaced as bytes; ``build`` seals what there is.

    ``chunks`` are (chunk_no, plain bytes), ``extents`` (first, count, state) in chunks, ``ranges``
    in bytes, ``sections`` replaces or adds (None: leaves out) sections as (bytes, flags).
    """

    disk_size: int
    kind: Kind = Kind.FULL
    chunks: Sequence[tuple[int, bytes]] = ()
    extents: Sequence[tuple[int, int, int]] = ()
    ranges: Sequence[tuple[int, int, int]] = ()
    image: UUID = field(default_factory=uuid4)
    created: int = 10**18
    parent: ImageInfo | None = None
    view: bytes = bytes(32)
    header: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    stands_for: Sequence[StandsFor] = ()
    sections: dict[bytes, tuple[bytes | None, int]] = field(default_factory=dict)
    blocks: Sequence[int] = ()  # rows of each index block; the rest goes into a last one
    rows: Rows | None = None  # instead of the rows that belong to ``chunks``
    header_bytes: bytes | None = None
    frames: Sequence[tuple[int, bytes]] | None = None  # (codec, frame) instead of those of ``chunks``

    def build(self) -> bytes:
        out = bytearray(self.encoded_header())
        rows = self._append_frames(out)
        directory = self._append_blocks(out, rows)
        parts: dict[bytes, tuple[bytes | None, int]] = {
            DIRECTORY: (encode_directory(directory), 1),
            EXTENTS: (encode_runs(make_runs(list(self.extents))), 1),
            RANGES: (encode_runs(make_runs(list(self.ranges))), 1),
        }
        if self.stands_for:
            parts[STANDS_FOR_TYPE] = (encode_stands_for(self.stands_for), 1)
        parts[SUMMARY_TYPE] = (encode_summary(self._summary(len(rows))), 1)
        parts[HEADER_COPY] = (self.encoded_header(), 1)
        return self._append_trailer(out, parts | self.sections)

    def put(self, store: Any, name: str = "") -> str:
        """Build it into a MemoryStore; gives its name."""
        name = name or f"{self.image.hex[:8]}.imagefs"
        store.objects[name] = self.build()
        return name

    def put_into(self, store: ObjectStore) -> str:
        """Write it into any store, in one piece."""
        out = store.create(f"{self.image.hex[:8]}.imagefs")
        out.append(self.build())
        out.commit()
        return f"{self.image.hex[:8]}.imagefs"

    def encoded_header(self) -> bytes:
        if self.header_bytes is not None:
            return self.header_bytes
        parent = self.parent
        facts: dict[str, Any] = {
            "image": self.image,
            "set": SET,
            "kind": self.kind,
            "created": self.created,
            "chunk_size": CHUNK,
            "sector_size": 512,
            "parent": parent.uuid if parent else None,
            "parent_seal": parent.tail.seal if parent else bytes(32),
            "parent_view": parent.summary.view if parent else bytes(32),
        }
        return encode_header(Header(**(facts | self.header)))

    def _append_frames(self, out: bytearray) -> Rows:
        frames = self.frames
        if frames is None:
            frames = [make_frame(number, data, digest_of(data), 1) for number, data in self.chunks]
        places = []
        for _, frame in frames:
            places.append(len(out))
            out += frame
        if self.rows is not None:
            return self.rows
        return make_rows(
            [number for number, _ in self.chunks],
            places,
            [len(frame) - FRAME_SIZE for _, frame in frames],
            bytes(codec for codec, _ in frames),
            b"".join(digest_of(data) for _, data in self.chunks),
        )

    def _append_blocks(self, out: bytearray, rows: Rows) -> list[DirectoryEntry]:
        directory, start = [], 0
        for count in (*self.blocks, len(rows)):
            stop = min(start + count, len(rows))
            if stop > start:
                part = cut_rows(rows, start, stop)
                data = encode_block(part)
                entry = DirectoryEntry(int(part.chunk_no[0]), len(out), len(data), len(part), digest_of(data))
                directory.append(entry)
                out += data
            start = stop
        return directory

    def _summary(self, stored: int) -> Summary:
        facts: dict[str, Any] = {
            "disk_size": self.disk_size,
            "started": self.created,
            "ended": self.created + 1,
            "view": self.view,
            "stored": stored,
        }
        return Summary(**(facts | self.summary))

    def _append_trailer(self, out: bytearray, parts: dict[bytes, tuple[bytes | None, int]]) -> bytes:
        table = []
        for type_, (data, flags) in parts.items():
            if data is not None:
                table.append(Section(type_, len(out), len(data), digest_of(data), flags))
                out += data
        return finish(bytes(out), table, self.encoded_header(), self.image)


def finish(body: bytes, sections: Iterable[Section], header: bytes, image: UUID) -> bytes:
    """``body`` with a section table, seal and footer behind it."""
    table = encode_table(list(sections))
    size = len(body) + len(table) + FOOTER_SIZE
    footer = Footer(size, len(body), len(table), seal_of(header, table), image)
    return body + table + encode_footer(footer)


def cut_rows(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(
        rows.chunk_no[start:stop],
        rows.offset[start:stop],
        rows.stored_length[start:stop],
        rows.codec[start:stop],
        rows.digest[start:stop],
    )


def full_of(data: bytes, **changes: Any) -> Craft:
    """A crafted full image of ``data``, every chunk of it stored or zero as it should be."""
    chunks, extents = [], []
    for number, start in enumerate(range(0, len(data), CHUNK)):
        piece = data[start : start + CHUNK]
        if any(piece):
            chunks.append((number, piece))
        else:
            extents.append((number, 1, int(State.ZERO)))
    given: dict[str, Any] = {"chunks": chunks, "extents": extents, "view": plain_view_digest(data)}
    return Craft(len(data), **(given | changes))
