"""Which files lie in given places, beside The Sleuth Kit's own ifind and istat and e2fsprogs' icheck."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader, RefusingReader
from imagefs.interfaces import Volume
from imagefs.ops.affected import find_affected, on_disk
from imagefs.volume import read_table
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool, tool_text

SIZES = {"one": 50_000, "two": 300_000, "three": 90_000, "tiny": 20}


def make(tmp_path: Path, kind: str) -> Path:
    path, files = tmp_path / "fs", tmp_path / "files"
    files.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        (files / name).write_bytes(noise(size, number + 1))
    run_tool(["truncate", "-s", "40M", path])
    if kind == "ext4":
        need_tool("mke2fs")
        run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", files, path])
    elif kind == "ntfs":
        need_tool("mkntfs", "ntfscp")
        run_tool(["mkntfs", "-q", "-F", "-f", path])
        for name in SIZES:
            run_tool(["ntfscp", "-q", "-f", path, files / name, name])
    else:
        need_tool("mkfs.fat", "mcopy")
        run_tool(["mkfs.fat", "-F", "16", "-s", "8", path])
        run_tool(["mcopy", "-i", path, *(files / name for name in SIZES), "::/"])
    return path


def place_of(data: bytes, name: str) -> int:
    at = data.find(noise(SIZES[name], list(SIZES).index(name) + 1)[:16])
    assert at >= 0
    return at


@pytest.mark.parametrize("kind", ["ext4", "ntfs", "fat16"])
def test_the_files_and_only_they(tmp_path: Path, kind: str) -> None:
    need_tool("ifind")
    path = make(tmp_path, kind)
    data = path.read_bytes()
    one, two = place_of(data, "one"), place_of(data, "two")
    ranges = [(one + 512, one + 1024), (two + 4096, two + 4097), (39 * 2**20, 39 * 2**20 + 512)]
    disk = BytesReader(data)
    found = find_affected(on_disk(disk, read_table(disk, sector_size=512).volumes), ranges)
    assert found.notes == []
    names = {place.path for place in found.places}
    assert names == {b"/one", b"/two"}
    assert [(place.first, place.end) for place in found.places] == sorted(ranges[:2])
    assert found.files_in(*ranges[0]) == ["/p0/one"]
    assert found.files_in(*ranges[1]) == ["/p0/two"]
    assert found.files_in(*ranges[2]) == []
    unit = 512 if kind == "fat16" else 4096
    inode = tool_text("ifind", "-d", str(one // unit), path).split("-")[0].strip()
    assert "one" in tool_text("ffind", path, inode)


def test_the_rest_of_a_last_cluster_is_no_part_of_a_file(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4").read_bytes()
    end = place_of(data, "one") + SIZES["one"]
    disk = BytesReader(data)
    found = find_affected(on_disk(disk, read_table(disk, sector_size=512).volumes), [(end, end + 100)])
    assert found.places == []


def test_records_of_small_files_in_the_mft(tmp_path: Path) -> None:
    """A file of 20 bytes lies in its record, whole."""
    data = make(tmp_path, "ntfs").read_bytes()
    at = place_of(data, "tiny")
    disk = BytesReader(data)
    found = find_affected(on_disk(disk, read_table(disk, sector_size=512).volumes), [(at, at + 1)])
    assert {(place.path, place.stream) for place in found.places} == {
        (b"/$MFT", b""),
        (b"/tiny", b"metadata"),
    }
    assert found.files_in(at, at + 1) == ["/p0/$MFT", "/p0/tiny (metadata)"]


@pytest.mark.parametrize("length", [512, 1024])
def test_a_record_that_could_not_be_read(tmp_path: Path, length: int) -> None:
    """Its bytes are zeros then, and nobody can open the file: its name is told all the same."""
    data = bytearray(make(tmp_path, "ntfs").read_bytes())
    at = place_of(bytes(data), "tiny") // 1024 * 1024
    data[at : at + length] = bytes(length)
    disk = BytesReader(bytes(data))
    found = find_affected(on_disk(disk, read_table(disk, sector_size=512).volumes), [(at, at + length)])
    assert (b"/tiny", b"metadata") in {(place.path, place.stream) for place in found.places}
    assert found.notes == []


def test_an_inode_that_could_not_be_read(tmp_path: Path) -> None:
    """Where an inode lies is asked of debugfs."""
    path = make(tmp_path, "ext4")
    told = tool_text("debugfs", "-R", "imap /two", path)
    where = re.search(r"block (\d+), offset 0x([0-9a-f]+)", told)
    assert where
    at = int(where[1]) * 4096 + int(where[2], 16)
    data = bytearray(path.read_bytes())
    data[at : at + 256] = bytes(256)
    disk = BytesReader(bytes(data))
    found = find_affected(on_disk(disk, read_table(disk, sector_size=512).volumes), [(at, at + 256)])
    assert found.files_in(at, at + 1) == ["/p0/two (metadata)"]


def test_what_cannot_be_browsed_is_told(tmp_path: Path) -> None:
    disk = BytesReader(noise(2**20))
    found = find_affected(on_disk(disk, [Volume(3, 4096, 2**19)]), [(5000, 6000), (0, 10)])
    assert found.places == []
    assert len(found.notes) == 1
    assert found.notes[0].startswith("p3: ")


def test_damage_on_the_way_costs_names_only(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4").read_bytes()
    one = place_of(data, "one")
    bad = RefusingReader(BytesReader(data), [one], [one + 4096], "the test")
    found = find_affected(on_disk(bad, [Volume(0, 0, len(data))]), [(one, one + 4096)])
    assert [place.path for place in found.places] == [b"/one"]
