"""Disks made to climb out of the folder they are extracted to: real volumes whose directories were changed by hand."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.browse.archive import archive
from imagefs.browse.extract import extract
from imagefs.browse.opening import open_filesystem
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.browse.tarzip import archive_writer
from imagefs.interfaces import FileSystem
from tests.browse.disks import FileReader, debugfs, fls, make_ext, make_fat, make_ntfs

pytestmark = pytest.mark.usefixtures("made")


def set_names(path: Path, changes: dict[bytes, bytes]) -> Path:
    """Names replaced by others of the same length, wherever they stand."""
    data = path.read_bytes()
    for old, new in changes.items():
        assert len(old) == len(new)
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)
    return path


def ext_disk(room: Path) -> Path:
    """``../../up`` and ``/abs/ol`` as names, ``..`` a second time, NUL in one, two equal ones, a symlink ``same``
    to the outside and a folder ``same`` with a file in it."""
    source = room / "source"
    (source / "SAME-D").mkdir(parents=True)
    (source / "SAME-D" / "passwd").write_bytes(b"evil")
    (source / "SUB").mkdir()
    for name in ("AAAAAAAA", "BBBBBBB", "CC", "NULL-NUL", "EQUAL1", "EQUAL2", "SUB/DD", "SUB/EEEEE"):
        (source / name).write_bytes(b"evil")
    os.symlink(room / "outside", source / "SAME-L")
    make_ext(room / "ext4", source, "-O", "^metadata_csum,^dir_index")
    return set_names(
        room / "ext4",
        {
            b"AAAAAAAA": b"../../up",
            b"BBBBBBB": b"/abs/ol",
            b"\x02\x01CC": b"\x02\x01..",
            b"NULL-NUL": b"../\0/nul",
            b"EQUAL2": b"EQUAL1",
            b"SAME-L": b"SAME-D",
            b"\x02\x01DD": b"\x02\x01..",
            b"EEEEE": b"../up",
        },
    )


def fat_disk(room: Path) -> Path:
    """Long names with ``../`` in them, a short name ``..``, one with a NUL, two equal ones."""
    source = room / "plain"
    source.mkdir()
    for name in ("a long name of mine.txt", "other long name too.txt", "SHORT", "EQUAL1", "EQUAL2", "ZERO"):
        (source / name).write_bytes(b"evil")
    make_fat(room / "fat", source, "-F16", "-s1")
    return set_names(
        room / "fat",
        {
            "a lon".encode("utf-16-le"): "../..".encode("utf-16-le"),
            "other".encode("utf-16-le"): "/etc/".encode("utf-16-le"),
            b"SHORT      ": b"..         ",
            b"EQUAL2     ": b"EQUAL1     ",
            b"ZERO       ": b"../\0/X  TXT",
        },
    )


def ntfs_disk(room: Path) -> Path:
    """Names in the index of the root and in the records: ``../../u``, ``/abs/o``, ``..``, one with a NUL,
    equal ones; a stream ``../../s``."""
    files = dict.fromkeys(("AAAAAAA", "BBBBBB", "CC", "NUL-NUL", "EQUAL1", "EQUAL2", "CONX"), b"evil")
    files["AAAAAAA:STREAMS"] = b"evil"
    make_ntfs(room / "ntfs", files, room)
    changes = {
        "AAAAAAA": "../../u",
        "BBBBBB": "/abs/o",
        "NUL-NUL": "../\0/nu",
        "EQUAL2": "EQUAL1",
        "STREAMS": "../../s",
    }
    changed = {old.encode("utf-16-le"): new.encode("utf-16-le") for old, new in changes.items()}
    changed[b"\x02\x00C\0C\0"] = b"\x02\x00.\0.\0"
    changed[b"\x02\x03C\0C\0"] = b"\x02\x03.\0.\0"
    data = (room / "ntfs").read_bytes()
    return set_names(room / "ntfs", {old: new for old, new in changed.items() if old in data})


#: What some of the evil names become.
SHOWN = {
    "ext4": {
        "..%2F..%2Fup",
        "%2Fabs%2Fol",
        "%2E%2E",
        "..%2F%00%2Fnul",
        "EQUAL1~15",
        "EQUAL1~16",
        "SAME-D~18/passwd",
    },
    "fat": {"..%2F..g name of mine.txt", "%2Fetc%2F long name too.txt", "%2E%2E", "EQUAL1~4", "EQUAL1~5"},
    "ntfs": {"..%2F..%2Fu", "%2Fabs%2Fo", "%2E%2E", "..%2F%00%2Fnu", "EQUAL1~68-128-2", "EQUAL1~69-128-2"},
}
DISKS: dict[str, Callable[[Path], Path]] = {"ext4": ext_disk, "fat": fat_disk, "ntfs": ntfs_disk}
EVERYTHING = ExtractOptions(streams=True, xattrs=True, hard_links=True)


@pytest.fixture(params=list(DISKS))
def disk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hostile(disk: str, tmp_path: Path) -> FileSystem:
    room = tmp_path / "made"
    room.mkdir()
    (room / "outside").mkdir()
    return open_filesystem(FileReader(DISKS[disk](room)))


def beneath(folder: Path) -> set[str]:
    found = {os.fspath(path.relative_to(folder)) for path in folder.rglob("*")}
    assert not any(
        os.path.islink(folder / name) and os.path.isdir(folder / name / "passwd") for name in found
    )
    return found


WAYS = {
    "everything": EVERYTHING,
    "overwrite": ExtractOptions(overwrite=True),
    "resume": ExtractOptions(resume=True),
    "windows": ExtractOptions(windows_names=True),
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_nothing_lands_outside(
    disk: str, hostile: FileSystem, options: ExtractOptions, tmp_path: Path
) -> None:
    room = tmp_path / "a" / "b"
    (room / "c").mkdir(parents=True)
    before = beneath(tmp_path)
    report = extract(hostile, [(hostile.root(), os.fsencode(room / "c" / "out"))], options=options)
    new = beneath(tmp_path) - before
    assert new
    assert all(name == "a/b/c/out" or name.startswith("a/b/c/out/") for name in new)
    assert list((tmp_path / "made" / "outside").iterdir()) == []
    assert beneath(room / "c" / "out") >= SHOWN[disk]
    assert contents(room / "c" / "out") >= 5
    assert all(finding.code in ("renamed", "left-out", "name", "browse") for finding in report.findings)


def contents(folder: Path) -> int:
    """How many of the files of the disk are there, whatever they are called."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.read_bytes() == b"evil" for path in files)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_archive_leads_outside(disk: str, hostile: FileSystem, kind: str) -> None:
    out = io.BytesIO()
    with archive_writer(kind, out.write) as writer:
        report: ExtractReport = archive(hostile, [(hostile.root(), b"top")], writer, options=EVERYTHING)
    assert report.files >= 5
    if kind == "tar":
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
            members = tar.getmembers()
        names, links = [member.name for member in members], {each.name for each in members if each.issym()}
        assert not any(name.startswith(link + "/") for name in names for link in links)
        assert len(set(names)) == len(names)
    else:
        with zipfile.ZipFile(io.BytesIO(out.getvalue())) as found:
            names = [name.rstrip("/") for name in found.namelist()]
    assert {f"top/{name}" for name in SHOWN[disk]} <= {*names}
    for name in names:
        assert name.split("/")[0] == "top"
        assert ".." not in name.split("/")
        assert "\0" not in name


def test_the_names_are_really_on_the_disks(tmp_path: Path) -> None:
    """That the tests above test something: The Sleuth Kit and debugfs see the evil names."""
    for name, make in DISKS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "outside").mkdir()
        made = make(tmp_path / name)
        seen = b"\n".join(fls(made)) if name != "ext4" else debugfs(made, "ls -p /").encode()
        assert b"../.." in seen or b"..^.." in seen, name
