"""Commands on disks whose file system makes its parser crash, loop or eat memory: they say so and end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.browse.disks import make_ext
from tests.cli.mounts import ROOT, Room

#: Everything of the command line, with the parser of ``hostile_parser`` in its workers.
HOSTILE = (
    "from imagefs.browse import workers; from tests.browse.hostile_parser import hostile_start;"
    "workers._START = hostile_start(); from imagefs.cli.main import run; run()"
)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    for word in ("segfault", "aborted", "good"):
        (folder / "tree" / word).mkdir(parents=True)
        (folder / "tree" / word / "inside").write_bytes(b"content")
        (folder / "tree" / f"file-{word}").write_bytes(b"content")
    make_ext(folder / "disk.raw", folder / "tree")
    made = Room(folder)
    made.run("capture", "disk.raw", "set", "--mode", "all")
    return made


def hostile(room: Room, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, *words], cwd=room.folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_what_was_asked_for_is_an_error_that_names_it(room: Room) -> None:
    code, out, said = hostile(room, "cat", "set", "/p0/file-segfault")
    assert (code, out) == (40, "")
    assert (
        "'/file-segfault' cannot be read: the process that parses the file system crashed (SIGSEGV)" in said
    )
    code, _, said = hostile(room, "ls", "set", "/p0/aborted")
    assert code == 40
    assert "SIGABRT" in said


def test_what_is_beside_it_is_still_found_listed_and_taken(room: Room) -> None:
    for words in (("find", "set"), ("ls", "-R", "set", "/p0")):
        code, out, said = hostile(room, *words)
        assert code == 3
        assert "/p0/good/inside" in out.split()
        assert said.count("SIGSEGV") == said.count("SIGABRT") == 1
    code, _, said = hostile(room, "get", "set", "/p0", ".")
    assert code == 3
    assert (room / "p0/good/inside").read_bytes() == b"content"
    assert not (room / "p0/segfault/inside").exists()
    assert "segfault" in said


def test_volumes_are_listed_all_the_same(room: Room) -> None:
    code, out, _ = hostile(room, "ls", "set")
    assert code == 0
    assert "ext4" in out
