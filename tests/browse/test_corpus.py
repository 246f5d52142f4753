"""Disks that nobody here made: what was published about them, and that the damaged ones do no harm."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
from imagefs.interfaces import Entry, EntryType, FileSystem
from tests.browse.disks import FileReader, fls, icat
from tests.support.oracles import corpus_file, corpus_folder, unpack, unpacked_corpus_file

#: Walks volumes and reads all of them, in a process of its own: TSK is C, and what it does with
#: damage is not ours to catch. Prints a line for each.
VISIT = """
import json, sys
from pathlib import Path
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk
from imagefs.errors import ImagefsError
from tests.browse.disks import FileReader
def visit(path):
    counts = {"entries": 0, "read": 0, "errors": 0}
    def note(error):
        counts["errors"] += 1
    fs = open_filesystem(FileReader(path))
    fs.label, fs.used_bytes
    for entry in walk(fs, fs.root(), onerror=note):
        counts["entries"] += 1
        try:
            if entry.type == "file":
                data = fs.open(entry).read_at(0, 1 << 20)
                assert len(data) == min(entry.size, 1 << 20), entry
                counts["read"] += len(data)
            elif entry.type == "symlink":
                fs.readlink(entry)
        except ImagefsError as error:
            note(error)
        if counts["entries"] > 20000:
            break
    try:
        for number, entry in enumerate(fs.deleted() if hasattr(fs, "deleted") else ()):
            fs.wholeness(entry)
            if number > 5000:
                break
    except ImagefsError as error:
        note(error)
    fs.close()
    return counts
for name in sys.argv[1:]:
    try:
        counts = visit(Path(name))
    except ImagefsError as error:
        counts = {"refused": error.code}
    print(json.dumps(counts), flush=True)
"""


def visit(*paths: Path, timeout: float) -> list[dict[str, object]]:
    """What a visit says of each; a crash, a traceback or no end fails the test, naming the volume."""
    with subprocess.Popen(
        [sys.executable, "-c", VISIT, *paths],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            said, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, complaint = process.communicate()
            complaint += b"did not end"
    results: list[dict[str, object]] = [json.loads(line) for line in said.splitlines()]
    if len(results) < len(paths):
        pytest.fail(f"{paths[len(results)]}: {process.returncode} {complaint.decode()[-2000:]}")
    return results


def entries(fs: FileSystem) -> dict[bytes, Entry]:
    def fail(error: ImagefsError) -> None:
        raise error

    return {entry.path: entry for entry in walk(fs, fs.root(), onerror=fail)}


def content(fs: FileSystem, entry: Entry) -> bytes:
    return fs.open(entry).read_at(0, entry.size)


def test_dfvfs_hfsplus() -> None:
    path = corpus_file("dfvfs/test_data/hfsplus.raw")
    fs = open_filesystem(FileReader(path))
    found = entries(fs)
    published = {b"/a_directory": "18", b"/a_directory/a_file": "19", b"/a_directory/another_file": "21"}
    assert {name: found[name].inode for name in published} == published
    assert content(fs, found[b"/a_directory/another_file"]) == b"This is another file.\n"
    assert fs.readlink(found[b"/a_link"]) == b"a_directory/another_file"
    assert not [name for name in found if name.startswith(b"/$")], "HFS+ system files have no names"
    for entry in found.values():
        if entry.type is EntryType.FILE:
            assert content(fs, entry) == icat(path, entry.inode)


def test_nps_hfs_journal(tmp_path: Path) -> None:
    """Every hash of a named file in the DFXML that came with the disk."""
    room = unpack(corpus_file("sleuthkit_test_data/nps-2009-hfsjtest1/image.gen1.zip"), tmp_path)
    fs = open_filesystem(FileReader(room / "image.gen1.dmg"))
    published = {
        item.findtext("{*}filename", ""): item.findtext("{*}hashdigest[@type='md5']")
        for item in ElementTree.parse(room / "image.gen1.xml").iterfind(".//{*}fileobject")
    }
    named = {name: md5 for name, md5 in published.items() if md5 and not name.startswith("$")}
    assert len(named) >= 6
    got = {name: hashlib.md5(content(fs, fs.lookup(name.encode()))).hexdigest() for name in named}
    assert got == named


def test_dfvfs_iso9660() -> None:
    path = corpus_file("dfvfs/test_data/iso9660.raw")
    fs = open_filesystem(FileReader(path))
    found = entries(fs)
    assert fs.kind == "iso9660"
    theirs = fls(path)  # its addresses are numbers that it counts up itself
    assert found.keys() == theirs.keys()
    files = [entry for entry in found.values() if entry.type is EntryType.FILE]
    assert files
    for entry in files:
        assert content(fs, entry) == icat(path, theirs[entry.path])


def test_dfvfs_ext2(tmp_path: Path) -> None:
    path = tmp_path / "ext2.raw"
    halves = [corpus_file(f"dfvfs/test_data/ext2.splitraw.00{n}").read_bytes() for n in (0, 1)]
    path.write_bytes(b"".join(halves))
    fs = open_filesystem(FileReader(path))
    found = entries(fs)
    published = {b"/a_directory": "12", b"/a_directory/a_file": "13", b"/passwords.txt": "14"}
    assert {name: found[name].inode for name in published} == published
    assert found[b"/a_link"].type is EntryType.SYMLINK


def test_debian_fs_multiple(tmp_path: Path) -> None:
    """Two published files in ext4, exFAT and NTFS, the first two larger than their partitions."""
    disk = unpacked_corpus_file("debian-forensics-samples/fs.multiple.xz", tmp_path)
    expected = {
        b"/debian_logo.jpg": "600fd7c8b3cc594136620dd1ea4f74a1",
        b"/test.txt": "935167c4c0526041b059e31eb67456de",
    }
    for sector, kind in ((227_328, "ext4"), (309_248, "exfat"), (391_168, "ntfs")):
        fs = open_filesystem(FileReader(disk, sector * 512, 81_920 * 512))
        assert fs.kind == kind
        got = {name: hashlib.md5(content(fs, fs.lookup(name))).hexdigest() for name in expected}
        assert got == expected


def test_dftt_undelete_ntfs_shows_no_deleted_files(tmp_path: Path) -> None:
    path = unpacked_corpus_file(
        "sleuthkit_test_data/from_brian/7-undel-ntfs.zip", tmp_path, member="7-ntfs-undel.dd"
    )
    fs = open_filesystem(FileReader(path))
    found = entries(fs)
    assert fls(path).items() <= {name: entry.inode for name, entry in found.items()}.items()
    assert not [name for name in found if b"frag" in name or b"sing" in name]


@pytest.mark.parametrize("name", ["hierarchy_32.ext4", "hierarchy_64.ext4"])
def test_go_ext4(name: str) -> None:
    path = corpus_file(f"go-ext4/assets/{name}")
    fs = open_filesystem(FileReader(path))
    found = entries(fs)
    assert {p: e.inode for p, e in found.items()} == fls(path)
    for entry in found.values():
        if entry.type is EntryType.FILE:
            assert content(fs, entry) == icat(path, entry.inode)


@pytest.mark.parametrize("name", ["fat12.img", "fat16.img"])
def test_rust_fatfs(name: str) -> None:
    path = corpus_file(f"rust-fatfs/resources/{name}")
    fs = open_filesystem(FileReader(path))
    assert content(fs, fs.lookup(b"/short.txt")) == b"Rust is cool!\n"
    assert len(content(fs, fs.lookup(b"/LONG.TXT"))) > 1_000
    assert fs.lookup(b"/very-long-dir-name/very-long-file-name.txt").type is EntryType.FILE


def test_libguestfs_empty_ext2(tmp_path: Path) -> None:
    disk = unpacked_corpus_file("libguestfs/test-data/files/mbr-ext2-empty.img.gz", tmp_path)
    start = int.from_bytes(disk.read_bytes()[446 + 8 : 446 + 12], "little") * 512
    fs = open_filesystem(FileReader(disk, start))
    assert set(entries(fs)) == {b"/lost+found"}


@pytest.mark.parametrize(
    "name",
    [
        "fat16_moved",
        "fat32_loop",
        "fat_deleted_dir",
        "fat_dir",
        "fat_lfn_test",
        "fat_noloop",
        "fat_unusual_cluster",
    ],
)
def test_dfir_ntfs_fat_edge_cases(name: str, tmp_path: Path) -> None:
    path = unpacked_corpus_file(f"dfir_ntfs/test_data/{name}.raw.gz", tmp_path)
    assert "refused" not in visit(path, timeout=600)[0]


def test_the_fuzzed_ntfs_is_survived() -> None:
    name = "clusterfuzz-testcase-minimized-sleuthkit_fls_ntfs_fuzzer-5124116049166336"
    assert visit(corpus_file(f"sleuthkit_test_data/fuzzing/{name}"), timeout=600)


def damaged_ext(room: Path, step: int) -> list[Path]:
    """Every ``step``-th of the damaged file systems of e2fsprogs, unpacked."""
    folders = sorted((corpus_folder() / "e2fsprogs" / "tests").iterdir())[::step]
    return [unpack(next(each.glob("image*")), room / each.name) for each in folders]


def test_a_sample_of_damaged_ext_volumes_is_survived(tmp_path: Path) -> None:
    said = visit(*damaged_ext(tmp_path, 6), timeout=600)
    assert len(said) > 30
    assert sum("refused" in each for each in said) <= 6


@pytest.mark.slow
def test_all_damaged_ext_volumes_are_survived(tmp_path: Path) -> None:
    said = visit(*damaged_ext(tmp_path, 1), timeout=1200)
    assert len(said) > 200
    assert sum("refused" in each for each in said) <= 12


@pytest.mark.slow
def test_damaged_exfat_volumes_are_survived(tmp_path: Path) -> None:
    folders = sorted((corpus_folder() / "exfatprogs" / "tests").iterdir())
    packed = [next(each.glob("exfat.img.tar.xz")) for each in folders if each.name != "2tb_disk"]
    images = [next(unpack(path, tmp_path / path.parent.name).rglob("*.img")) for path in packed]
    assert len(visit(*images, timeout=600)) > 10
