"""Coverage-guided fuzzing (atheris) of volume, allocation and browse, with the third-party disks and disks of our
own as seeds. Two minutes in every test run, an hour in ``make slow``; ``IMAGEFS_FUZZ_SECONDS`` says otherwise.

What is found stays in ``findings/`` as a file that ``target.py --once`` takes, and is tried in every run.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browse.apfsdisks import disk_of
from tests.browse.disks import FileReader, make_ext, make_fat, make_ntfs, pattern
from tests.browse.mac import in_attribute, in_fork, make_mac
from tests.fuzz.sparse import SECTOR, SparseDisk, squeeze
from tests.support.oracles import unpack

SHORT, LONG = 120, 3600
ROOT = Path(__file__).parents[2]
FINDINGS = sorted((Path(__file__).parent / "findings").glob("*.gz"))
#: No disks, or packed in ways of their own.
OTHERS = {".html", ".md", ".tsv", ".txt", ".jpg", ".xml", ".E01", ".E02", ".qcow2", ".vhd", ".vhdx", ".vmdk"}
_SECTORS, _APFS_SECTORS = 120, 200


def seeds(room: Path) -> Path:
    """A folder of small disks: our own, and of the corpus what is small."""
    folder, tree = room / "seeds", room / "tree"
    folder.mkdir()
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(pattern(5000))
    (tree / "empty").touch()
    disks = [
        make_ext(room / "ext4", tree, size=1 << 20),
        make_ext(room / "ext2", tree, "-I", "128", kind="ext2", size=1 << 20),
        make_fat(room / "fat12", tree, "-F12", size=1 << 20),
        make_ntfs(
            room / "ntfs", {"file": pattern(5000), "small": b"x", "small:stream": b"y"}, room, size=2 << 20
        ),
    ]
    corpus = Path(os.environ.get("IMAGEFS_CORPUS") or "/nowhere")
    packed = [
        path
        for path in sorted(corpus.rglob("*"))
        if path.is_file() and path.suffix not in OTHERS and path.stat().st_size < 100_000
    ]
    for number, path in enumerate(packed):
        place = unpack(path, room / "unpacked" / str(number))
        disks += [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()][:2]
    if corpus.is_dir():
        forks = {
            19: in_attribute(3, b"zlib" * 99),
            20: in_fork(8, b"lzvn" * 99),
            21: in_fork(12, b"lzfse" * 99),
        }
        disks.append(make_mac(room / "mac", forks))
    for number, disk in enumerate(disks):
        (folder / f"{number:04d}").write_bytes(squeeze(disk, _SECTORS))
    (room / "apfs").write_bytes(disk_of("case_sensitive_beta"))
    (folder / "apfs").write_bytes(squeeze(room / "apfs", _APFS_SECTORS))
    return folder


def fits_alone(*disks: Path) -> bool:
    """Whether each disk can be tried in what memory a worker has. Native parsers lose a little with every
    damaged disk: after ten thousand of them the fuzzer's process is full, which no worker lives to see."""
    words = [sys.executable, "-m", "tests.fuzz.target", "--once", *disks]

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=600, check=False, preexec_fn=bound)
    if done.returncode == 0:
        for disk in disks:
            disk.unlink()
    return done.returncode == 0


def fuzz(room: Path, seconds: int) -> None:
    """Fuzz until the time is up. A crash or a loop in a native parser costs a worker in real life: it is told, and
    the rest of the time used; anything of ours fails."""
    if importlib.util.find_spec("atheris") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("atheris is missing")
    work, grown, from_seeds = room / "work", room / "grown", seeds(room)
    work.mkdir()
    grown.mkdir()
    until, runs = time.monotonic() + seconds, 0
    while (left := int(until - time.monotonic())) > 0:
        words = [sys.executable, "-m", "tests.fuzz.target", work, str(left), grown, from_seeds]
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, timeout=seconds + 900, check=False, errors="replace"
        )
        said = done.stdout + done.stderr
        slow = "libFuzzer: timeout" in said and "timed out in native code" not in said
        greedy = "out-of-memory" in said and not fits_alone(*work.glob("oom-*"))
        ours = "Uncaught Python exception" in said or slow or greedy
        assert not ours, f"kept in {work}: {sorted(os.listdir(work))}\n{said[-5000:]}"
        runs += 1
        assert runs < 20, said[-5000:]
        if done.returncode:
            print(f"a crash or loop in native code: {said[-1500:]}")  # noqa: T201
    assert len(os.listdir(grown)) > 0, "nothing new was reached: is the code instrumented?"


def test_two_minutes(tmp_path: Path) -> None:
    fuzz(tmp_path, int(os.environ.get("IMAGEFS_FUZZ_SECONDS") or SHORT))


@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
def test_an_hour(tmp_path: Path) -> None:
    fuzz(tmp_path, int(os.environ.get("IMAGEFS_FUZZ_SECONDS") or LONG))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: path.stem)
def test_what_was_found_once(finding: Path, tmp_path: Path) -> None:
    """In a process of its own, and within a time."""
    disk = tmp_path / finding.stem
    disk.write_bytes(gzip.decompress(finding.read_bytes()))
    words = [sys.executable, "-m", "tests.fuzz.target", "--once", disk]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=600, check=False, errors="replace")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_squeezed_disk_is_the_disk(tmp_path: Path) -> None:
    """The seeds mean what they should: the same bytes at the same places, up to what is left out."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(pattern(3000))
    path = make_ext(tmp_path / "ext4", tmp_path / "tree", size=32 << 20)
    disk, real = SparseDisk(squeeze(path, 100_000)), FileReader(path)
    assert disk.size == real.size
    for at in range(0, disk.size, 1 << 20):
        assert disk.read_at(at + 7, 1 << 20) == real.read_at(at + 7, 1 << 20)
    assert disk.read_at(3, 8 << 20) == real.read_at(3, 8 << 20)
    cut = SparseDisk(squeeze(path, 4))
    assert sum(any(cut.read_at(at, SECTOR)) for at in range(0, cut.size, SECTOR)) == 4
