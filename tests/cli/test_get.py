"""``get`` by the command line: streams of archives, manifests, resumed runs, what does not go together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.oracles import need_tool, root_only, run_tool, tool_text


@pytest.fixture
def image(cli: Cli, ext4: Path) -> Cli:
    assert cli("capture", "ext4.raw", "set", "--mode", "all").code == 0
    return cli


def test_a_tar_on_stdout(image: Cli, tmp_path: Path) -> None:
    need_tool("tar", "sha256sum")
    ran = image("get", "set", "/p0/dir", "/p0/report.txt", "-", "--format", "tar", "--manifest", "m")
    assert ran.code == 0
    (tmp_path / "t.tar").write_bytes(ran.out)
    run_tool(["tar", "-xf", "t.tar"], cwd=tmp_path)
    assert (tmp_path / "dir/plan.txt").read_text() == "a plan\n"
    assert os.readlink(tmp_path / "dir/link") == "plan.txt"
    done = run_tool(["sha256sum", "--strict", "-c", "m"], cwd=tmp_path)
    assert done.stdout.count(b": OK\n") == 2


def test_a_zip_on_stdout(image: Cli, tmp_path: Path) -> None:
    need_tool("unzip")
    ran = image("get", "set", "/p0", "-", "--format", "zip")
    assert ran.code == 0
    (tmp_path / "t.zip").write_bytes(ran.out)
    run_tool(["unzip", "-q", "t.zip"], cwd=tmp_path)
    assert (tmp_path / "p0/dir/plan.txt").read_text() == "a plan\n"


def test_a_closed_pipe_ends_it(image: Cli, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "imagefs", "get", "set", "/p0", "-", "--format", "zip"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
        assert running.wait(300) == 141
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


def test_a_manifest_of_three_digests(image: Cli, tmp_path: Path) -> None:
    need_tool("cksum", "md5sum")
    ran = image(
        "get", "set", "/p0", "out", "--manifest", "m", "--hashes", "md5,sha1,sha256", "--verify", "--json"
    )
    assert (ran.code, ran.document["files"], ran.document["findings"]) == (0, 2, [])
    assert run_tool(["cksum", "--strict", "-c", "m"], cwd=tmp_path).stdout.count(b": OK\n") == 6
    assert run_tool(["md5sum", "-c", "m"], cwd=tmp_path).stdout.count(b": OK\n") == 2
    one = image("get", "set", "/p0/report.txt", "-", "--manifest", "one")
    assert one.out == b"the report\n"
    (tmp_path / "report.txt").write_bytes(one.out)
    assert run_tool(["sha256sum", "--strict", "-c", "one"], cwd=tmp_path).stdout == b"report.txt: OK\n"


def test_resume_means_the_same_place_again(image: Cli, tmp_path: Path) -> None:
    assert image("get", "set", "/p0/dir", "out").code == 0
    (tmp_path / "out/plan.txt").unlink()
    ran = image("get", "set", "/p0/dir", "out", "--resume", "--json")
    assert (ran.code, ran.document["files"], ran.document["kept"]) == (0, 1, 1)
    assert sorted(os.listdir(tmp_path / "out")) == ["link", "plan.txt"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/mine").touch()
    for kept in (0, 2):
        ran = image("get", "set", "/p0/dir", "home", "--resume", "--json")
        assert (ran.code, ran.document["kept"]) == (0, kept)
        assert sorted(os.listdir(tmp_path / "home")) == ["dir", "mine"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(cli: Cli, tmp_path: Path, number: signal.Signals) -> None:
    need_tool("mke2fs", "sha256sum")
    source = tmp_path / "files" / "tree"
    source.mkdir(parents=True)
    for at in range(3000):
        (source / f"{at}").write_bytes(os.urandom(100) * 150)
    run_tool(["truncate", "-s", "96M", tmp_path / "disk"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", source.parent, tmp_path / "disk"])
    assert cli("capture", "disk", "set", "--mode", "all").code == 0
    words = ["get", "set", "/p0/tree", "out", "--manifest", "m"]
    with subprocess.Popen(
        [sys.executable, "-m", "imagefs", *words], cwd=tmp_path, stderr=subprocess.PIPE
    ) as running:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and _count(tmp_path / "out") < 200:
            time.sleep(0.002)
        running.send_signal(number)
        assert running.stderr is not None
        said = running.stderr.read()
        assert running.wait(300) == (-9 if number == signal.SIGKILL else 143)
    done = _count(tmp_path / "out")
    assert 200 <= done < 3000
    assert not (tmp_path / "m").exists()
    if number == signal.SIGTERM:
        assert b"--resume" in said
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes(), "what has a name is whole"
    ran = cli(*words, "--resume", "--json")
    assert (ran.code, ran.document["files"]) == (0, 3000)
    assert done - 1 <= ran.document["kept"] <= done + 1
    assert run_tool(["diff", "-r", source, tmp_path / "out"]).stdout == b""
    assert run_tool(["sha256sum", "--strict", "--quiet", "-c", "m"], cwd=tmp_path).stdout == b""
    assert (tmp_path / "m").read_bytes().count(b"\n") == 3000


def _count(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir(folder))
    return 0


WRONG = [
    (("get", "set", "/p0/dir", "-"), 40, "--format tar"),
    (("get", "set", "/p0/dir", "/p0/report.txt", "-"), 2, "--format tar"),
    (("get", "set", "/p0/dir", "out", "--format", "tar"), 2, "> FILE"),
    (("get", "set", "/p0/dir", "-", "--format", "tar", "--resume"), 2, "resumed"),
    (("get", "set", "/p0/dir", "-", "--format", "tar", "--verify"), 2, "read back"),
    (("get", "set", "/p0/dir", "-", "--format", "zip", "--xattrs"), 2, "--format tar"),
    (("get", "set", "/p0/dir", "out", "--hashes", "md5"), 2, "--manifest"),
    (("get", "set", "/p0/dir", "out", "--hashes", "crc7", "--manifest", "m"), 2, "crc7"),
    (("get", "set", "/p0/dir", "out", "--manifest", "no/such/m"), 11, "manifest"),
]


@pytest.mark.parametrize(("words", "code", "said"), WRONG)
def test_what_does_not_go_together(image: Cli, words: tuple[str, ...], code: int, said: str) -> None:
    ran = image(*words)
    assert (ran.code, ran.out) == (code, b"")
    assert said in ran.err


def test_what_is_left_out_is_exit_3(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    os.mkfifo(tmp_path / "files/pipe")
    (tmp_path / "files/a").write_text("a")
    run_tool(["truncate", "-s", "8M", tmp_path / "disk"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp_path / "files", tmp_path / "disk"])
    assert cli("capture", "disk", "set", "--mode", "all").code == 0
    ran = cli("get", "set", "/p0", "out", "--json")
    assert ran.code == 3
    assert [row["code"] for row in ran.document["findings"]] == ["left-out"]
    assert (tmp_path / "out/a").read_text() == "a"


@contextlib.contextmanager
def _writable_loop(path: Path) -> Iterator[str]:
    device = tool_text("losetup", "--find", "--show", path).strip()
    try:
        yield device
    finally:
        run_tool(["losetup", "--detach", device])


@root_only
def test_a_target_without_case(cli: Cli, tmp_path: Path) -> None:
    """A real FAT, mounted by a driver we did not write: names that differ in case, and names it cannot hold."""
    need_tool("mke2fs", "mkfs.exfat", "mount.exfat-fuse", "umount")
    source = tmp_path / "files"
    source.mkdir()
    names = ("readme", "README", "Readme", "a:b", "CON", "dot.", "what?")
    for name in names:
        (source / name).write_text(name)
    os.symlink("readme", source / "link")
    run_tool(["truncate", "-s", "8M", tmp_path / "disk"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-d", source, tmp_path / "disk"])
    assert cli("capture", "disk", "set", "--mode", "all").code == 0
    run_tool(["truncate", "-s", "16M", tmp_path / "stick"])
    run_tool(["mkfs.exfat", tmp_path / "stick"])
    (tmp_path / "mnt").mkdir()
    with _writable_loop(tmp_path / "stick") as device:
        run_tool(["mount.exfat-fuse", device, tmp_path / "mnt"])
        try:
            ran = cli("get", "set", "/p0", "mnt/out", "--manifest", "m", "--json")
            made = {
                path.name: path.read_text() for path in (tmp_path / "mnt/out").iterdir() if path.is_file()
            }
            again = cli("get", "set", "/p0", "mnt/out", "--resume", "--json", "--manifest", "m")
        finally:
            run_tool(["umount", tmp_path / "mnt"])
    assert sorted(made.values()) == sorted(names)
    assert {"a%3Ab", "%43ON", "dot%2E", "what%3F"} <= made.keys()
    assert len({name.lower() for name in made}) == 7
    codes = [row["code"] for row in ran.document["findings"]]
    assert codes.count("renamed") == 6
    assert set(codes) == {"renamed", "target"}, "a symlink is nothing for exFAT"
    assert ran.code == 3
    assert (again.document["kept"], again.document["files"]) == (7, 7)
