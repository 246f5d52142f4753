"""Files that Windows compressed by itself (CompactOS): packed by wimlib, put on NTFS by ntfs-3g."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader, MarkedReader
from imagefs.browse.fwnt import unpacker
from imagefs.browse.lzx import decompress
from imagefs.browse.opening import open_filesystem
from imagefs.browse.wof import ALGORITHMS, WofReader
from imagefs.errors import BrowseError, PathNotFound
from imagefs.interfaces import FileSystem, State
from tests.browse.disks import FileReader, make_ntfs, pattern
from tests.browse.windows import PACKINGS, make_wof, ntfs3g, wof_stream
from tests.support.oracles import root_only
from tests.support.reader_contract import check_reader

#: Programs, zeros, and what cannot be compressed: chunks of every kind, and a short last one.
CONTENT = Path(os.path.realpath("/bin/sh")).read_bytes()[:90_000] + bytes(70_000) + pattern(50_001)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("wof")
    path = make_ntfs(room / "ntfs", {}, room, size=24 << 20)
    with ntfs3g(path, room / "mnt") as mounted:
        for packing in PACKINGS:
            (mounted / packing).touch()
            make_wof(mounted / packing, CONTENT, packing)
        (mounted / "marked").touch()
        Path(f"{mounted}/marked:Zone.Identifier").write_bytes(b"[ZoneTransfer]")
        make_wof(mounted / "marked", b"tiny" * 1_000, "LZX")
        for name, damage in DAMAGE.items():
            (mounted / name).touch()
            make_wof(mounted / name, CONTENT, "XPRESS4K", stream=damage(wof_stream(CONTENT, "XPRESS4K")))
    return path


DAMAGE = {
    "cut": lambda stream: stream[:-3],
    "no-table": lambda stream: stream[:100],
    "backwards": lambda stream: stream[:8] + b"\x01\0\0\0" + stream[12:],
    "too-far": lambda stream: stream[:8] + b"\xff\xff\xff\x7f" + stream[12:],
    "noise": lambda stream: stream[:210] + bytes(255 - byte for byte in stream[210:3000]) + stream[3000:],
    "empty": lambda stream: b"",
}


@pytest.fixture
def fs(volume: Path) -> FileSystem:
    return open_filesystem(FileReader(volume))


@root_only
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_way_of_packing_is_decoded(fs: FileSystem, packing: str) -> None:
    entry = fs.lookup(f"/{packing}".encode())
    assert (entry.size, entry.flags) == (len(CONTENT), ("wof",))
    check_reader(fs.open(entry), CONTENT, rounds=60)


@root_only
def test_the_packed_stream_is_not_told_but_opened_by_name(fs: FileSystem) -> None:
    entry = fs.lookup(b"/marked")
    assert [(each.name, each.size) for each in fs.streams(entry)] == [(b"Zone.Identifier", 14)]  # type: ignore[attr-defined]
    assert fs.open(entry).read_at(0, 9_999) == b"tiny" * 1_000
    packed = fs.open(fs.lookup(b"/marked:WofCompressedData"))
    assert packed.read_at(0, packed.size) == wof_stream(b"tiny" * 1_000, "LZX")
    with pytest.raises(PathNotFound):
        fs.lookup(b"/marked:other")


@root_only
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error_and_never_wrong_zeros(fs: FileSystem, name: str) -> None:
    content = fs.open(fs.lookup(f"/{name}".encode()))
    failed = 0
    for offset in range(0, content.size, 4096):
        try:
            data = content.read_at(offset, 4096)
        except BrowseError:
            failed += 1
            continue
        assert data == CONTENT[offset : offset + 4096]
    assert failed


@root_only
@pytest.mark.parametrize("state", [State.SKIPPED, State.UNREADABLE])
def test_zeros_that_stand_for_what_is_lacking_are_no_data(volume: Path, fs: FileSystem, state: State) -> None:
    """A sector of the packed stream is not in the image: chunks that need it are refused, all others read."""
    place = next(each for each in fs.places(fs.lookup(b"/XPRESS4K")) if each.stream == b"WofCompressedData")
    first = place.first + 20_480
    lacking = MarkedReader(FileReader(volume), [first], [first + 512], state)
    part = open_filesystem(lacking)
    content, told = part.open(part.lookup(b"/XPRESS4K")), list[str]()
    for offset in range(0, content.size, 4096):
        try:
            assert content.read_at(offset, 4096) == CONTENT[offset : offset + 4096]
        except BrowseError as error:
            told.append(error.message)
    assert 1 <= len(told) <= 2
    assert all("compressed are lacking" in each for each in told)


@root_only
def test_without_the_extra_it_is_named(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfwnt", None)
    with pytest.raises(BrowseError, match="CompactOS") as raised:
        fs.open(fs.lookup(b"/LZX"))
    assert "imagefs[wof]" in raised.value.hint


@pytest.mark.parametrize("number", ALGORITHMS)
def test_a_file_of_more_than_4_gib_has_a_wide_table(number: int) -> None:
    """Its first and last chunk are real, what lies between is one byte a chunk and never read."""
    chunk, lzx = ALGORITHMS[number]
    packing = next(name for name, known in PACKINGS.items() if known[0] == number)
    count = (1 << 32) // chunk + 1
    packed = wof_stream((b"first chunk " * chunk)[:chunk], packing)
    places = [len(packed) + index for index in range(count - 1)]
    table = b"".join(place.to_bytes(8, "little") for place in places)
    stream = table + packed + bytes(count - 2) + b"END"
    reader = WofReader(
        BytesReader(stream),
        (count - 1) * chunk + 3,
        chunk=chunk,
        unpack=unpacker(lzx=lzx, shown="f"),
        label="f",
    )
    assert reader.read_at(0, chunk) == (b"first chunk " * chunk)[:chunk]
    assert reader.read_at((count - 1) * chunk, 99) == b"END"
    with pytest.raises(BrowseError):
        reader.read_at(chunk, 1)


def test_a_huge_size_costs_nothing() -> None:
    reader = WofReader(BytesReader(bytes(64)), 1 << 60, chunk=4096, unpack=lambda data, size: data, label="f")
    with pytest.raises(BrowseError, match="makes no sense"):
        reader.read_at((1 << 60) - 5, 5)


@pytest.mark.parametrize("behind", range(5, 16))
@pytest.mark.parametrize("operand", [0, 1, 5_000, 11_990_000, 13_000_000, -1, -7_000, -40_000])
def test_a_call_near_the_end_of_a_chunk_keeps_its_operand(behind: int, operand: int) -> None:
    """LZX translates the operands of calls, but none of the last bytes."""
    call = b"\xe8" + operand.to_bytes(4, "little", signed=True)
    data = b"plain text, " * 800 + call + pattern(behind - 5)
    packed = wof_stream(data, "LZX")
    assert len(packed) < len(data)
    assert unpacker(lzx=True, shown="f")(packed, len(data)) == data


def test_stored_blocks_of_lzx_are_decoded() -> None:
    """wimlib makes none: an odd one that ends on a word, then one behind 16 bits of padding."""
    first, second = b"odd" * 5, b"even" * 4
    words = [3 << 13 | len(first) >> 4, (len(first) & 15) << 12]
    data = struct.pack("<2H3I", *words, 1, 2, 3) + first + b"\0"
    data += struct.pack("<2H3I", 3 << 13 | len(second) >> 4, (len(second) & 15) << 12, 1, 1, 1) + second
    assert decompress(data, 31) == first + second
    with pytest.raises(ValueError, match="too early"):
        decompress(data[:-1], 31)
    with pytest.raises(ValueError, match="cannot be"):
        decompress(data, 30)


def test_every_chunk_of_a_program_is_decoded_by_both_lzx_decoders() -> None:
    """libfwnt alone refuses some and alters the end of others."""
    program, both = (
        Path(os.path.realpath("/bin/bash")).read_bytes()[: 20 * 32768],
        unpacker(lzx=True, shown="f"),
    )
    for at in range(0, len(program), 32768):
        data = program[at : at + 32768 - at // 32768]
        packed = wof_stream(data, "LZX")
        assert both(packed, len(data)) == data
        if at % (5 * 32768) == 0:
            assert decompress(packed, len(data)) == data


@pytest.mark.parametrize("lzx", [False, True])
def test_noise_never_decodes_to_the_wrong_length(lzx: bool) -> None:
    unpack, outcomes = unpacker(lzx=lzx, shown="f"), set()
    for seed in range(200):
        noise = pattern(4 * seed + 300)[seed:]
        try:
            assert len(unpack(noise, 4096)) == 4096
            outcomes.add("decoded")
        except ValueError:
            outcomes.add("refused")
    assert "refused" in outcomes
