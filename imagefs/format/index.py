"""The index: blocks of rows in columns, and the directory that points at them (FORMAT.md, 4)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagefs.errors import IntegrityError
from imagefs.format.codec import digest_of
from imagefs.format.fields import check, check_crc

BLOCK_MAGIC = b"INDX"
BLOCK = struct.Struct("<4sIQQI")
BLOCK_HEADER = BLOCK.size + 4
ROW_SIZE = 8 + 8 + 4 + 1 + 32
MAX_ROWS = 65_536
MAX_BLOCK = BLOCK_HEADER + MAX_ROWS * ROW_SIZE
DIRECTORY_ENTRY = struct.Struct("<QQII32s")

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Index rows as columns of equal length n, sorted by ``chunk_no`` (each one once).

    ``chunk_no`` and ``offset`` (of the frame in the object) are uint64, ``stored_length`` (of the
    bytes after the frame header) uint32, ``codec`` uint8, ``digest`` uint8 of shape (n, 32).
    """

    chunk_no: U64
    offset: U64
    stored_length: npt.NDArray[np.uint32]
    codec: npt.NDArray[np.uint8]
    digest: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.chunk_no)

    @property
    def nbytes(self) -> int:
        return len(self) * ROW_SIZE


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """Where one index block lies, and the BLAKE3-256 of all its bytes."""

    first_chunk: int
    offset: int
    length: int
    rows: int
    digest: bytes


def make_rows(
    chunk_no: Sequence[int], offset: Sequence[int], stored_length: Sequence[int], codec: bytes, digest: bytes
) -> Rows:
    """Rows from plain sequences; ``digest`` is all digests one behind the other."""
    return Rows(
        np.array(chunk_no, "<u8"),
        np.array(offset, "<u8"),
        np.array(stored_length, "<u4"),
        np.frombuffer(bytes(codec), "u1"),
        np.frombuffer(bytes(digest), "u1").reshape(-1, 32),
    )


def encode_block(rows: Rows) -> bytes:
    """One index block: a 32-byte header, then the columns."""
    check(0 < len(rows) <= MAX_ROWS, f"an index block cannot have {len(rows)} rows")
    head = BLOCK.pack(BLOCK_MAGIC, len(rows), int(rows.chunk_no[0]), int(rows.chunk_no[-1]), 0)
    return b"".join((head, zlib.crc32(head).to_bytes(4, "little"), encode_columns(rows)))


def encode_columns(rows: Rows) -> bytes:
    columns = (rows.chunk_no, rows.offset, rows.stored_length, rows.codec, rows.digest)
    return b"".join(column.tobytes() for column in columns)


def decode_block(data: bytes, expected: DirectoryEntry) -> Rows:
    """The rows of a block, after holding it against its directory entry.

    Raises IntegrityError when the digest differs, FormatError when the shape is wrong.
    """
    if digest_of(data) != expected.digest:
        raise IntegrityError("the digest of an index block does not match", offset=expected.offset)
    check(len(data) >= BLOCK_HEADER, "an index block is cut short")
    magic, count, first, last, reserved = BLOCK.unpack_from(data)
    check(magic == BLOCK_MAGIC and reserved == 0, "an index block has a damaged header")
    check_crc(data[: BLOCK.size], int.from_bytes(data[BLOCK.size : BLOCK_HEADER], "little"), "index block")
    check(
        count == expected.rows and first == expected.first_chunk, "an index block contradicts its directory"
    )
    rows = decode_columns(data[BLOCK_HEADER:], count)
    check(
        int(rows.chunk_no[0]) == first and int(rows.chunk_no[-1]) == last,
        "an index block lies about its range",
    )
    return rows


def decode_columns(data: bytes, count: int) -> Rows:
    """``count`` rows from exactly ``count * ROW_SIZE`` bytes, sorted strictly by chunk_no."""
    check(len(data) == count * ROW_SIZE and 0 <= count <= MAX_ROWS, "index columns have the wrong length")
    ends = np.cumsum([8 * count, 8 * count, 4 * count, count])
    rows = Rows(
        np.frombuffer(data, "<u8", count, 0),
        np.frombuffer(data, "<u8", count, int(ends[0])),
        np.frombuffer(data, "<u4", count, int(ends[1])),
        np.frombuffer(data, "u1", count, int(ends[2])),
        np.frombuffer(data, "u1", 32 * count, int(ends[3])).reshape(-1, 32),
    )
    check(bool(np.all(rows.chunk_no[1:] > rows.chunk_no[:-1])), "index rows are out of order")
    return rows


def encode_directory(entries: Sequence[DirectoryEntry]) -> bytes:
    return b"".join(
        DIRECTORY_ENTRY.pack(entry.first_chunk, entry.offset, entry.length, entry.rows, entry.digest)
        for entry in entries
    )


def decode_directory(data: bytes, object_size: int) -> list[DirectoryEntry]:
    """The entries, each bounded: block inside the object, row count and length in step, sorted."""
    check(len(data) % DIRECTORY_ENTRY.size == 0, "the index directory has a broken length")
    entries = [DirectoryEntry(*fields) for fields in DIRECTORY_ENTRY.iter_unpack(data)]
    last = -1
    for entry in entries:
        check(0 < entry.rows <= MAX_ROWS, f"an index block of {entry.rows} rows is impossible")
        check(entry.length == BLOCK_HEADER + entry.rows * ROW_SIZE, "an index block has the wrong length")
        check(entry.offset + entry.length <= object_size, "an index block runs past the end of the image")
        check(entry.first_chunk > last, "the index directory is out of order")
        last = entry.first_chunk + entry.rows - 1
    return entries
