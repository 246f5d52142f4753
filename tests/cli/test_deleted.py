"""Deleted files by the command line: found, told how whole they are, taken out, and seen on a mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browse.disks import debugfs, fls, icat, make_ext, pattern, sparse_file
from tests.cli.conftest import Cli
from tests.support.oracles import corpus_file, need_tool, run_tool


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ext4 from which /plan.bin, /dir/same and another /dir/same were deleted, a set with
    everything of it, and one with what is in use."""
    room = tmp_path_factory.mktemp("deleted")
    (room / "files" / "dir").mkdir(parents=True)
    (room / "files" / "kept.txt").write_bytes(b"kept\n")
    (room / "files" / "plan.bin").write_bytes(pattern(200_000))
    (room / "files" / "dir" / "same").write_bytes(b"the first\n")
    (room / "files" / "dir" / "other").write_bytes(b"the second\n")
    path = make_ext(room / "disk.raw", room / "files")
    debugfs(path, "rm plan.bin", "rm dir/same", "rm dir/other")
    path.write_bytes(path.read_bytes().replace(b"\x05\x01other", b"\x04\x01same\0"))
    for mode in ("all", "used"):
        (room / mode).mkdir()
        words = [sys.executable, "-m", "imagefs", "capture", path, room / mode, "--mode", mode]
        subprocess.run(words, check=True, capture_output=True, timeout=600)
    return room


@pytest.fixture
def disk(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(built / "disk.raw", tmp_path))


@pytest.fixture
def images(cli: Cli, built: Path, tmp_path: Path) -> Cli:
    for name in ("all", "used"):
        (tmp_path / name).symlink_to(built / name)
    return cli


def rows(ran: object) -> dict[str, str]:
    document = ran.document  # type: ignore[attr-defined]
    assert document["complete"] is True
    return {f"{row['path']} {row['inode']}": row["whole"] for row in document["entries"] if row["deleted"]}


def addresses(images: Cli) -> list[str]:
    listed = images("find", "all", "/p0", "--deleted", "--name", "same*", "--json").document["entries"]
    return sorted(row["inode"] for row in listed)


def test_each_deleted_file_is_listed_with_how_whole_it_is(images: Cli) -> None:
    first, second = addresses(images)
    listed = rows(images("ls", "all", "/p0", "--deleted", "-R", "--json"))
    assert set(listed.values()) == {"intact"}
    assert {f"/p0/dir/same~{first} {first}", f"/p0/dir/same~{second} {second}"} <= listed.keys()
    assert rows(images("find", "all", "--deleted", "--json")) == listed
    text = images("ls", "all", "/p0", "--deleted").text
    assert "plan.bin" in text
    assert "kept.txt" not in text
    assert all(line.startswith(("intact ", "- ")) for line in text.splitlines())
    named = images("find", "all", "--deleted", "--name", "plan*", "-0").out
    assert named == b"/p0/plan.bin\0"
    assert images("ls", "all", "/p0/dir", "--deleted", "-0").out.count(b"same~") == 2


def test_what_was_not_captured_is_said_to_be_missing(images: Cli, tmp_path: Path) -> None:
    listed = rows(images("find", "used", "--deleted", "--json"))
    assert set(listed.values()) == {"not-in-this-image"}
    ran = images("cat", "used", "/p0", "--inode", addresses(images)[0])
    assert (ran.code, ran.out) == (40, b"")
    assert "not in this image" in ran.err
    (tmp_path / "out").mkdir()
    ran = images("get", "used", "--deleted", "/p0", "out")
    assert ran.code == 3
    assert "not in this image" in ran.err
    assert not list((tmp_path / "out").rglob("same*"))


def test_addresses_name_files_in_stat_cat_and_get(images: Cli, disk: Path, tmp_path: Path) -> None:
    first, second = addresses(images)
    assert images("cat", "all", "/p0", "--inode", first).out == icat(disk, first)
    assert images("cat", "all", "/p0", "--inode", first, "--inode", second).out == b"".join(
        icat(disk, each) for each in (first, second)
    )
    (row,) = images("stat", "all", "/p0", "--inode", second, "--json").document["entries"]
    assert (row["path"], row["deleted"], row["whole"]) == ("/p0/dir/same", True, "intact")
    assert images("get", "all", "/p0", "one", "--inode", first).code == 0
    assert (tmp_path / "one").read_bytes() == icat(disk, first)
    (tmp_path / "both").mkdir()
    assert images("get", "all", "/p0", "both", "--inode", first, "--inode", second).code == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {f"same~{first}", f"same~{second}"}
    live = fls(disk)[b"/kept.txt"]
    assert images("cat", "all", "/p0", "--inode", live).out == b"kept\n"
    (row,) = images("stat", "all", "/p0", "--inode", live, "--json").document["entries"]
    assert (row["path"], row["deleted"]) == ("/p0/kept.txt", False)


def test_get_takes_the_deleted_files_as_a_tree(images: Cli, tmp_path: Path) -> None:
    first, second = addresses(images)
    (tmp_path / "out").mkdir()
    assert images("get", "all", "--deleted", "/p0", "out").code == 0
    got = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert got == {"p0/plan.bin", f"p0/dir/same~{first}", f"p0/dir/same~{second}"}
    assert (tmp_path / "out/p0/plan.bin").read_bytes() == pattern(200_000)
    assert images("get", "all", "--deleted", "/p0/plan.bin", "-").out == pattern(200_000)


def test_what_is_partly_there_is_taken_with_a_warning(images: Cli, disk: Path, tmp_path: Path) -> None:
    cli = images
    inode = cli("find", "all", "--deleted", "--name", "plan*", "--json").document["entries"][0]["inode"]
    blocks = debugfs(disk, f"blocks <{inode}>").split()
    debugfs(disk, f"setb {next(each for each in blocks if each.isdigit())}")
    (tmp_path / "now").mkdir()
    assert cli("capture", "disk.raw", "now", "--mode", "all").code == 0
    for words in (("--inode", inode, "/p0"), ("--deleted", "/p0/plan.bin")):
        ran = cli("get", "now", *words, "plan.out", "--overwrite")
        assert ran.code == 3
        assert "partly-overwritten" in ran.err
    assert (tmp_path / "plan.out").stat().st_size == 200_000
    ran = cli("cat", "now", "/p0", "--inode", inode)
    assert (ran.code, len(ran.out)) == (3, 200_000)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cat", "all", "/p0", "--inode", "999999"), 40, "999999"),
        (("cat", "all", "/p0", "--inode", "nonsense"), 40, "nonsense"),
        (("cat", "all", "/p0", "/p0", "--inode", "12"), 2, "--inode"),
        (("stat", "all", "/", "--inode", "12"), 2, "volume"),
        (("get", "all", "--deleted", "/p0/nothing", "out"), 40, "nothing"),
        (("ls", "all", "/p0/nothing", "--deleted"), 40, "nothing"),
    ],
)
def test_mistakes_get_one_sentence(images: Cli, words: tuple[str, ...], code: int, said: str) -> None:
    ran = images(*words)
    assert ran.code == code
    assert said in ran.err


def test_the_mount_shows_deleted_files(images: Cli, tmp_path: Path) -> None:
    first, _ = addresses(images)
    for name, word in (("all", b"intact"), ("used", b"not-in-this-image")):
        assert images("mount", name, "mnt").code == 0
        try:
            here = tmp_path / "mnt/deleted/p0"
            assert os.getxattr(here / "plan.bin", "user.imagefs.whole") == word
            assert (here / f"dir/same~{first}").stat().st_ino & 0xFFFF_FFFF_FFFF == int(first)
            if name == "all":
                assert (here / "plan.bin").read_bytes() == pattern(200_000)
            else:
                with pytest.raises(OSError, match="Input/output error"):
                    (here / "plan.bin").read_bytes()
            assert json.loads(images("mount", "--json").out)["mounts"]
        finally:
            assert images("umount", "mnt").code == 0
    assert subprocess.run(["mountpoint", "-q", tmp_path / "mnt"], check=False).returncode != 0


def test_two_terabytes_of_fat(cli: Cli, tmp_path: Path) -> None:
    """All of it captured, holes as holes: what was deleted is found, by address too, and nobody reads the rest."""
    need_tool("mkfs.fat", "mcopy", "mdel", "mdeltree")
    disk, room = sparse_file(tmp_path / "disk.raw", (2 << 40) - 65536), tmp_path / "room"
    run_tool(["mkfs.fat", "-F32", "-s128", "-f1", disk])
    run_tool(["fallocate", "--dig-holes", disk])
    (room / "folder").mkdir(parents=True)
    for number in range(3):
        (room / f"file{number}").write_bytes(pattern(200_000 + number))
        (room / "folder" / f"below{number}").write_bytes(pattern(3_000 + number))
    run_tool(["mcopy", "-s", "-i", disk, room / "folder", *sorted(room.glob("f*[0-9]")), "::"])
    run_tool(["mdel", "-i", disk, "::/file1"])
    run_tool(["mdeltree", "-i", disk, "::/folder"])
    assert cli("capture", "disk.raw", "set", "--mode", "all").code == 0
    found = rows(cli("ls", "set", "/p0", "--deleted", "-R", "--json"))
    assert set(found.values()) == {"contiguous-guess"}
    names = {path.split(" ")[0] for path in found}
    assert names == {"/p0/_ile1", "/p0/_older", *(f"/p0/_older/_elow{number}" for number in range(3))}
    address = next(path.split(" ")[1] for path in found if path.startswith("/p0/_older/_elow1"))
    ran = cli("cat", "set", "/p0", "--inode", address)
    assert (ran.code, ran.out) == (3, pattern(3_001))
    lines = cli("timeline", "set", "p0").text.splitlines()
    assert sum(" (deleted)|" in line for line in lines) == 5


def test_where_nothing_is_kept_it_is_said(cli: Cli, tmp_path: Path) -> None:
    """As fls, which lists none on HFS+."""
    disk = Path(shutil.copy(corpus_file("dfvfs/test_data/hfsplus.raw"), tmp_path / "disk.raw"))
    assert run_tool(["fls", "-rd", disk]).stdout == b""
    assert cli("capture", disk, "set", "--mode", "all").code == 0
    for words in (("ls", "set", "/p0", "--deleted", "-R"), ("find", "set", "--deleted")):
        ran = cli(*words)
        assert (ran.code, ran.out) == (0, b"")
        assert "out of its catalog" in ran.err
