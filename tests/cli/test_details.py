"""Streams, extended attributes and local times on the command line and in a mount, end to end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browse.disks import debugfs, make_fat, make_ntfs, pattern
from tests.browse.windows import make_wof, ntfs3g
from tests.cli.conftest import Cli
from tests.mounter.conftest import clear
from tests.support.oracles import root_only

MARK = b"[ZoneTransfer]\r\nZoneId=3\r\n"


@pytest.fixture
def windows(cli: Cli, tmp_path: Path) -> Cli:
    """A set of an NTFS with streams of a file and a folder, and a compressed program."""
    volume = make_ntfs(tmp_path / "disk", {"a.exe": b"content"}, tmp_path, size=16 << 20)
    with ntfs3g(volume, tmp_path / "made") as mounted:
        Path(f"{mounted}/a.exe:Zone.Identifier").write_bytes(MARK)
        Path(f"{mounted}/a.exe:large").write_bytes(pattern(100_000))
        (mounted / "Folder").mkdir()
        Path(f"{mounted}/Folder:notes").write_bytes(b"of the folder")
        (mounted / "packed").touch()
        make_wof(mounted / "packed", b"program " * 10_000, "LZX")
    assert cli("capture", "disk", "set").code == 0
    return cli


@root_only
def test_streams_on_the_command_line(windows: Cli, tmp_path: Path) -> None:
    rows = windows("ls", "set", "/p0", "--streams", "--json").document["entries"]
    sizes = {row["path"]: row["size"] for row in rows if "$" not in row["path"]}
    assert sizes == {
        "/p0/a.exe": 7,
        "/p0/a.exe:Zone.Identifier": len(MARK),
        "/p0/a.exe:large": 100_000,
        "/p0/Folder": sizes["/p0/Folder"],
        "/p0/Folder:notes": 13,
        "/p0/packed": 80_000,
    }
    assert windows("cat", "set", "/p0/a.exe:zone.identifier").out == MARK
    (row,) = windows("stat", "set", "/p0/a.exe", "--json").document["entries"]
    assert {each["name"]: each["size"] for each in row["streams"]} == {
        "Zone.Identifier": len(MARK),
        "large": 100_000,
    }
    assert f"stream     Zone.Identifier {len(MARK)}\n" in windows("stat", "set", "/p0/a.exe").text
    assert windows("get", "set", "/p0/a.exe:large", "/p0/packed", ".").code == 0
    assert (tmp_path / "a.exe:large").read_bytes() == pattern(100_000)
    assert (tmp_path / "packed").read_bytes() == b"program " * 10_000
    missing = windows("cat", "set", "/p0/a.exe:none")
    assert (missing.code, missing.out) == (40, b"")
    assert "there is no stream '/a.exe:none'" in missing.err


@root_only
def test_streams_of_a_mount_are_opened_by_name_and_told(windows: Cli, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    assert windows("mount", "set", "mnt").code == 0
    try:
        files = mnt / "p0"
        assert "a.exe:large" not in os.listdir(files)
        assert (files / "a.exe:large").read_bytes() == pattern(100_000)
        assert (files / "A.EXE:ZONE.IDENTIFIER").read_bytes() == MARK
        assert (files / "Folder:notes").read_bytes() == b"of the folder"
        assert (files / "packed").read_bytes() == b"program " * 10_000
        told = os.getxattr(files / "a.exe", "user.imagefs.streams")
        assert set(told.split(b"\n")) == {b"Zone.Identifier", b"large"}
        assert "user.imagefs.streams" in os.listxattr(files / "Folder")
        assert "user.imagefs.streams" not in os.listxattr(files / "packed")
        assert (files / "a.exe:large").stat().st_ino != (files / "a.exe").stat().st_ino
        with pytest.raises(FileNotFoundError):
            os.stat(files / "a.exe:none")
    finally:
        clear(mnt)


def test_attributes_of_ext_in_stat_and_on_a_mount(cli: Cli, ext4: Path, tmp_path: Path) -> None:
    debugfs(ext4, "ea_set /report.txt user.comment seen", "ea_set -f /dev/null /report.txt user.empty")
    (tmp_path / "binary").write_bytes(b"\xff\x00\x01")
    debugfs(ext4, f"ea_set -f {tmp_path}/binary /report.txt trusted.binary")
    assert cli("capture", "ext4.raw", "set").code == 0
    (row,) = cli("stat", "set", "/p0/report.txt", "--json").document["entries"]
    told = {each["name"]: each.get("value", each.get("value_b64")) for each in row["xattrs"]}
    assert told == {"user.comment": "seen", "user.empty": "", "trusted.binary": "/wAB"}
    text = cli("stat", "set", "/p0/report.txt").text
    assert "xattr      user.comment=seen\n" in text
    assert "xattr      trusted.binary=0s/wAB\n" in text
    mnt = tmp_path / "mnt"
    assert cli("mount", "set", "mnt").code == 0
    try:
        report = mnt / "p0" / "report.txt"
        assert os.getxattr(report, "user.comment") == b"seen"
        assert {"user.comment", "user.empty", "user.imagefs.stored"} <= set(os.listxattr(report))
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(report, "user.none")
    finally:
        clear(mnt)


def test_fat_times_are_those_of_the_zone_one_names(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")  # of mcopy
    root = tmp_path / "root"
    root.mkdir()
    for name, stamp in (("summer", 1_625_140_800), ("winter", 1_609_502_400)):  # noon UTC
        (root / name).touch()
        os.utime(root / name, (stamp, stamp))
    make_fat(tmp_path / "disk", root)
    assert cli("capture", "disk", "set").code == 0
    cases = {
        "UTC": ("2021-07-01T12:00:00Z", "2021-01-01T12:00:00Z"),
        "Europe/Berlin": ("2021-07-01T10:00:00Z", "2021-01-01T11:00:00Z"),
    }
    for zone, expected in cases.items():
        rows = cli("ls", "set", "/p0", "--json", "--fat-tz", zone).document["entries"]
        assert tuple(row["mtime"] for row in sorted(rows, key=lambda row: row["path"])) == expected
    (row,) = cli("stat", "set", "/p0/summer", "--json", "--fat-tz", "Europe/Berlin").document["entries"]
    assert row["times"] == "local time without a zone, read as Europe/Berlin (--fat-tz)"
    assert (row["mtime"], row["flags"]) == ("2021-07-01T10:00:00Z", ["local-times"])
    assert cli("ls", "set", "/p0", "--fat-tz", "Nowhere").code == 2
    assert cli("mount", "set", "mnt", "--fat-tz", "America/New_York").code == 0
    try:
        assert (tmp_path / "mnt/p0/summer").stat().st_mtime == 1_625_140_800 + 4 * 3600
    finally:
        clear(tmp_path / "mnt")
    assert cli("get", "set", "/p0/winter", "got", "--fat-tz", "Europe/Berlin").code == 0
    assert (tmp_path / "got").stat().st_mtime == 1_609_502_400 - 3600
