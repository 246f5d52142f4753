"""APFS on the command line and on a mount: what is encrypted, and snapshots as points in time."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.browse.apfsdisks import CONTAINER, changed, disk_of
from tests.browse.disks import make_ext, sparse_file
from tests.cli.conftest import Cli
from tests.cli.mounts import Room
from tests.support.oracles import root_only, run_tool

SECRET = b"password"
UNLOCK = ("--unlock", "p0=fd:0")
#: By its published digest; macOS compressed it in several ways.
_FORK_SUM = "5f46d97f947137dcf974fc19914c547acd18fcdb25124c846c1100f8b3fbca5f"
_UUID = "11111111-2222-3333-4444-555555555555"
_TEXT = "\uf8ff File System\n".encode()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("encrypted", "snapshot", "case_sensitive"):
        (folder / f"{name}.raw").write_bytes(disk_of(name))
        run_tool([sys.executable, "-P", "-m", "imagefs", "capture", folder / f"{name}.raw", folder / name])
    return folder


def test_an_encrypted_volume_says_what_opens_it(sets: Path, cli: Cli) -> None:
    ran = cli("ls", str(sets / "encrypted"), "--json")
    (row,) = ran.document["entries"]
    assert (row["filesystem"], row["label"], row["state"]) == ("apfs", "Encrypted", "locked")
    assert row["needs"] == ["password", "recovery key"]
    assert "p0 is locked (APFS): --unlock p0 asks" in cli("ls", str(sets / "encrypted")).err
    ran = cli("cat", str(sets / "encrypted"), "/p0/dir/file")
    assert (ran.code, "--unlock" in ran.err) == (40, True)
    ran = cli("ls", str(sets / "encrypted"), "--json", *UNLOCK, stdin=b"wrong")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (40, "locked")
    ran = cli("ls", str(sets / "case_sensitive"), *UNLOCK, stdin=SECRET)
    assert (ran.code, "no locked volume p0" in ran.err) == (2, True)


def test_files_of_an_encrypted_volume(sets: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("cat", str(sets / "encrypted"), "/p0/dir/file", *UNLOCK, stdin=SECRET).out == _TEXT
    ran = cli("get", str(sets / "encrypted"), "/p0/dir", "out", "--manifest", "sums", *UNLOCK, stdin=SECRET)
    assert ran.code == 3, ran.err  # there are devices
    run_tool(["sha256sum", "-c", "--quiet", "sums"], cwd=tmp_path)
    for name in ("zlib", "lzvn", "lzfse"):
        content = (tmp_path / f"out/compressed-{name}-fork").read_bytes()
        assert hashlib.sha256(content).hexdigest() == _FORK_SUM
    ran = cli("find", str(sets / "encrypted"), "--contains", "File System", *UNLOCK, stdin=SECRET)
    assert sorted(ran.text.split()) == ["/p0/dir/file", "/p0/hardlink"]
    ran = cli("history", str(sets / "encrypted"), "/p0/dir/file", "--json", *UNLOCK, stdin=SECRET)
    assert [row["change"] for row in ran.document["versions"]] == ["first seen"]
    ran = cli("diff", str(sets / "encrypted"), str(sets / "encrypted"), *UNLOCK, stdin=SECRET)
    assert ran.code == 0, ran.err


def test_an_encrypted_volume_on_a_mount(sets: Path, room: Room) -> None:
    (room / "secret").write_bytes(SECRET)
    room.run("mount", sets / "encrypted", "mnt", "--unlock", f"p0=file:{room / 'secret'}")
    assert (room / "mnt/p0/dir/file").read_bytes() == _TEXT
    packed = (room / "mnt/p0/dir/compressed-lzvn-fork").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == _FORK_SUM
    room.run("umount", "mnt")
    room.run("mount", sets / "encrypted", "mnt")
    assert "'Encrypted' is encrypted; `imagefs ls IMAGE` says" in (room / "mnt/p0.txt").read_text()
    room.run("umount", "mnt")
    room.run("mount", sets / "encrypted", "mnt", "--history", "--unlock", f"p0=file:{room / 'secret'}")
    assert (room / "mnt/latest/p0/dir/file").read_bytes() == _TEXT
    room.run("umount", "mnt")


def test_names_on_a_mount_are_those_of_macos(sets: Path, room: Room) -> None:
    """Before and after their folder was listed."""
    room.run("mount", sets / "case_sensitive", "mnt")
    composed, decomposed = "nfd_t\u00e9stfil\u00e8", "nfd_te\u0301stfile\u0300"
    for _ in range(2):
        assert (room / "mnt/p0" / composed).stat().st_ino == (room / "mnt/p0" / decomposed).stat().st_ino
        assert not (room / "mnt/p0/nfd_t\u00e9st").exists()
        assert decomposed in os.listdir(room / "mnt/p0")
    room.run("umount", "mnt")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A set with two images of a disk with an ext4 and an encrypted APFS, both of which changed."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"one")
    disk = sparse_file(tmp_path / "disk", 24 << 20)
    run_tool(["sfdisk", "-q", disk], stdin=b"label: gpt\nstart=2048, size=16384\nstart=20480, size=8192\n")
    for content, byte in ((b"one", b"\0"), (b"two", b"\1")):
        (tmp_path / "tree/file").write_bytes(content)
        part = make_ext(tmp_path / "part", tmp_path / "tree", "-U", _UUID, size=8 << 20)
        with disk.open("r+b") as file:
            file.seek(2048 * 512)
            file.write(part.read_bytes())
            file.seek(20480 * 512)
            file.write(disk_of("encrypted")[:-1] + byte)
        run_tool([sys.executable, "-P", "-m", "imagefs", "capture", disk, tmp_path / "set", "--mode", "all"])
    return tmp_path / "set"


def test_a_locked_partition_does_not_hide_the_others(pair: Path, cli: Cli) -> None:
    images = sorted(str(path) for path in pair.glob("*.imagefs"))
    found = cli("diff", *images, "--json").document
    rows = {row["id"]: row for row in found["volumes"]}
    assert [each["path"] for each in found["differences"]] == ["/p1/file"]
    assert rows["p2"]["way"] == "unreadable"
    assert "encrypted" in rows["p2"]["why"]
    ran = cli("diff", *images, "--json", "--unlock", "p2=fd:0", stdin=SECRET)
    rows = {row["id"]: row for row in ran.document["volumes"]}
    assert rows["p2"]["way"] != "unreadable"


def test_snapshots_are_points_in_time(sets: Path, cli: Cli) -> None:
    rows = cli("ls", str(sets / "snapshot"), "--json").document["entries"]
    assert len(rows) == 513
    assert {row["role"] for row in rows[1:]} == {"snapshot"}
    row = rows[301]
    assert (row["name"], row["inside"], row["mtime"][:10]) == ("Snapshot 300", "p0", "2025-10-17")
    assert cli("cat", str(sets / "snapshot"), f"{row['path']}/file").out == b"Snapshot 300\n"
    assert cli("cat", str(sets / "snapshot"), "/p0/file").code == 40
    ran = cli("find", str(sets / "snapshot"), "--name", "file")
    assert ran.out == b""
    ran = cli("find", str(sets / "snapshot"), row["path"], "--name", "file")
    assert ran.text == f"{row['path']}/file\n"


@root_only
def test_devices_are_taken_out_as_what_they_are(sets: Path, cli: Cli, tmp_path: Path) -> None:
    """But for those that had numbers of other systems when macOS made them."""
    ran = cli("get", str(sets / "case_sensitive"), "/p0/dir", "out", "--owners")
    assert (ran.code, ran.err.count("no device of Linux has its numbers")) == (3, 3)
    for name, kind, device in (("blockdev", stat.S_IFBLK, (24, 57)), ("chardev", stat.S_IFCHR, (13, 68))):
        facts = os.lstat(tmp_path / "out" / name)
        assert (stat.S_IFMT(facts.st_mode), facts.st_rdev) == (kind, os.makedev(*device))


@pytest.mark.parametrize("several", [False, True])
def test_a_file_with_another_name_is_renamed(several: bool, cli: Cli, tmp_path: Path) -> None:
    """Also where case does not matter, and in one of several volumes, whose files have the same numbers."""

    def twice(raw: bytearray) -> None:
        raw[192:200] = raw[184:192]

    def other_name(raw: bytearray) -> None:
        raw[:] = raw.replace(b"\0symlink-dir\0", b"\0symlink-dix\0").replace(
            b"symlink-dir\0", b"symlink-dix\0"
        )

    disk = disk_of("case_insensitive")
    disk = changed(disk, twice, CONTAINER) if several else disk
    for each in (disk, changed(disk, other_name, 2, 3)):
        (tmp_path / "disk").write_bytes(each)
        assert cli("capture", "disk", "set", "--mode", "all").code == 0
    images = sorted(str(path) for path in (tmp_path / "set").glob("*.imagefs"))
    rows = cli("diff", *images, "--json").document["differences"]
    tops = [f"/p0/Case Insensitive~{number}" for number in range(2)] if several else ["/p0"]
    assert [(row["change"], row["path"], row["renamed_from"]) for row in rows] == [
        ("renamed", f"{top}/symlink-dix", f"{top}/symlink-dir") for top in tops
    ]
