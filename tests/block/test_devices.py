"""Opening and reading sources: files with holes, loop devices, streams, and all that goes wrong."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.block import devices
from imagefs.block.devices import DeviceReader, StreamSource, open_source
from imagefs.errors import SourceError
from imagefs.interfaces import Extent, Extents, Reader, State
from tests.block.conftest import MakeLoop
from tests.support.oracles import root_only, tool_text
from tests.support.reader_contract import check_reader

DATA = random.Random(2).randbytes(400_001)
BLOCK = 65536


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("size", [0, 1, 512, 4097, 400_001])
def test_a_file_keeps_the_reader_contract(tmp_path: Path, size: int) -> None:
    reader = open_source(write(tmp_path / "disk.raw", DATA[:size]))
    assert isinstance(reader, Reader)
    assert isinstance(reader, Extents)
    check_reader(reader, DATA[:size])


def test_a_file_is_a_disk_of_512_byte_sectors(tmp_path: Path) -> None:
    reader = open_source(write(tmp_path / "disk.raw", DATA))
    assert (reader.is_device, reader.sector_size, reader.physical_sector_size) == (False, 512, 512)
    assert reader.identity.path.endswith("disk.raw")
    assert (reader.identity.size, reader.identity.serial) == (len(DATA), "")


@root_only
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_keeps_the_reader_contract(tmp_path: Path, make_loop: MakeLoop, sector: int) -> None:
    content = DATA[: 90 * 4096]
    write(tmp_path / "disk.raw", content)
    reader = open_source(make_loop(tmp_path / "disk.raw", f"--sector-size={sector}"))
    assert (reader.is_device, reader.sector_size) == (True, sector)
    assert reader.physical_sector_size >= sector
    assert list(reader.extents(0, reader.size)) == [Extent(State.STORED, 0, len(content))]
    assert list(reader.extents(reader.size, 5)) == []
    check_reader(reader, content)


@root_only
def test_the_size_of_a_device_is_what_blockdev_says(tmp_path: Path, make_loop: MakeLoop) -> None:
    device = make_loop(Path(write(tmp_path / "disk.raw", DATA[: 700 * 512])))
    reader = open_source(device)
    assert reader.size == int(tool_text("blockdev", "--getsize64", device))
    assert reader.sector_size == int(tool_text("blockdev", "--getss", device))
    assert reader.physical_sector_size == int(tool_text("blockdev", "--getpbsz", device))
    reader.check_unchanged()
    reader.close()


# -- holes ----------------------------------------------------------------------------------------


def test_a_file_that_is_one_hole_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hole.raw"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    reader = open_source(str(path))
    assert list(reader.extents(0, reader.size)) == [Extent(State.ZERO, 0, 1 << 43)]
    assert list(reader.extents(12345, 999)) == [Extent(State.ZERO, 12345, 999)]
    assert reader.read_at((1 << 43) - 5, 100) == bytes(5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(blocks=st.lists(st.sampled_from("hdz"), max_size=12), tail=st.integers(0, 5000))
def test_extents_agree_with_the_content(tmp_path: Path, blocks: list[str], tail: int) -> None:
    """Blocks of hole, data and written zeros: whatever is data must be covered by STORED."""
    path = tmp_path / "mixed.raw"
    expected = bytearray(len(blocks) * BLOCK + tail)
    with path.open("wb") as file:
        file.truncate(len(expected))
        for number, kind in enumerate(blocks):
            if kind != "h":
                block = bytes(BLOCK) if kind == "z" else bytes([number + 1]) * BLOCK
                os.pwrite(file.fileno(), block, number * BLOCK)
                expected[number * BLOCK : (number + 1) * BLOCK] = block
    with_closing = open_source(str(path))
    _check_covered(with_closing, bytes(expected))
    check_reader(with_closing, bytes(expected), rounds=10)


def _check_covered(reader: DeviceReader, expected: bytes) -> None:
    for offset, length in ((0, len(expected)), (1, BLOCK), (BLOCK - 1, 2 * BLOCK), (3 * BLOCK, 10)):
        position = min(offset, len(expected))
        for extent in reader.extents(offset, length):
            assert extent.offset == position
            position += extent.length
            if extent.state is State.ZERO:
                assert not any(expected[extent.offset : position])
        assert position == max(min(offset, len(expected)), min(offset + length, len(expected)))


def test_holes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        file.truncate(10 << 20)
        os.pwrite(file.fileno(), b"x" * BLOCK, 5 << 20)
    if path.stat().st_blocks * 512 >= 10 << 20:
        pytest.skip("this file system has no holes")
    states = [extent.state for extent in open_source(str(path)).extents(0, 10 << 20)]
    assert states == [State.ZERO, State.STORED, State.ZERO]


def test_a_file_system_without_hole_search_is_all_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_source(write(tmp_path / "disk.raw", bytes(3 * BLOCK)))

    def refuse(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "no such request")

    monkeypatch.setattr(devices.os, "lseek", refuse)
    assert list(reader.extents(5, BLOCK)) == [Extent(State.STORED, 5, BLOCK)]


def test_contradictory_answers_about_holes_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and a hole at one offset: the file is being written. Promise nothing, do not crawl."""
    reader = open_source(write(tmp_path / "disk.raw", bytes(3 * BLOCK)))
    asked = []

    def both(fd: int, offset: int, whence: int) -> int:
        asked.append(offset)
        return offset

    monkeypatch.setattr(devices.os, "lseek", both)
    assert list(reader.extents(0, 3 * BLOCK)) == [Extent(State.STORED, 0, 3 * BLOCK)]
    assert len(asked) < 5


def test_data_cut_in_pieces_is_one_extent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_source(write(tmp_path / "disk.raw", bytes(4000)))

    def pieces(fd: int, offset: int, whence: int) -> int:
        """Data to 3000 in pieces of 1000, then a hole."""
        if whence == os.SEEK_DATA:
            if offset >= 3000:
                raise OSError(errno.ENXIO, "no more")
            return offset
        return (offset // 1000 + 1) * 1000

    monkeypatch.setattr(devices.os, "lseek", pieces)
    assert list(reader.extents(0, 4000)) == [
        Extent(State.STORED, 0, 3000),
        Extent(State.ZERO, 3000, 1000),
    ]


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    reader = open_source(write(path, DATA))
    os.truncate(path, 100_000)
    assert reader.read_at(50_000, 50_000) == DATA[50_000:100_000]
    with pytest.raises(SourceError, match="ended early, at byte 100000 of 400001") as caught:
        reader.read_at(50_000, 100_000)
    assert caught.value.data["offset"] == 100_000
    with pytest.raises(SourceError, match="changed its size from 400001 to 100000"):
        reader.check_unchanged()


def test_a_file_that_grows_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    reader = open_source(write(path, DATA))
    reader.check_unchanged()
    with path.open("ab") as file:
        file.write(b"more")
    assert reader.read_at(0, 1 << 20) == DATA
    with pytest.raises(SourceError, match="changed its size"):
        reader.check_unchanged()


def test_a_file_that_is_written_to_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    reader = open_source(write(path, DATA))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    with pytest.raises(SourceError, match="was written to while it was read"):
        reader.check_unchanged()


def test_a_file_that_is_replaced_or_gone_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    reader = open_source(write(path, DATA))
    write(tmp_path / "other.raw", DATA)
    (tmp_path / "other.raw").replace(path)
    with pytest.raises(SourceError, match="was replaced"):
        reader.check_unchanged()
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        reader.check_unchanged()


def test_an_io_error_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hands out what comes before a bad sector, then fails."""
    reader = open_source(write(tmp_path / "disk.raw", DATA))

    def bad_at_8192(fd: int, length: int, offset: int) -> bytes:
        if offset >= 8192:
            raise OSError(errno.EIO, "bad sector")
        return DATA[offset : min(offset + length, 8192)]

    monkeypatch.setattr(devices.os, "pread", bad_at_8192)
    assert reader.read_at(0, 8192) == DATA[:8192]
    with pytest.raises(SourceError, match="at byte 8192: Input/output error") as caught:
        reader.read_at(100, 20_000)
    assert (caught.value.data["offset"], caught.value.data["errno"]) == (8192, errno.EIO)
    assert caught.value.exit_code == 10


@root_only
def test_a_device_whose_medium_shrinks_is_an_error(tmp_path: Path, make_loop: MakeLoop) -> None:
    path = tmp_path / "disk.raw"
    device = make_loop(Path(write(path, DATA[: 64 * 4096])))
    reader = open_source(device)
    os.truncate(path, 4096)
    with pytest.raises(SourceError) as caught:
        reader.read_at(0, reader.size)
    assert caught.value.data["offset"] >= 4096
    tool_text("losetup", "--set-capacity", device)
    with pytest.raises(SourceError, match="changed its size"):
        reader.check_unchanged()
    reader.close()


def test_short_reads_of_the_kernel_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(devices.os, "pread", lambda fd, length, offset: pread(fd, min(length, 777), offset))
    check_reader(open_source(write(tmp_path / "disk.raw", DATA[:20_000])), DATA[:20_000], rounds=20)


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source("with\0nul")


def test_a_folder_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder, not a disk"):
        open_source(str(tmp_path))


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is a pipe") as caught:
        open_source(str(tmp_path / "pipe"))
    assert "standard input" in caught.value.hint


def test_character_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="character device"):
        open_source("/dev/null")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        with pytest.raises(SourceError, match="socket"):
            open_source(str(tmp_path / "s"))


def test_permission_denied_hints_at_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "disk.raw", b"x")

    def deny(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(devices.os, "open", deny)
    with pytest.raises(SourceError, match="may not be read") as caught:
        open_source(path)
    assert "sudo" in caught.value.hint


@root_only
def test_a_device_without_a_medium_is_refused(tmp_path: Path, make_loop: MakeLoop) -> None:
    """As an empty card reader, a loop device over an empty file has size 0."""
    device = make_loop(Path(write(tmp_path / "empty.raw", b"")))
    with pytest.raises(SourceError, match="no medium"):
        open_source(device)


def test_opening_and_failing_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(SourceError):
            open_source("/dev/null")
        open_source(write(tmp_path / "disk.raw", b"x")).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_to_a_source_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "disk.raw", DATA)
    (tmp_path / "by-id").symlink_to(tmp_path / "disk.raw")
    reader = open_source(str(tmp_path / "by-id"))
    reader.check_unchanged()
    check_reader(reader, DATA, rounds=5)


# -- streams --------------------------------------------------------------------------------------


def feed(pieces: list[bytes], fd: int) -> threading.Thread:
    def work() -> None:
        with os.fdopen(fd, "wb", buffering=0) as out:
            for piece in pieces:
                out.write(piece)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 40_000), max_size=15), step=st.integers(1, 100_000))
def test_a_stream_gives_full_pieces_however_it_arrives(cuts: list[int], step: int) -> None:
    pieces = [DATA[:cut] for cut in cuts]
    into, out = os.pipe()
    thread = feed(pieces, out)
    source = StreamSource(into)
    got = []
    while data := source.read(step):
        got.append(data)
    thread.join()
    os.close(into)
    assert b"".join(got) == b"".join(pieces)
    assert all(len(data) == step for data in got[:-1])
    assert source.position == sum(cuts)
    assert source.path == "standard input"


def test_a_stream_that_is_not_ready_is_waited_for() -> None:
    into, out = os.pipe()
    os.set_blocking(into, False)
    timer = threading.Timer(0.05, lambda: (os.write(out, b"late"), os.close(out)))
    timer.start()
    assert StreamSource(into).read(100) == b"late"
    timer.join()
    os.close(into)


def test_a_stream_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(SourceError, match="standard input cannot be read after byte 0: Is a directory"):
        StreamSource(folder).read(10)
    os.close(folder)


def test_a_stream_refuses_negative_lengths_and_gives_nothing_for_none(tmp_path: Path) -> None:
    fd = os.open(write(tmp_path / "in", b"abc"), os.O_RDONLY)
    source = StreamSource(fd)
    with pytest.raises(ValueError):
        source.read(-1)
    assert source.read(0) == b""
    assert source.read(3) == b"abc"
    assert source.read(3) == b""
    os.close(fd)
