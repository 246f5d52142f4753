"""A disk of nearly 2^63 bytes, from capture to restore, as a sparse file on tmpfs, which takes such files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagefs.block.devices import open_source
from imagefs.block.views import SliceReader, extents_of
from imagefs.format.header import Kind
from imagefs.image.catalog import scan
from imagefs.interfaces import Extent, State
from imagefs.ops.skips import Skips
from imagefs.store import MemoryStore
from imagefs.volume import read_table
from tests.cli.conftest import Cli
from tests.support.images import Craft, capture_file, noise
from tests.support.oracles import need_tool, run_tool, tool_text

SIZE = 2**63 - 512
MAX = 2**63 - 1
#: Where the disk holds something.
PLACES = {2**40 + 5: b"a terabyte", 2**62 + 77: b"half of it", SIZE - 100_000: b"near the end"}
SHM = Path("/dev/shm")


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder whose files may be of any size."""
    if not SHM.is_dir() or "tmpfs" not in tool_text("stat", "-f", "-c", "%T", SHM):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs a tmpfs on /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix="imagefs-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def huge(room: Path) -> Path:
    """The disk: a GPT by sgdisk with two partitions, the second one nearly all of it."""
    need_tool("sgdisk")
    path = room / "huge.raw"
    write_at(path, PLACES)
    os.truncate(path, SIZE)
    run_tool(["sgdisk", "-n", "1:2048:+1G", "-n", "2:0:0", path])
    return path


def write_at(path: Path, places: dict[int, bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for at, data in places.items():
            os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def part(path: Path, at: int, length: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, length, at)
    finally:
        os.close(fd)


def test_from_capture_to_restore(cli: Cli, huge: Path, room: Path, tmp_path: Path) -> None:
    assert cli("capture", str(huge), "set", "--mode", "all").code == 0
    write_at(huge, {2**62 + 2**61: b"something new"})
    assert cli("capture", str(huge), "set", "--json").document["kind"] == "incremental"
    facts = cli("info", "set", "--json").document
    assert facts["disk_size"] == SIZE == sum(facts["states"].values())
    assert sum(facts["layer_states"].values()) == SIZE
    first, second = facts["volumes"]
    assert (first["start"], first["length"]) == (1 << 20, 1 << 30)
    assert second["length"] > SIZE - (1 << 31)
    assert "8.0 EiB" in cli("ls", "set").text
    assert "8.0 EiB" in cli("list", "set").text
    for level in ("quick", "data"):
        assert cli("verify", "set", "--level", level).code == 0
    assert cli("verify", "set", "--against", str(huge)).code == 0
    assert cli("restore", "set", str(room / "back.raw"), "--verify").code == 0
    assert (room / "back.raw").stat().st_size == SIZE
    for at in (*PLACES, 0, 2**62 + 2**61, SIZE - 5000):
        assert part(room / "back.raw", at, 500) == part(huge, at, 500)


def test_what_no_file_system_takes_is_one_sentence(cli: Cli, huge: Path, tmp_path: Path) -> None:
    assert cli("capture", str(huge), "set", "--mode", "all").code == 0
    ran = cli("restore", "set", "back.raw")
    if ran.code != 0:  # ext4 stops at 16 TiB, others go on for ever
        assert ran.code == 11
        assert "file system does not take files of that size" in ran.err


def test_mounted(cli: Cli, huge: Path, tmp_path: Path) -> None:
    need_tool("fusermount3")
    assert cli("capture", str(huge), "set", "--mode", "all").code == 0
    assert cli("mount", "set", "mnt").code == 0
    try:
        disk = tmp_path / "mnt/disk.raw"
        assert disk.stat().st_size == SIZE
        assert disk.stat().st_blocks < 1 << 16
        for at in (*PLACES, 0, 2**62, SIZE - 512):
            assert part(disk, at, 512) == part(huge, at, 512)
        fd = os.open(disk, os.O_RDONLY)
        try:
            assert os.lseek(fd, 2**41, os.SEEK_DATA) in range(2**62 - 2**23, 2**62 + 78)
            assert os.lseek(fd, 2**41, os.SEEK_HOLE) == 2**41
        finally:
            os.close(fd)
        volume = tmp_path / "mnt/p2.raw"
        start = json.loads((tmp_path / "mnt/image.json").read_bytes())["volumes"][1]["start"]
        assert part(volume, 2**62 + 77 - start, 10) == PLACES[2**62 + 77]
    finally:
        assert cli("umount", "mnt").code == 0


def test_a_differing_byte_far_out_is_found(cli: Cli, huge: Path) -> None:
    assert cli("capture", str(huge), "set", "--mode", "all").code == 0
    write_at(huge, {2**62 + 2**60: b"!"})
    ran = cli("verify", "set", "--against", str(huge), "--json")
    assert ran.code == 4
    (finding,) = ran.document["findings"]
    assert finding["offset"] <= 2**62 + 2**60 < finding["offset"] + finding["length"]


# -- the parts, to the last byte that there can be -------------------------------------------------


class Sparse:
    """A Reader and Extents of MAX bytes that holds ``noise`` at a few places and zeros elsewhere."""

    size = MAX
    places = (0, 2**40, 2**62, MAX - 4096)

    def read_at(self, offset: int, length: int, /) -> bytes:
        end = min(offset + length, self.size)
        out = bytearray(max(0, end - offset))
        for place in self.places:
            first, last = max(offset, place), min(end, place + 4096)
            if first < last:
                out[first - offset : last - offset] = noise(4096, place)[first - place : last - place]
        return bytes(out)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        end, at = min(offset + length, self.size), offset
        for place in (*self.places, self.size):
            if at < min(place, end):
                yield Extent(State.ZERO, at, min(place, end) - at)
            at = max(at, min(place, end))
            if at < min(place + 4096, end):
                yield Extent(State.STORED, at, min(place + 4096, end) - at)
                at = min(place + 4096, end)

    def close(self) -> None:
        pass


def test_views_to_the_last_byte() -> None:
    reader = Sparse()
    assert sum(extent.length for extent in extents_of(reader, 0, MAX)) == MAX
    tail = SliceReader(reader, MAX - 8192, MAX)
    assert tail.size == 8192
    assert tail.read_at(4096, 10**9) == noise(4096, MAX - 4096)
    assert [extent.offset for extent in tail.extents(0, MAX)] == [0, 4096]
    whole = SliceReader(reader, 1, MAX)
    assert whole.size == MAX - 1
    assert whole.read_at(MAX - 2, 5) == noise(4096, MAX - 4096)[-1:]
    assert whole.read_at(MAX - 1, 5) == b""


def test_a_partition_table_is_looked_for_at_both_ends() -> None:
    table = read_table(Sparse(), sector_size=512)
    assert [volume.length for volume in table.volumes] == [MAX]


@pytest.mark.parametrize("chunk", [16 << 10, 4 << 20])
def test_skipped_ranges_to_the_last_byte(chunk: int) -> None:
    skips = Skips(np.array([0, 2**62], np.int64), np.array([2**61 + 1, MAX], np.int64))
    assert skips.bytes == 2**61 + 1 + MAX - 2**62
    assert list(skips.chunks(chunk, MAX)) == [(0, 2**61 // chunk), (2**62 // chunk, -(-MAX // chunk))]
    assert skips.within(MAX - 10, MAX) == [(MAX - 10, MAX)]


@pytest.mark.parametrize("chunk", [16 << 10, 4 << 20])
def test_images_of_the_largest_disk(chunk: int) -> None:
    """The largest chunk numbers there are, in a full image and through a child."""
    store, chunks = MemoryStore(), -(-MAX // chunk)
    last = MAX - (chunks - 1) * chunk
    head = {"chunk_size": chunk}
    ends = [(0, noise(chunk, 1)), (chunks - 1, noise(last, 2))]
    Craft(MAX, chunks=ends, extents=[(1, chunks - 2, 2)], header=head).put(store, "a.imagefs")
    parent = scan(store).images[0]
    child = {"parent": parent, "created": 10**18 + 1, "header": head}
    Craft(MAX, Kind.INCREMENTAL, chunks=[(chunks - 2, noise(chunk, 3))], extents=[(0, 1, 3)], **child).put(
        store, "b.imagefs"
    )
    catalog = scan(store)
    disk = catalog.open_disk(catalog.images[1])
    assert disk.size == MAX
    assert sum(extent.length for extent in disk.extents(0, MAX)) == MAX
    assert [run.state for run in disk.runs()] == [State.SKIPPED, State.ZERO, State.STORED, State.STORED]
    assert disk.read_at(MAX - last - 10, MAX) == noise(chunk, 3)[-10:] + noise(last, 2)
    assert disk.read_at(MAX - 1, 100) == noise(last, 2)[-1:]
    assert disk.read_at(MAX, 100) == b""
    assert disk.read_at(0, 100) == bytes(100)
    assert disk.view_digest()
    disk.close()


def test_capture_plans_by_holes(huge: Path) -> None:
    """What is read of the disk is what it holds, however large it is."""
    store = MemoryStore()
    made = capture_file(store, huge, chunk_size=16 << 10)
    assert made.read_bytes < 1 << 22
    source = open_source(str(huge))
    disk = scan(store).open_disk(made.info)
    for at in (*PLACES, 0, SIZE - 33 * 512):
        assert disk.read_at(at, 20_000) == source.read_at(at, 20_000)
    disk.close()
    source.close()
