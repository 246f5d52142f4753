"""Volumes that several browse tests share; each is built once and never written to afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from imagefs.browse import filewriter
from imagefs.browse.scribe import Scribe
from tests.browse.disks import debugfs, make_ext, make_fat, make_ntfs, pattern, stage


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("staged"))


@pytest.fixture(scope="session")
def ext4(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext4 with what needs no root in ``staged``, and devices and odd times through debugfs."""
    path = make_ext(tmp_path_factory.mktemp("ext4") / "ext4", staged, "-I", "256")
    debugfs(
        path,
        "mknod block b 8 17",
        "mknod char c 5 1",
        "set_inode_field char mode 020620",
        "set_inode_field rnd mtime 20400102030405",
        "set_inode_field rnd mtime_extra 0x1dcd6501",
        "set_inode_field empty mtime @-86400",
        "set_inode_field empty mtime_extra 0",
    )
    return path


@pytest.fixture(scope="session")
def ext2(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ext2 with inodes of 128 bytes: block pointers instead of extents, no room for nanoseconds."""
    return make_ext(tmp_path_factory.mktemp("ext2") / "ext2", staged, "-I", "128", kind="ext2")


@pytest.fixture(scope="session")
def ntfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("ntfs")
    files = {
        "Rnd.bin": pattern(300_000),
        "a.txt": b"hello\n",
        "a.txt:stream": b"another stream, and longer",
        "empty": b"",
        "Größe Ω.txt": b"unicode",
        "plain": b"p" * 100,
    }
    return make_ntfs(room / "ntfs", files, room)


@pytest.fixture(scope="session")
def plain_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that FAT can hold."""
    root = tmp_path_factory.mktemp("plain")
    (root / "Dir").mkdir()
    (root / "a.txt").write_bytes(b"hello\n")
    (root / "Größe.txt").write_bytes(b"umlauts")
    (root / "Dir" / "A long name.bin").write_bytes(pattern(300_000))
    (root / "Dir" / "empty").touch()
    return root


@pytest.fixture(scope="session", params=["-F12", "-F16", "-F32"])
def fat(request: pytest.FixtureRequest, plain_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("fat")
    words = {"-F12": ("-F12", "-s8"), "-F16": ("-F16", "-s1"), "-F32": ("-F32", "-s1")}[request.param]
    size = 40 if request.param == "-F32" else 8
    return make_fat(room / f"fat{request.param[2:]}", plain_stage, *words, size=size << 20)


class ReadyScribe(Scribe):
    """Is waited for, so that it makes every file from the first on."""

    def is_ready(self) -> bool:
        deadline = time.monotonic() + 300
        while not super().is_ready():
            assert time.monotonic() < deadline, "it does not begin"
            time.sleep(0.001)
        return True


@pytest.fixture(params=["here", "by the scribe"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are made in this process, or in another from the first of them on."""
    if request.param != "here":
        begin_at_once(monkeypatch)


def begin_at_once(monkeypatch: pytest.MonkeyPatch, cls: type[Scribe] = ReadyScribe) -> None:
    """Have the process started for the first small file, also where there is one core."""
    monkeypatch.setattr(filewriter, "_ENOUGH", 1)
    monkeypatch.setattr(filewriter, "Scribe", cls)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
