"""Differences of two images, held against two mounts of the same volumes: diff -r, and what lstat says."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from imagefs.image.catalog import Catalog
from imagefs.image.changes import changes_between
from imagefs.ops.diff import Kind, VolumeDiff, diff
from imagefs.ops.diskimage import DiskImage
from tests.support.past import Past

ROOT = Path("/")


def compared(catalog: Catalog, old: int = 0, new: int = -1) -> list[VolumeDiff]:
    images = catalog.images
    one, other = (DiskImage(catalog.open_disk(images[at]), images[at]) for at in (old, new))
    with one, other:
        return list(diff(one, other, changes_between(one.disk, other.disk)))


def fill(room: Path) -> None:
    """Some 300 files in 40 folders, links among them."""
    dice, folders = random.Random(5), [room]
    for number in range(40):
        folder = dice.choice(folders) / f"folder {number}"
        folder.mkdir()
        folders.append(folder)
        for k in range(8):
            path = folder / f"file {k}"
            path.write_bytes(dice.randbytes(int(dice.expovariate(1 / 6000))))
        if number % 7 == 0:
            os.link(folder / "file 1", folder / "second name")
        if number % 5 == 0:
            (folder / "link").symlink_to("file 2")


def files_in(room: Path) -> list[Path]:
    return sorted(path for path in room.rglob("file *") if path.is_file() and not path.is_symlink())


def change(room: Path) -> None:
    dice, files = random.Random(6), files_in(room)
    dice.shuffle(files)
    folders = sorted(path for path in room.rglob("folder *") if path.is_dir())
    for path in files[:8]:
        path.write_bytes(dice.randbytes(5000))
    for path in files[8:12]:
        with path.open("ab") as out:
            out.write(b"more")
    for path in files[12:18]:
        path.unlink()
    for path in files[18:22]:
        path.rename(path.with_name(path.name + " renamed"))
    for path in files[22:25]:
        path.rename(dice.choice(folders) / f"moved {path.parent.name}")
    for path in files[25:27]:
        os.utime(path, ns=(10**18, 10**18 + 7))
    for path in files[27:29]:
        path.chmod(0o600)
    (folders[3] / "quite new").mkdir()
    (folders[3] / "quite new/inside").write_bytes(b"new")
    (folders[3] / "quite new/deeper").mkdir()
    folders[9].rename(folders[20] / "a folder moved")
    shutil.rmtree(folders[30])
    os.link(files[30], files[30].with_name("a further name"))
    (files[31].parent / "fifo").write_bytes(b"")
    target = files[32]
    target.unlink()
    target.mkdir()
    (target / "it was a file").write_bytes(b"x")
    saved = files[33]
    (saved.parent / "saved.tmp").write_bytes(saved.read_bytes() + b"!")
    (saved.parent / "saved.tmp").replace(saved)


def by_diff(one: Path, other: Path) -> set[tuple[str, str]]:
    """What ``diff -r`` tells: ("-", path), ("+", path) of the topmost that only one side has, ("!", path)."""
    words = ["diff", "-rq", "--no-dereference", one, other]
    said = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert said.returncode in (0, 1), said.stderr
    found = set()
    for line in said.stdout.splitlines():
        if match := re.fullmatch(r"Only in (.+?): (.+)", line):
            path = Path(match[1]) / match[2]
            side, mark = (one, "-") if path.is_relative_to(one) else (other, "+")
            found.add((mark, str(ROOT / path.relative_to(side))))
        else:
            match = re.fullmatch(rf".*? ({re.escape(str(one))}/.+?) (?:and|is|are|while) .*", line)
            assert match, line
            found.add(("!", str(ROOT / Path(match[1]).relative_to(one))))
    return found


def facts_of(top: Path, *, modes: bool) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in sorted(top.rglob("*")):
        facts = path.lstat()
        kind = stat.S_IFMT(facts.st_mode)
        row: tuple[object, ...] = (kind,)
        if kind != stat.S_IFDIR:
            row += (facts.st_size, facts.st_mtime_ns, facts.st_nlink)
        if modes:
            row += (facts.st_mode, facts.st_uid, facts.st_gid)
        found[str(ROOT / path.relative_to(top))] = row
    return found


def as_diff_tells(found: VolumeDiff) -> set[tuple[str, str]]:
    """Ours in the words of ``by_diff``: a renamed folder takes all in it along."""
    gone, came, changed = set(), set(), set()
    for each in found.differences:
        path, other = os.fsdecode(each.path), os.fsdecode(each.other) if each.other else None
        if each.kind is Kind.REMOVED:
            gone.add(path)
        elif each.kind is Kind.ADDED:
            came.add(path)
        elif each.kind is Kind.RENAMED:
            assert other is not None
            gone.add(other)
            came.add(path)
        elif {"content", "type"} & set(each.what) and other is None:
            changed.add(path)
    top = [("-", gone), ("+", came), ("!", changed)]
    every = gone | came
    return {
        (mark, path)
        for mark, paths in top
        for path in paths
        if not any(str(above) in every for above in Path(path).parents)
        and not any(str(above) in changed for above in Path(path).parents)
    }


def check_facts(
    found: VolumeDiff, one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]]
) -> None:
    """Every path that both have, and of which lstat tells otherwise, is named, and no other but for contents."""
    changed = {
        os.fsdecode(each.path) for each in found.differences if each.kind is Kind.CHANGED and not each.other
    }
    wanted = {path for path in one.keys() & other.keys() if one[path] != other[path]}
    assert wanted <= changed
    for each in found.differences:
        path = os.fsdecode(each.path)
        if path in changed - wanted:
            assert set(each.what) <= {"content", "metadata", "replaced", "mode", "owner"}, each


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ext4", ()),
        ("ext4", ("-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-I", "128")),
        ("ext2", ()),
        ("ntfs", ()),
    ],
)
def test_as_two_mounts_differ(tmp_path: Path, kind: str, words: tuple[str, ...]) -> None:
    past = Past(tmp_path, kind, words=words)
    past.step(fill)
    before = tmp_path / "before"
    shutil.copy(past.volume, before)
    past.step(change)
    (found,) = compared(past.catalog)
    assert (found.way, found.why, found.notes) == ("records", "", [])
    with (
        past.mounted(options="ro", volume=before) as one,
        past.mounted(options="ro", room=tmp_path / "second") as other,
    ):
        assert as_diff_tells(found) == by_diff(one, other)
        modes = kind != "ntfs"
        check_facts(found, facts_of(one, modes=modes), facts_of(other, modes=modes))
    renamed = {each.other: each.path for each in found.differences if each.kind is Kind.RENAMED}
    assert len(renamed) >= 6
    assert any(path.endswith(b"/a folder moved") for path in renamed.values())
    (back,) = compared(past.catalog, -1, 0)
    mirrored = {
        ("+" if mark == "-" else "-" if mark == "+" else mark, path) for mark, path in as_diff_tells(found)
    }
    assert as_diff_tells(back) == mirrored
