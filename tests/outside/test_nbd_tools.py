"""``imagefs nbd`` held against the clients of others: libnbd's tools and qemu's, on a GPT disk with ext4."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import imagefs
from imagefs.interfaces import State
from tests.support.images import noise
from tests.support.nbdserver import Served, nbd_server
from tests.support.oracles import need_tool, run_tool, tool_text

MIB = 2**20
SIZE = 96 * MIB
START = 32 * MIB
#: Noise that is stored as it is, alone in its chunks.
MARK, MARK_SIZE = 8 * MIB, 3 * MIB


@dataclass(frozen=True)
class Stage:
    room: Path
    disk: Path
    served: Served


def command(room: Path, *words: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "imagefs", *words], cwd=room, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk: GPT, a raw p1 with noise in it, an ext4 p2; captured twice, changed in between."""
    need_tool("sfdisk", "mke2fs")
    room = tmp_path_factory.mktemp("nbd")
    files = room / "files"
    files.mkdir()
    for number in range(20):
        (files / f"f{number}").write_bytes(noise(200_000, number + 1))
    disk = room / "disk.raw"
    with disk.open("wb") as out:
        out.truncate(SIZE)
        out.seek(MARK)
        out.write(noise(MARK_SIZE, 99))
    table = f"label: gpt\nstart={MIB // 512}, size={30 * MIB // 512}\nstart={START // 512}, size={60 * MIB // 512}\n"
    run_tool(["sfdisk", "-q", disk], stdin=table.encode())
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={START}", "-d", files, disk, "60M"])
    command(room, "capture", "disk.raw", "set", "--mode", "all", "--chunk-size", "64K")
    with disk.open("r+b") as out:
        out.seek(70 * MIB + 12_345)
        out.write(b"changed since")
    command(room, "capture", "disk.raw", "set")
    return room


@pytest.fixture(scope="module")
def stage(shop: Path) -> Iterator[Stage]:
    with nbd_server(shop, "set") as served:
        yield Stage(shop, shop / "disk.raw", served)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def expected_map(room: Path, selector: str = "set") -> list[tuple[int, int, bool]]:
    """(offset, length, whether it holds data), from the image's own extents."""
    rows: list[tuple[int, int, bool]] = []
    with imagefs.open(room / selector) as disk:
        for extent in disk.extents(0, disk.size):
            stored = extent.state is State.STORED
            if rows and rows[-1][2] == stored:
                rows[-1] = (rows[-1][0], rows[-1][1] + extent.length, stored)
            else:
                rows.append((extent.offset, extent.length, stored))
    return rows


def test_nbdinfo_sees_what_is_offered(stage: Stage) -> None:
    need_tool("nbdinfo")
    told = json.loads(tool_text("nbdinfo", "--json", "--list", stage.served.uri))
    sizes = {row["export-name"]: row["export-size"] for row in told["exports"]}
    assert sizes == {"disk": SIZE, "p1": 30 * MIB, "p2": 60 * MIB}
    assert (told["protocol"], told["structured"]) == ("newstyle-fixed", True)
    (default,) = json.loads(tool_text("nbdinfo", "--json", stage.served.uri))["exports"]
    assert default["is_read_only"]
    assert default["can_multi_conn"]
    assert default["contexts"] == ["base:allocation"]
    assert (default["block_size_minimum"], default["block_size_preferred"]) == (1, 64 * 1024)
    assert default["block_size_maximum"] == 32 * MIB
    run_tool(["nbdinfo", "--is", "read-only", stage.served.uri])
    run_tool(["nbdinfo", "--can", "write", stage.served.uri], ok=(2,))


def test_the_map_is_that_of_the_chunk_states(stage: Stage) -> None:
    need_tool("nbdinfo", "qemu-img")
    expected = expected_map(stage.room)
    assert len(expected) > 4
    rows = json.loads(tool_text("nbdinfo", "--map", "--json", stage.served.uri))
    assert [(row["offset"], row["length"], row["type"] == 0) for row in rows] == expected
    assert {row["type"] for row in rows} == {0, 3}
    mapped = json.loads(tool_text("qemu-img", "map", "--output=json", "-f", "raw", stage.served.uri))
    assert [(row["start"], row["length"], row["data"]) for row in mapped] == expected
    assert all(row["zero"] is not row["data"] for row in mapped)


def test_nbdcopy_over_several_connections(stage: Stage) -> None:
    need_tool("nbdcopy")
    for connections in ("1", "8"):
        out = stage.room / "copy.raw"
        out.unlink(missing_ok=True)
        run_tool(["nbdcopy", f"--connections={connections}", "--threads=4", stage.served.uri, out])
        assert sha256(out) == sha256(stage.disk)
        assert out.stat().st_blocks * 512 < SIZE // 2, "holes stay holes"


def test_qemu_img_converts_and_compares(stage: Stage) -> None:
    need_tool("qemu-img")
    out = stage.room / "convert.raw"
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", "raw", stage.served.uri, out])
    assert sha256(out) == sha256(stage.disk)
    raw = ["-f", "raw", "-F", "raw"]
    assert "identical" in tool_text("qemu-img", "compare", *raw, stage.served.uri, stage.disk)
    with out.open("r+b") as stream:
        stream.seek(MARK)
        stream.write(b"\0")
    run_tool(["qemu-img", "compare", *raw, stage.served.uri, out], ok=(1,))


def test_a_volume_and_a_point_in_time(stage: Stage) -> None:
    need_tool("qemu-img", "e2fsck")
    volume = stage.room / "p2.raw"
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", "raw", stage.served.of("p2"), volume])
    with stage.disk.open("rb") as stream:
        stream.seek(START)
        assert hashlib.sha256(stream.read(60 * MIB)).hexdigest() == sha256(volume)
    run_tool(["e2fsck", "-fn", volume], ok=(0, 4))
    with nbd_server(stage.room, "set@latest~1", "--partition", "2") as served:
        assert [row["name"] for row in served.document["exports"]] == ["p2"]
        before = stage.room / "before.raw"
        run_tool(["qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri, before])
        tool_text("e2fsck", "-fn", before)
        at = 70 * MIB + 12_345 - START
        old, new = before.read_bytes(), volume.read_bytes()
        assert new[at : at + 13] == b"changed since"
        assert old[:at] == new[:at]
        assert old[at : at + 13] != new[at : at + 13]
        run_tool(["nbdinfo", "--size", served.uri.replace("///", "///disk")], ok=(1,))


def test_qemu_io_reads_and_may_not_write(stage: Stage) -> None:
    need_tool("qemu-io")
    reads = ["-c", f"read {MARK} 4096", "-c", f"read -P 0 {20 * MIB} 1M", "-c", f"read {SIZE - 512} 512"]
    run_tool(["qemu-io", "-r", "-f", "raw", *reads, stage.served.uri])
    wrong = run_tool(["qemu-io", "-f", "raw", "-c", "write 0 512", stage.served.uri], ok=(0, 1))
    assert b"wrote" not in wrong.stdout


def test_nbdfuse_shows_it_as_a_file(stage: Stage) -> None:
    need_tool("nbdfuse", "fusermount3", "cmp")
    place = stage.room / "fuse"
    place.mkdir()
    with subprocess.Popen(["nbdfuse", place, stage.served.uri], stderr=subprocess.DEVNULL) as running:
        try:
            end = time.monotonic() + 300
            while not (place / "nbd").exists():
                assert running.poll() is None, "nbdfuse ended"
                assert time.monotonic() < end, "nbdfuse shows nothing"
                time.sleep(0.02)
            run_tool(["cmp", place / "nbd", stage.disk])
        finally:
            subprocess.run(["fusermount3", "-u", place], check=False)
            running.wait(timeout=600)


def test_many_at_once(stage: Stage) -> None:
    need_tool("nbdcopy", "qemu-img")

    def copy(number: int) -> str:
        out = stage.room / f"many{number}.raw"
        run_tool(["nbdcopy", "--connections=4", stage.served.uri, out])
        return sha256(out)

    def compare(_: int) -> str:
        return tool_text("qemu-img", "compare", "-f", "raw", "-F", "raw", stage.served.uri, stage.disk)

    with ThreadPoolExecutor(5) as pool:
        copies, compared = pool.map(copy, range(3)), pool.map(compare, range(2))
        assert set(copies) == {sha256(stage.disk)}
        assert all("identical" in text for text in compared)


def test_damage_is_an_error_where_it_is_and_nowhere_else(shop: Path, tmp_path: Path) -> None:
    """One byte of one stored chunk is changed: its 64 KiB cannot be read, everything else can."""
    need_tool("qemu-img", "qemu-io", "nbdcopy")
    for image in sorted((shop / "set").glob("*.imagefs")):
        (tmp_path / image.name).write_bytes(image.read_bytes())
    full = min(tmp_path.iterdir())
    content = bytearray(full.read_bytes())
    at = content.find(noise(MARK_SIZE, 99)[MIB : MIB + 64])
    assert at > 0, "noise is stored as it is"
    content[at] ^= 1
    full.chmod(0o600)
    full.write_bytes(content)
    bad, end = MARK + MIB, MARK + MIB + 64 * 1024
    with nbd_server(shop, str(tmp_path)) as served:
        near = ((bad - 4096, 4096, 0), (bad, 512, 1), (bad - 512, 1024, 1), (end - 1, 1, 1), (end, 4096, 0))
        for start, length, code in near:
            done = run_tool(
                ["qemu-io", "-r", "-f", "raw", "-c", f"read {start} {length}", served.uri], ok=(0, 1)
            )
            assert done.returncode == code, (start, length, done.stderr)
            assert (b"Input/output error" in done.stderr + done.stdout) is bool(code)
        out = tmp_path / "salvaged.raw"
        run_tool(["qemu-img", "convert", "--salvage", "-f", "raw", "-O", "raw", served.uri, out])
        expected = bytearray((shop / "disk.raw").read_bytes())
        expected[bad:end] = bytes(end - bad)
        assert hashlib.sha256(expected).hexdigest() == sha256(out)
        run_tool(["nbdcopy", served.uri, tmp_path / "no.raw"], ok=(1,))
        assert "integrity" in served.log.read_text()
        assert "chunk=" in served.log.read_text()


def test_serving_leaves_no_trace_on_the_images(stage: Stage) -> None:
    need_tool("nbdcopy")
    images = sorted((stage.room / "set").iterdir())
    before = [(path.name, path.stat().st_mtime_ns, sha256(path)) for path in images if path.is_file()]
    with nbd_server(stage.room, "set") as served:
        run_tool(["nbdcopy", served.uri, "null:"])
    assert sorted((stage.room / "set").iterdir()) == images
    assert [(path.name, path.stat().st_mtime_ns, sha256(path)) for path in images if path.is_file()] == before
    assert os.listdir(stage.room / "set")
