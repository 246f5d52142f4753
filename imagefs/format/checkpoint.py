"""Checkpoints: how far a capture had come, written into the stream (FORMAT.md, 8).

Readers ignore them; resume and salvage live on them. One record holds what came since the record
before it: the index blocks written, the rows not yet in a block, and the extents.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from imagefs.errors import IntegrityError
from imagefs.format.codec import digest_of
from imagefs.format.extents import RUN_SIZE, Runs, decode_runs, encode_runs
from imagefs.format.fields import MAX_DISK_SIZE, check, check_crc
from imagefs.format.index import (
    DIRECTORY_ENTRY,
    MAX_ROWS,
    ROW_SIZE,
    DirectoryEntry,
    Rows,
    decode_columns,
    decode_directory,
    encode_columns,
    encode_directory,
)

CHECKPOINT_MAGIC = b"CKPT"
CHECKPOINT = struct.Struct("<4sIQQQIIIII32s")
CHECKPOINT_HEADER = CHECKPOINT.size + 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``number`` counts from 1; ``previous`` is the offset of the one before (0: none).

    Everything before ``next_chunk`` is described by this record and those before it.
    """

    number: int
    previous: int
    next_chunk: int
    blocks: tuple[DirectoryEntry, ...]
    rows: Rows
    runs: Runs
    ranges: Runs


def encode_checkpoint(point: Checkpoint) -> bytes:
    """Header (with its CRC and the BLAKE3 of what follows), blocks, rows, extents, ranges."""
    body = b"".join(
        (
            encode_directory(point.blocks),
            encode_columns(point.rows),
            encode_runs(point.runs),
            encode_runs(point.ranges),
        )
    )
    counts = (len(point.blocks), len(point.rows), len(point.runs), len(point.ranges))
    head = CHECKPOINT.pack(
        CHECKPOINT_MAGIC,
        point.number,
        point.previous,
        point.next_chunk,
        len(body),
        *counts,
        0,
        digest_of(body),
    )
    return head + zlib.crc32(head).to_bytes(4, "little") + body


def decode_checkpoint(data: bytes, *, offset: int) -> Checkpoint:
    """The record at ``offset`` of the object; ``data`` is all its bytes."""
    check(len(data) >= CHECKPOINT_HEADER, "a checkpoint is cut short")
    magic, number, previous, next_chunk, length, *counts, reserved, digest = CHECKPOINT.unpack_from(data)
    check(magic == CHECKPOINT_MAGIC and reserved == 0, "a checkpoint has a damaged header")
    check_crc(
        data[: CHECKPOINT.size],
        int.from_bytes(data[CHECKPOINT.size : CHECKPOINT_HEADER], "little"),
        "checkpoint",
    )
    body = data[CHECKPOINT_HEADER:]
    check(len(body) == length and length == checkpoint_body(*counts), "a checkpoint has the wrong length")
    if digest_of(body) != digest:
        raise IntegrityError("the digest of a checkpoint does not match", offset=offset)
    blocks, rows, runs, _ = counts
    ends = (blocks * DIRECTORY_ENTRY.size, rows * ROW_SIZE, runs * RUN_SIZE)
    first, second, third = ends[0], ends[0] + ends[1], sum(ends)
    return Checkpoint(
        number,
        previous,
        next_chunk,
        tuple(decode_directory(body[:first], offset)),
        decode_columns(body[first:second], rows),
        decode_runs(body[second:third], limit=MAX_DISK_SIZE),
        decode_runs(body[third:], limit=MAX_DISK_SIZE),
    )


def checkpoint_body(blocks: int, rows: int, runs: int, ranges: int) -> int:
    """How many bytes follow a checkpoint's header."""
    check(rows <= MAX_ROWS, f"a checkpoint of {rows} rows is impossible")
    return blocks * DIRECTORY_ENTRY.size + rows * ROW_SIZE + (runs + ranges) * RUN_SIZE
