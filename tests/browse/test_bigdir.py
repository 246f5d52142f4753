"""Directory blocks read without TSK: damage, torn blocks, and any bytes at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse.bigdir import Damage, ExtNames, Name, Names, NtfsNames
from imagefs.browse.content import Piece
from imagefs.errors import IntegrityError
from tests.browse.disks import BreakingReader, dirent

BLOCK = 1024


def ext_block(*names: bytes) -> bytes:
    raw = b"".join(dirent(10 + number, name) for number, name in enumerate(names[:-1]))
    return raw + dirent(99, names[-1], BLOCK - len(raw))


def index_entry(name: str, reference: int, *, space: int = 1) -> bytes:
    key = bytes(64) + bytes((len(name), space)) + name.encode("utf-16-le", "surrogatepass")
    length = 16 + len(key) + -len(key) % 8
    return (struct.pack("<QHHHH", reference, length, len(key), 0, 0) + key).ljust(length, b"\0")


def node(*entries: bytes) -> bytes:
    body = b"".join(entries) + struct.pack("<QHHHH", 0, 16, 0, 2, 0)
    return struct.pack("<IIII", 16, 16 + len(body), 16 + len(body), 0) + body


def index_root(*entries: bytes, size: int = 4096) -> bytes:
    return struct.pack("<IIII", 0x30, 1, size, 1) + node(*entries)


def index_block(*entries: bytes, size: int = 4096) -> bytes:
    """An INDX block with its fixups in place; the entries begin behind them."""
    count = size // 512 + 1
    begin = 24 + 16 + 2 * count + -(2 * count) % 8
    body = node(*entries)[16:]
    header = struct.pack("<IIII", begin - 24, begin - 24 + len(body), size - 24, 0)
    raw = bytearray(struct.pack("<4sHHQQ", b"INDX", 40, count, 0, 0) + header)
    raw = bytearray(raw.ljust(begin, b"\0") + body).ljust(size, b"\0")
    raw[40:42] = b"\x07\x00"
    for sector in range(1, count):
        end = sector * 512
        raw[40 + 2 * sector : 42 + 2 * sector] = raw[end - 2 : end]
        raw[end - 2 : end] = b"\x07\x00"
    return bytes(raw)


def listed(names: Names, damage: Damage) -> list[Name]:
    return [each for _, block in names.blocks(damage) for each in block]


def ext(data: bytes) -> tuple[list[bytes], Damage]:
    damage = Damage()
    return [
        each.name for each in listed(ExtNames(BytesReader(data), BLOCK, [Piece(0, len(data), 0)]), damage)
    ], damage


def test_ext_names_in_order_and_without_the_dots() -> None:
    first = dirent(2, b".", kind=2) + dirent(2, b"..", kind=2) + dirent(0, b"gone") + dirent(12, b"a")
    first += dirent(0, b"", BLOCK - len(first))
    names, damage = ext(first + ext_block(b"b", b"c" * 255))
    assert names == [b"a", b"b", b"c" * 255]
    assert damage.blocks == 0


@pytest.mark.parametrize("length", [4, 7, 10, 1028, 60000])
def test_a_broken_length_costs_the_rest_of_its_block(length: int) -> None:
    broken = dirent(5, b"first") + struct.pack("<IHBB", 6, length, 4, 1) + b"lost"
    names, damage = ext(broken.ljust(BLOCK, b"\0") + ext_block(b"next"))
    assert names == [b"first", b"next"]
    assert (damage.blocks, damage.first) == (1, 16)


def test_a_block_that_cannot_be_read_costs_its_own_names() -> None:
    data = ext_block(b"a") + ext_block(b"b") + ext_block(b"c")
    damage = Damage()
    reader = BreakingReader(BytesReader(data), BLOCK, BLOCK + 1)
    assert [each.name for each in listed(ExtNames(reader, BLOCK, [Piece(0, len(data), 0)]), damage)] == [
        b"a",
        b"c",
    ]
    assert isinstance(damage.error, IntegrityError)


def ntfs(root: bytes, allocation: bytes, used: bytes) -> tuple[list[tuple[bytes, int, int | None]], Damage]:
    damage = Damage()
    names = listed(NtfsNames(root, BytesReader(allocation), used), damage)
    return [each[:3] for each in names], damage


def test_ntfs_names_of_root_and_blocks() -> None:
    root = index_root(index_entry("Größe", 64 | 3 << 48), index_entry("GRE~1", 64, space=2))
    blocks = index_block(*(index_entry(f"name {n}", 100 + n) for n in range(30))) + index_block(
        index_entry("unused", 7)
    )
    names, damage = ntfs(root, blocks, b"\x01")
    assert names[0] == ("Größe".encode(), 64, 3)
    assert [name for name, _, _ in names[1:]] == [b"name %d" % n for n in range(30)]
    assert damage.blocks == 0


@pytest.mark.parametrize("at", [0, 4, 6, 510, 1022, 4095])
def test_a_torn_block_is_counted_and_passed(at: int) -> None:
    block = bytearray(index_block(*(index_entry(f"name {n}", 100 + n) for n in range(30))))
    block[at] ^= 0x55
    names, damage = ntfs(index_root(), bytes(block) + index_block(index_entry("good", 5)), b"\x03")
    assert names == [(b"good", 5, 0)]
    assert damage.blocks == 1


def test_a_lone_surrogate_stays_what_it_is() -> None:
    names, _ = ntfs(index_root(index_entry("a\ud800", 5)), b"", b"")
    assert names[0][0] == b"a\xed\xa0\x80"


def test_ntfs_names_are_found_one_by_one() -> None:
    """Some of them lie across the end of a sector, where two bytes are kept elsewhere."""
    texts = ["Größe", "a\ud800", "\U0001f4be disk", *(f"{'x' * (50 + n % 7)}name {n}" for n in range(15))]
    blocks = index_block(*(index_entry(text, 100 + n) for n, text in enumerate(texts)))
    torn = bytearray(index_block(index_entry("torn", 5)))
    torn[510] ^= 0x55
    unused = index_block(index_entry("unused", 7))
    names = NtfsNames(index_root(index_entry("at the root", 9)), BytesReader(blocks + torn + unused), b"\x03")
    every = listed(names, Damage())
    assert len(every) == len(texts) + 1
    for each in every:
        assert names.named(each.name) == [each]
    for name in (b"torn", b"unused", b"x" * 53 + b"NAME 3", b"name 3", b"\xff\xfe", b""):
        assert names.named(name) == []


def test_ext_names_are_found_one_by_one() -> None:
    data = ext_block(b"a", b"b", b"twice") + ext_block(b"twice", b"c" * 255)
    reader = BreakingReader(BytesReader(data + ext_block(b"lost")), 2 * BLOCK, 3 * BLOCK)
    names = ExtNames(reader, BLOCK, [Piece(0, 3 * BLOCK, 0)])
    assert [len(names.named(name)) for name in (b"a", b"twice", b"c" * 255, b"c" * 254, b"lost")] == [
        1,
        2,
        1,
        0,
        0,
    ]


@given(st.binary(max_size=4096))
def test_any_ext_block_is_survived(data: bytes) -> None:
    names, _ = ext(data)
    assert len(names) <= len(data) // 8


@given(st.binary(max_size=600), st.binary(max_size=8192), st.binary(max_size=4))
def test_any_ntfs_index_is_survived(root: bytes, allocation: bytes, used: bytes) -> None:
    names, _ = ntfs(root, allocation, used)
    assert len(names) <= (len(root) + len(allocation)) // 16


@given(st.integers(0, 4095), st.integers(1, 255))
def test_any_flip_in_a_block_is_survived(at: int, mask: int) -> None:
    block = bytearray(index_block(*(index_entry(f"name {n}", 100 + n) for n in range(30))))
    block[at] ^= mask
    names, _ = ntfs(index_root(), bytes(block), b"\x01")
    assert len(names) <= 4096 // 16
