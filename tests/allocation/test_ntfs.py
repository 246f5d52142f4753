"""Allocation maps of NTFS beside partclone and ntfsinfo, and by the experiment."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.allocation.ntfs import OpenFile, read_ntfs
from imagefs.allocation.usedmap import UsedMap
from imagefs.block.views import BytesReader
from imagefs.browse.opening import open_filesystem
from imagefs.errors import AllocationError, ImagefsError, PathNotFound
from imagefs.interfaces import FileSystem, Reader
from tests.allocation import experiment
from tests.support.oracles import need_tool, root_only, run_tool, tool_text


def opener(fs: FileSystem, **instead: bytes) -> OpenFile:
    """Opens the files of ``fs``, but those that are given ``instead``."""

    def open_file(path: bytes) -> Reader | None:
        name = path.decode().strip("/$").partition(".")[0]
        if name in instead:
            return BytesReader(instead[name])
        try:
            return fs.open(fs.lookup(path))
        except PathNotFound:
            return None

    return open_file


def read(data: bytes) -> UsedMap:
    reader = BytesReader(data)
    with contextlib.closing(open_filesystem(reader)) as fs:
        return read_ntfs(reader, opener(fs))


@contextlib.contextmanager
def mounted(path: Path, place: Path) -> Iterator[Path]:
    need_tool("ntfs-3g", "umount")
    place.mkdir(exist_ok=True)
    run_tool(["ntfs-3g", path, place])
    try:
        yield place
    finally:
        run_tool(["umount", place])


def make(tmp_path: Path, *words: str) -> tuple[Path, set[str]]:
    need_tool("mkntfs", "ntfsfix")
    path = tmp_path / "fs"
    run_tool(["truncate", "-s", "40M", path])
    run_tool(["mkntfs", "-q", "-F", "-f", *words, path])
    with mounted(path, tmp_path / "mnt") as folder:
        for name in experiment.SIZES:
            (folder / name).write_bytes(experiment.content(name))
        for name in experiment.DELETED:
            (folder / name).unlink()
        (folder / "deep").mkdir()
        for number in range(300):
            (folder / "deep" / f"small {number}").write_bytes(b"x" * number * 7)
    return path, set(experiment.SIZES) - experiment.DELETED


@root_only
@pytest.mark.parametrize("words", [(), ("-c", "512"), ("-c", "65536")], ids=["usual", "512", "64K"])
def test_nothing_is_missed(tmp_path: Path, words: tuple[str, ...]) -> None:
    path, names = make(tmp_path, *words)
    experiment.overwrite(path, read(path.read_bytes()))
    run_tool(["ntfsfix", "-n", path])
    with mounted(path, tmp_path / "mnt") as folder:
        assert {each.name for each in folder.iterdir()} == names | {"deep"}
        for name in names:
            assert (folder / name).read_bytes() == experiment.content(name)
        for number in range(300):
            assert (folder / "deep" / f"small {number}").read_bytes() == b"x" * number * 7


@root_only
def test_beside_partclone_and_ntfsinfo(tmp_path: Path) -> None:
    path, _ = make(tmp_path)
    found = read(path.read_bytes())
    ours = experiment.sectors(found, path.stat().st_size)
    theirs = experiment.by_partclone("partclone.ntfs", path, tmp_path)
    assert not (theirs & ~ours).any()
    assert (ours & ~theirs).sum() <= 8, "the tail"
    told = tool_text("ntfsinfo", "-m", path)
    free = re.search(r"Free Clusters:\s+(\d+)", told)
    assert free
    unused = sum(b - a for a, b in experiment.unused(found, path.stat().st_size))
    assert unused == int(free[1]) * found.block_size


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need_tool("mkntfs")
    path = tmp_path_factory.mktemp("small") / "fs"
    run_tool(["truncate", "-s", "4M", path])
    run_tool(["mkntfs", "-q", "-F", "-f", path])
    return path.read_bytes()


def restart_page(sequence: int, in_use: int, flags: int) -> bytes:
    head = b"RSTR" + struct.pack("<HHQIIHhH", 30, 9, 0, 4096, 4096, 48, 1, 1)
    return head.ljust(48, b"\0") + struct.pack("<QHHHH", sequence, 1, 0xFFFF, in_use, flags).ljust(464, b"\0")


def log(first: tuple[int, int, int], second: tuple[int, int, int]) -> bytes:
    return restart_page(*first).ljust(4096, b"\0") + restart_page(*second).ljust(4096, b"\0")


def test_what_cannot_be_relied_on_is_refused(small: bytes) -> None:
    reader = BytesReader(small)
    mft = struct.unpack_from("<Q", small, 48)[0] * 4096
    information = small.index(b"\x03\x01", mft + 3 * 1024, mft + 4 * 1024)
    with contextlib.closing(open_filesystem(reader)) as fs:
        bits = fs.open(fs.lookup(b"/$Bitmap")).read_at(0, 1 << 20)
        assert len(read_ntfs(reader, opener(fs)).first)
        for ours in (log((5, 0xFFFF, 0), (4, 0, 0)), log((4, 0, 0), (5, 0, 2)), b"\xff" * 4096):
            read_ntfs(reader, opener(fs, LogFile=ours))
        read_ntfs(reader, opener(fs, hiberfil=b"wake"))
        cases = {
            "replayed": (reader, opener(fs, LogFile=log((5, 0, 0), (4, 0xFFFF, 0)))),
            "LogFile is not": (reader, opener(fs, LogFile=bytes(8192))),
            "hibernated": (reader, opener(fs, hiberfil=b"HIBR" + bytes(4096))),
            "no room": (reader, opener(fs, Bitmap=bits[:100])),
            "calls clusters free": (reader, opener(fs, Bitmap=bytes(len(bits)))),
            "cleanly": (experiment.patched(small, information + 2, b"\1"), opener(fs)),
            "damaged": (experiment.patched(small, mft + 3 * 1024 + 510, b"zz"), opener(fs)),
            "boot sector makes": (experiment.patched(small, 13, b"\7"), opener(fs)),
            "more than": (BytesReader(small[:-1_000_000]), opener(fs)),
            "not that of": (experiment.patched(small, 3, b"EXFAT"), opener(fs)),
        }
        for words, (volume, files) in cases.items():
            with pytest.raises(AllocationError, match=words):
                read_ntfs(volume, files)


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_hostile_bytes(small: bytes, changes: list[tuple[int, int]]) -> None:
    """Changes in the boot sector and in the record of $Volume."""
    data = bytearray(small)
    record = struct.unpack_from("<Q", small, 48)[0] * 4096 + 3 * 1024
    for at, value in changes:
        data[at if at < 512 else record + at - 512] = value
    try:
        found = read(bytes(data))
    except ImagefsError:
        return
    experiment.inside(found, len(data))
