"""Allocation maps of exFAT beside partclone and fsck.exfat, and by the experiment."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.allocation.exfat import read_exfat
from imagefs.block.views import BytesReader
from imagefs.errors import AllocationError, ImagefsError
from tests.allocation import experiment
from tests.support.oracles import need_tool, root_only, run_tool, unpacked_corpus_file


@contextlib.contextmanager
def mounted(path: Path, place: Path) -> Iterator[Path]:
    """``path`` through the FUSE driver, which marks it clean when it ends."""
    need_tool("mount.exfat-fuse", "umount", "losetup")
    place.mkdir(exist_ok=True)
    device = run_tool(["losetup", "--find", "--show", path]).stdout.decode().strip()
    with subprocess.Popen(
        ["mount.exfat-fuse", "-d", device, place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        try:
            end = time.monotonic() + 300
            while not place.is_mount():
                assert driver.poll() is None, "the driver ended"
                assert time.monotonic() < end, "nothing was mounted"
                time.sleep(0.02)
            yield place
        finally:
            subprocess.run(["umount", place], check=False)
            try:
                driver.wait(timeout=600)
            finally:
                driver.kill()
            run_tool(["losetup", "--detach", device])


def make(tmp_path: Path, *words: str, size: str = "40M") -> tuple[Path, set[str]]:
    """A file system with files in it, and their names."""
    need_tool("mkfs.exfat", "fsck.exfat")
    path = tmp_path / "fs"
    run_tool(["truncate", "-s", size, path])
    run_tool(["mkfs.exfat", *words, path])
    with mounted(path, tmp_path / "mnt") as folder:
        for name in experiment.SIZES:
            (folder / name).write_bytes(experiment.content(name))
        for name in experiment.DELETED:
            (folder / name).unlink()
        (folder / "deep").mkdir()
        (folder / "deep" / "f39").write_bytes(experiment.content("f39"))
    run_tool(["fsck.exfat", "-n", path])
    return path, set(experiment.SIZES) - experiment.DELETED


@root_only
@pytest.mark.parametrize("words", [(), ("-c", "512"), ("-c", "32K")], ids=["usual", "512", "32K"])
def test_nothing_is_missed(tmp_path: Path, words: tuple[str, ...]) -> None:
    path, names = make(tmp_path, *words)
    experiment.overwrite(path, read_exfat(BytesReader(path.read_bytes())))
    run_tool(["fsck.exfat", "-n", path])
    with mounted(path, tmp_path / "mnt") as folder:
        assert {each.name for each in folder.iterdir()} == names | {"deep"}
        for name in names:
            assert (folder / name).read_bytes() == experiment.content(name)
        assert (folder / "deep" / "f39").read_bytes() == experiment.content("f39")


@root_only
def test_beside_partclone(tmp_path: Path) -> None:
    path, _ = make(tmp_path)
    ours = experiment.sectors(read_exfat(BytesReader(path.read_bytes())), path.stat().st_size)
    theirs = experiment.by_partclone("partclone.exfat", path, tmp_path)
    assert not (theirs & ~ours).any()
    boot = 2 * 2**20 // 512
    assert (ours & ~theirs)[boot:].sum() < 100, "no more than what lies behind the last cluster"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need_tool("mkfs.exfat")
    path = tmp_path_factory.mktemp("small") / "fs"
    run_tool(["truncate", "-s", "4M", path])
    run_tool(["mkfs.exfat", "-c", "4096", "-b", "64K", path])
    return path.read_bytes()


def resealed(data: bytes, at: int, value: bytes) -> BytesReader:
    """A changed boot sector under a checksum that is right again."""
    data = data[:at] + value + data[at + len(value) :]
    checksum = 0
    for place, byte in enumerate(data[: 11 * 512]):
        if place not in (106, 107, 112):
            checksum = ((checksum >> 1) + ((checksum & 1) << 31) + byte) & 0xFFFFFFFF
    return BytesReader(data[: 11 * 512] + struct.pack("<I", checksum) * 128 + data[12 * 512 :])


def test_what_cannot_be_relied_on_is_refused(small: bytes) -> None:
    heap, clusters = struct.unpack_from("<II", small, 88)
    cluster = 4096
    root = heap * 512 + (struct.unpack_from("<I", small, 96)[0] - 2) * cluster
    bitmap = next(at for at in range(root, root + cluster, 32) if small[at] == 0x81)
    bits = heap * 512 + (struct.unpack_from("<I", small, bitmap + 20)[0] - 2) * cluster
    cases = {
        "cleanly": experiment.patched(small, 106, b"\2"),
        "boot region": experiment.patched(small, 100, bytes([small[100] ^ 0x77])),
        "kind of exFAT": resealed(small, 110, b"\2"),
        "makes no sense": resealed(small, 92, struct.pack("<I", clusters * 9)),
        "chain": resealed(small, 96, struct.pack("<I", clusters + 2)),
        "no allocation bitmap": experiment.patched(small, bitmap, b"\1"),
        "does not fit": experiment.patched(small, bitmap + 24, struct.pack("<Q", 3)),
        "free that its own": experiment.patched(small, bits, b"\0"),
        "more than": BytesReader(small[:-4096]),
        "not that of": experiment.patched(small, 3, b"NTFS"),
    }
    for words, reader in cases.items():
        with pytest.raises(AllocationError, match=words):
            read_exfat(reader)


def test_a_file_in_clusters_that_are_called_free(tmp_path: Path) -> None:
    """A disk of others: a cluster of a file in a folder."""
    path = unpacked_corpus_file("exfatprogs/tests/bad_bitmap/exfat.img.tar.xz", tmp_path, member="*.img")
    with pytest.raises(AllocationError, match="that a file of it uses"):
        read_exfat(BytesReader(path.read_bytes()))


@root_only
def test_each_cluster_of_each_file_counts(tmp_path: Path) -> None:
    """Whichever bit of the bitmap is cleared, it is noticed (every eleventh is tried)."""
    path, _ = make(tmp_path, "-c", "4096", size="12M")
    data = path.read_bytes()
    plain = read_exfat(BytesReader(data))
    heap, _, root = struct.unpack_from("<III", data, 88)
    bits = heap * 512 + (first_of(data, 0x81, heap * 512 + (root - 2) * 4096) - 2) * 4096
    own = [n for n in range(struct.unpack_from("<I", data, 92)[0]) if data[bits + n // 8] >> n % 8 & 1]
    assert len(own) > 100
    assert plain.used_bytes >= len(own) * 4096
    for number in own[::11]:
        value = bytes([data[bits + number // 8] & ~(1 << number % 8)])
        with pytest.raises(AllocationError, match="calls clusters free"):
            read_exfat(experiment.patched(data, bits + number // 8, value))


def first_of(data: bytes, kind: int, folder: int) -> int:
    """The first cluster of an entry of that kind."""
    at = next(at for at in range(folder, folder + 4096, 32) if data[at] == kind)
    return int(struct.unpack_from("<I", data, at + 20)[0])


@given(st.lists(st.tuples(st.integers(64, 113), st.integers(0, 255)), max_size=4), st.randoms())
@settings(max_examples=200, deadline=None)
def test_hostile_bytes(small: bytes, changes: list[tuple[int, int]], random: object) -> None:
    data = bytearray(small)
    for at, value in changes:
        data[at] = value
    try:
        found = read_exfat(resealed(bytes(data), 0, b""))
    except ImagefsError:
        return
    experiment.inside(found, len(data))
