"""The vectors of FORMAT.md: cutting them out of the document, decoding them, encoding them again."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from blake3 import blake3

import imagefs
from imagefs.errors import IntegrityError
from imagefs.format.checkpoint import CHECKPOINT_HEADER, Checkpoint, decode_checkpoint, encode_checkpoint
from imagefs.format.codec import (
    FRAME_SIZE,
    FrameHeader,
    decode_frame_header,
    decompress,
    digest_of,
    encode_frame,
)
from imagefs.format.extents import Runs, ViewHasher, decode_runs, encode_runs, make_runs
from imagefs.format.fields import MAX_DISK_SIZE
from imagefs.format.header import Header, Kind, Mode, decode_header, encode_header
from imagefs.format.index import (
    DirectoryEntry,
    Rows,
    decode_block,
    decode_directory,
    encode_block,
    encode_directory,
    make_rows,
)
from imagefs.format.trailer import (
    FOOTER_SIZE,
    Footer,
    Section,
    StandsFor,
    Summary,
    decode_footer,
    decode_stands_for,
    decode_summary,
    decode_table,
    encode_footer,
    encode_stands_for,
    encode_summary,
    encode_table,
    seal_of,
)
from imagefs.image.catalog import scan
from imagefs.interfaces import State
from imagefs.store import MemoryStore

DOCUMENT = Path(imagefs.__file__).with_name("FORMAT.md")
FENCE = re.compile(r"^```(hex|json) ([a-z-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAR = 2**62


@functools.cache
def document() -> str:
    return DOCUMENT.read_text("utf-8")


@functools.cache
def vectors() -> dict[str, bytes]:
    found = {name: bytes.fromhex(body) for kind, name, body in FENCE.findall(document()) if kind == "hex"}
    assert found
    return found


@functools.cache
def values() -> dict[str, Any]:
    return {name: json.loads(body) for kind, name, body in FENCE.findall(document()) if kind == "json"}


# -- values <-> plain JSON ------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as JSON shows it: bytes and UUIDs in hex, enums as numbers, columns as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Rows | Runs):
        raise TypeError("a dataclass, see above")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "dtype"):
        return [row.tobytes().hex() for row in value] if value.ndim == 2 else value.tolist()
    return int(value) if isinstance(value, int) else value


def _header(told: dict[str, Any]) -> Header:
    uuids = {name: UUID(told[name]) if told[name] else None for name in ("image", "set", "parent")}
    raw = {name: bytes.fromhex(told[name]) for name in ("parent_seal", "parent_view")}
    return Header(**(told | uuids | raw | {"kind": Kind(told["kind"]), "mode": Mode(told["mode"])}))


def _rows(told: dict[str, Any]) -> Rows:
    digests = bytes.fromhex("".join(told["digest"]))
    return make_rows(told["chunk_no"], told["offset"], told["stored_length"], bytes(told["codec"]), digests)


def _entries(told: list[dict[str, Any]]) -> list[DirectoryEntry]:
    return [DirectoryEntry(**(row | {"digest": bytes.fromhex(row["digest"])})) for row in told]


def _runs(told: dict[str, Any]) -> Runs:
    return make_runs(list(zip(told["first"], told["count"], told["state"], strict=True)))


# -- one decoder and, where the bytes are ours, one encoder for each vector -----------------------


def _decode_frame(data: bytes) -> dict[str, Any]:
    header = decode_frame_header(data)
    content = decompress(header.codec, data[FRAME_SIZE:], header.plain_length)
    if digest_of(content) != header.digest:
        raise IntegrityError("the digest of a frame does not match")
    return {"header": plain(header), "begins": content[:23].hex()}


def _encode_raw_frame(told: dict[str, Any]) -> bytes:
    """Only of a raw frame: what zstd makes of a chunk may differ between its versions."""
    header = told["header"] | {"digest": bytes.fromhex(told["header"]["digest"])}
    return encode_frame(FrameHeader(**header)) + vectors()["frame-raw"][FRAME_SIZE:]


def _decode_block(data: bytes) -> Any:
    count = int.from_bytes(data[4:8], "little")
    first = int.from_bytes(data[8:16], "little")
    return plain(decode_block(data, DirectoryEntry(first, 0, len(data), count, digest_of(data))))


def _decode_view(data: bytes) -> dict[str, Any]:
    """Read by hand: the hashed bytes exist nowhere else."""
    runs, at = [], 12
    while at < len(data):
        state = data[at]
        runs.append([state, *(int.from_bytes(data[at + 1 + i : at + 9 + i], "little") for i in (0, 8))])
        at += 17 + (32 if state == State.STORED else 0)
    return {
        "disk_size": int.from_bytes(data[:8], "little"),
        "chunk_size": int.from_bytes(data[8:12], "little"),
        "runs": runs,
        "digest": blake3(data).hexdigest(),
    }


def view_of(told: dict[str, Any]) -> bytes:
    """The view digest that the library makes of the vector's inputs."""
    hasher = ViewHasher(told["chunk_size"])
    for (state, first, count), digests in zip(told["runs"], told["digests"], strict=True):
        if state == State.STORED:  # one by one, as a capture does it
            for i, digest in enumerate(digests):
                hasher.add(State.STORED, first + i, 1, bytes.fromhex(digest))
        else:
            hasher.add(State(state), first, count)
    return hasher.digest(told["disk_size"])


def _decode_checkpoint(data: bytes) -> Any:
    return plain(decode_checkpoint(data, offset=FAR))


def _encode_checkpoint(told: dict[str, Any]) -> bytes:
    parts = {
        "blocks": tuple(_entries(told["blocks"])),
        "rows": _rows(told["rows"]),
        "runs": _runs(told["runs"]),
        "ranges": _runs(told["ranges"]),
    }
    data = encode_checkpoint(Checkpoint(**(told | parts)))
    assert len(data) > CHECKPOINT_HEADER
    return data


def _decode_image(data: bytes) -> dict[str, Any]:
    store = MemoryStore()
    store.objects["x.imagefs"] = data
    catalog = scan(store)
    assert catalog.damaged == ()
    disk = catalog.open_disk(catalog.images[0])
    tail = catalog.images[0].tail
    return {
        "size": tail.size,
        "header": plain(tail.header),
        "summary": plain(tail.summary),
        "seal": tail.seal.hex(),
        "sections": {type_.decode(): [part.offset, part.length] for type_, part in tail.sections.items()},
        "disk": {"size": disk.size, "blake3": blake3(disk.read_at(0, disk.size)).hexdigest()},
    }


def _decode_seal(data: bytes) -> dict[str, Any]:
    image = vectors_or_nothing().get("image")
    if image is None:
        return {"seal": data.hex()}
    footer = decode_footer(image[-FOOTER_SIZE:], len(image))
    header = image[: int.from_bytes(image[12:16], "little")]
    assert seal_of(header, image[footer.table_offset : -FOOTER_SIZE]) == data
    return {"seal": data.hex()}


def vectors_or_nothing() -> dict[str, bytes]:
    return vectors() if DOCUMENT.exists() else {}


def _section_values(data: bytes) -> Any:
    return [plain(part) | {"type": part.type.decode()} for part in decode_table(data, FAR)]


def _encode_sections(told: list[dict[str, Any]]) -> bytes:
    return encode_table(
        [
            Section(**(row | {"type": row["type"].encode(), "digest": bytes.fromhex(row["digest"])}))
            for row in told
        ]
    )


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "header-full": lambda data: plain(decode_header(data)),
    "header-incremental": lambda data: plain(decode_header(data)),
    "frame-zstd": _decode_frame,
    "frame-raw": _decode_frame,
    "index": _decode_block,
    "directory": lambda data: plain(decode_directory(data, FAR)),
    "extents": lambda data: plain(decode_runs(data, limit=MAX_DISK_SIZE)),
    "ranges": lambda data: plain(
        decode_runs(data, limit=MAX_DISK_SIZE, states=(State.SKIPPED, State.UNREADABLE))
    ),
    "summary": lambda data: plain(decode_summary(data)),
    "stands-for": lambda data: plain(decode_stands_for(data)),
    "table": _section_values,
    "seal": _decode_seal,
    "footer": lambda data: plain(decode_footer(data, int.from_bytes(data[8:16], "little"))),
    "view": _decode_view,
    "checkpoint": _decode_checkpoint,
    "image": _decode_image,
}

ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "header-full": lambda told: encode_header(_header(told)),
    "header-incremental": lambda told: encode_header(_header(told)),
    "frame-raw": _encode_raw_frame,
    "index": lambda told: encode_block(_rows(told)),
    "directory": lambda told: encode_directory(_entries(told)),
    "extents": lambda told: encode_runs(_runs(told)),
    "ranges": lambda told: encode_runs(_runs(told)),
    "summary": lambda told: encode_summary(Summary(**(told | {"view": bytes.fromhex(told["view"])}))),
    "stands-for": lambda told: encode_stands_for(
        [
            StandsFor(UUID(row["image"]), bytes.fromhex(row["seal"]), bytes.fromhex(row["view"]))
            for row in told
        ]
    ),
    "table": _encode_sections,
    "footer": lambda told: encode_footer(
        Footer(**(told | {"seal": bytes.fromhex(told["seal"]), "image": UUID(told["image"])}))
    ),
    "checkpoint": _encode_checkpoint,
}
