"""Compressed files on HFS+, entered into a disk that macOS made: no tool outside macOS makes them.

What is compressed comes from zlib and from Apple's own encoders; the trees of the disk are changed as in
"HFS Plus Volume Format" (Apple's Technical Note TN1150), and read by TSK and libfshfs in the tests.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import zlib
from itertools import accumulate, pairwise
from pathlib import Path

import lzfse

from tests.support.oracles import corpus_file

CHUNK = 65536
#: The files of the disk that are made into others, by their numbers.
FILES = {19: b"/a_directory/a_file", 20: b"/passwords.txt", 21: b"/a_directory/another_file"}
_COMPRESSED, _HAS_ATTRIBUTES = 0x20, 4


def lzvn(data: bytes) -> bytes:
    """Bare LZVN by Apple's encoder, which has no name in the Python module."""
    library = ctypes.CDLL(lzfse.__file__)
    library.lzvn_encode_buffer.restype = library.lzvn_encode_scratch_size.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(2 * len(data) + 1000)
    scratch = ctypes.create_string_buffer(library.lzvn_encode_scratch_size())
    size, length = ctypes.c_size_t(len(room)), ctypes.c_size_t(len(data))
    made = library.lzvn_encode_buffer(room, size, data, length, scratch)
    return room.raw[:made]


def packed(kind: int, chunk: bytes) -> bytes:
    """A chunk as macOS keeps it: stored behind a mark where packing does not help."""
    if kind in (1, 9, 10):
        return chunk if kind == 1 else b"\xcc" + chunk
    pack, mark = {
        3: (lambda data: zlib.compress(data, 9), b"\xff"),
        7: (lzvn, b"\x06"),
        11: (lzfse.compress, b"\xff"),
    }[kind - 1 + kind % 2]
    made = pack(chunk)
    return made if 0 < len(made) <= len(chunk) else mark + chunk


def head(kind: int, size: int) -> bytes:
    return struct.pack("<4sIQ", b"fpmc", kind, size)


def in_attribute(kind: int, data: bytes) -> tuple[bytes, bytes]:
    """(attribute, resource fork) of a file whose content is in the attribute."""
    return head(kind, len(data)) + packed(kind, data), b""


def in_fork(kind: int, data: bytes) -> tuple[bytes, bytes]:
    """(attribute, resource fork) of a file whose content is in the fork."""
    chunks = [packed(kind, data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    first = 4 + 8 * len(chunks) if kind == 4 else 4 * len(chunks) + 4
    ends = [first + sum(map(len, chunks[: at + 1])) for at in range(len(chunks))]
    if kind != 4:
        return head(kind, len(data)), struct.pack(f"<{len(ends) + 1}I", first, *ends) + b"".join(chunks)
    table = b"".join(
        struct.pack("<II", end - len(each), len(each)) for end, each in zip(ends, chunks, strict=True)
    )
    body = struct.pack("<I", len(chunks)) + table + b"".join(chunks)
    resource = struct.pack(">I", len(body)) + body
    names = struct.pack(">24x4H4sHH", 28, 50, 0, 0, b"cmpf", 0, 10) + struct.pack(">HHI4x", 1, 0xFFFF, 0)
    lengths = struct.pack(">IIII", 256, 256 + len(resource), len(resource), len(names))
    return head(kind, len(data)), lengths.ljust(256, b"\0") + resource + names


def make_mac(path: Path, files: dict[int, tuple[bytes, bytes]], *, scattered: bool = False) -> Path:
    """A copy of the disk of macOS on which FILES have these attributes and resource forks, and no content.
    ``scattered``: no two blocks of a fork touch, and the tree of attributes has two levels."""
    shutil.copyfile(corpus_file("dfvfs/test_data/hfsplus.raw"), path)
    disk = _Disk(bytearray(path.read_bytes()))
    for number, (_, fork) in files.items():
        disk.compress(number, fork, gap=int(scattered))
    disk.add_attributes(
        {number: attribute for number, (attribute, _) in files.items()}, 1 if scattered else 99
    )
    path.write_bytes(disk.data)
    return path


class _Disk:
    """The bytes of an HFS+ volume, whose special files lie in one extent each."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self._overflow: list[bytes] = []
        self._block = self._int(1024 + 40, 4)
        self._bitmap = self._int(1024 + 112 + 16, 4) * self._block
        self._extents, self._catalog, self._attributes = (
            self._int(1024 + fork + 16, 4) * self._block for fork in (192, 272, 352)
        )

    def _int(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], "big")

    def compress(self, number: int, fork: bytes, *, gap: int) -> None:
        record = self._catalog_record(number)
        struct.pack_into(">H", self.data, record + 2, self._int(record + 2, 2) | _HAS_ATTRIBUTES)
        self.data[record + 41] |= _COMPRESSED
        self.data[record + 88 : record + 248] = bytes(160)
        if not fork:
            return
        count = -(-len(fork) // self._block)
        runs = (
            [(self._allocate(1 + gap), 1) for _ in range(count)] if gap else [(self._allocate(count), count)]
        )
        struct.pack_into(">QII", self.data, record + 168, len(fork), 0, count)
        self._pack_runs(record + 184, runs[:8])
        if runs[8:]:
            self._add_extents(number, runs[8:])
        done = 0
        for first, length in runs:
            part = fork[done * self._block : (done + length) * self._block]
            self.data[first * self._block : first * self._block + len(part)] = part
            done += length

    def _pack_runs(self, at: int, runs: list[tuple[int, int]]) -> None:
        for first, length in runs:
            struct.pack_into(">II", self.data, at, first, length)
            at += 8

    def _add_extents(self, number: int, runs: list[tuple[int, int]]) -> None:
        """Into the tree of extents, which was empty; files come in the order of their numbers."""
        for at in range(0, len(runs), 8):
            row = b"".join(struct.pack(">II", *run) for run in runs[at : at + 8])
            self._overflow.append(struct.pack(">HBxII", 10, 0xFF, number, 8 + at) + row.ljust(64, b"\0"))
        self._write_leaves(self._extents, [self._overflow])

    def _catalog_record(self, number: int) -> int:
        """Where the record of a file begins: type, flags, 4 bytes, its number."""
        size = self._int(self._catalog + 32, 2)
        for node in range(self._catalog, self._catalog + 8 * size, size):
            if self.data[node + 8] != 0xFF:
                continue
            for at in range(self._int(node + 10, 2)):
                key = node + self._int(node + size - 2 - 2 * at, 2)
                record = key + 2 + self._int(key, 2)
                if (self._int(record, 2), self._int(record + 8, 4)) == (2, number):
                    return record
        raise AssertionError(f"no file {number}")

    def _allocate(self, count: int) -> int:
        blocks = range(len(self.data) // self._block)
        used = [self.data[self._bitmap + at // 8] >> 7 - at % 8 & 1 for at in blocks]
        first = next(at for at in blocks if not any(used[at : at + count]))
        for at in range(first, first + count):
            self.data[self._bitmap + at // 8] |= 0x80 >> at % 8
        return first

    def add_attributes(self, attributes: dict[int, bytes], in_leaf: int) -> None:
        """To those of the one leaf that there is; ``in_leaf`` in each leaf."""
        size, leaf = (
            self._int(self._attributes + 32, 2),
            self._attributes + self._int(self._attributes + 32, 2),
        )
        assert self.data[leaf + 8] == 0xFF, "one leaf"
        places = [self._int(leaf + size - 2 - 2 * at, 2) for at in range(self._int(leaf + 10, 2) + 1)]
        records = [bytes(self.data[leaf + a : leaf + b]) for a, b in pairwise(places)]
        name = "com.apple.decmpfs".encode("utf-16-be")
        for number, value in attributes.items():
            key = struct.pack(">HIIH", 0, number, 0, len(name) // 2) + name
            body = struct.pack(">I8xI", 0x10, len(value)) + value + bytes(len(value) % 2)
            records.append(struct.pack(">H", len(key)) + key + body)
        records.sort(key=lambda record: (record[4:8], record[14 : 14 + 2 * record[13]]))
        self._write_leaves(
            self._attributes, [records[at : at + in_leaf] for at in range(0, len(records), in_leaf)]
        )

    def _write_leaves(self, tree: int, leaves: list[list[bytes]]) -> None:
        """The whole tree: leaves from node 1 on, and a root above them where there are several."""
        size, count = self._int(tree + 32, 2), len(leaves)
        for at, records in enumerate(leaves, 1):
            self._write_node(tree + at * size, size, (at + 1) % (count + 1), at - 1, 0xFF, 1, records)
        if count > 1:
            index = [leaf[0][: 2 + leaf[0][1]] + struct.pack(">I", at) for at, leaf in enumerate(leaves, 1)]
            self._write_node(tree + (count + 1) * size, size, 0, 0, 0, 2, index)
        used = count + 1 + (count > 1)
        records = sum(map(len, leaves))
        struct.pack_into(">HIIII", self.data, tree + 14, 1 + (count > 1), used - 1, records, 1, count)
        struct.pack_into(">I", self.data, tree + 14 + 26, self._int(tree + 14 + 22, 4) - used)
        self.data[tree + 248] = 0xFF << 8 - used & 0xFF  # the map of nodes in use

    def _write_node(
        self, at: int, size: int, after: int, before: int, kind: int, height: int, records: list[bytes]
    ) -> None:
        ends = [14, *accumulate(map(len, records), initial=14)][1:]
        assert ends[-1] + 2 * len(ends) <= size, "it fits"
        head = struct.pack(">IIBBHH", after, before, kind, height, len(records), 0)
        offsets = struct.pack(f">{len(ends)}H", *reversed(ends))
        body = (head + b"".join(records)).ljust(size - len(offsets), b"\0")
        self.data[at : at + size] = body + offsets
