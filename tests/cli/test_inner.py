"""Volumes inside volumes on the command line and on a mount: paths, what is locked, and where secrets may come from."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures import inner
from tests.cli.conftest import Cli
from tests.cli.mounts import Room
from tests.support.nbdserver import nbd_server
from tests.support.oracles import need_tool, run_tool, unpacked_corpus_file

SECRET = inner.PASSPHRASE


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets ``lvm`` and ``raid``."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("lvm", "raid"):
        disk = inner.unpack(name, folder / f"{name}.raw")
        run_tool([sys.executable, "-P", "-m", "imagefs", "capture", disk, folder / name])
    return folder


def test_volumes_are_listed_with_what_they_hold_and_need(sets: Path, cli: Cli) -> None:
    rows = {row["path"]: row for row in cli("ls", str(sets / "lvm"), "--json").document["entries"]}
    paths = ["/p1", *(f"/p1.{number}" for number in range(1, 8)), "/p2", "/p3", "/p4"]
    assert list(rows) == paths
    assert (rows["/p1.1"]["filesystem"], rows["/p1.1"]["name"], rows["/p1.1"]["inside"]) == (
        "ext4",
        "root",
        "p1",
    )
    assert rows["/p1.6"]["state"] == "refused"
    assert "thin" in rows["/p1.6"]["message"]
    assert rows["/p2"]["state"] == "member"
    assert rows["/p4"]["state"] == "locked"
    assert rows["/p4"]["needs"] == ["passphrase", "key file"]
    text = cli("ls", str(sets / "lvm"))
    assert "p4 is locked (LUKS2): --unlock p4 asks for its passphrase or key file" in text.err
    assert "/p1.3" in text.text


@pytest.mark.parametrize("name", ["lvm", "raid"])
def test_files_are_those_that_the_kernel_read(name: str, sets: Path, cli: Cli, tmp_path: Path) -> None:
    """Taken out of every volume with a manifest, whose digests are those that were printed in the guest."""
    unlock = ("--unlock", "p4=fd:0") if name == "lvm" else ()
    expected: dict[str, str] = {}
    (tmp_path / "out").mkdir()
    for volume, row in inner.answers(name)["volumes"].items():
        expected |= {f"out/{volume}/{path}": digest for path, digest in row["files"].items()}
    roots = sorted({f"/{path.split('/')[1]}" for path in expected})
    words = ("get", str(sets / name), *roots, "out", "--manifest", "sums", *unlock)
    ran = cli(*words, stdin=SECRET + b"\n")
    assert ran.code == 0, ran.err
    for path, digest in expected.items():
        assert hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() == digest, path
    found = cli("find", str(sets / name), "--name", "lines.txt", *unlock, stdin=SECRET)
    assert {f"{root}/lines.txt" for root in roots} <= set(found.text.split())


def test_bytes_of_a_volume_are_restored_and_served(sets: Path, cli: Cli, tmp_path: Path) -> None:
    volumes = inner.answers("lvm")["volumes"]
    ran = cli("restore", str(sets / "lvm"), "part", "--partition", "p1.3")
    assert ran.code == 0, ran.err
    assert hashlib.sha256((tmp_path / "part").read_bytes()).hexdigest() == volumes["p1.3"]["sha256"]
    need_tool("nbdcopy")
    with nbd_server(sets, "lvm") as served:
        uris = {row["name"]: row["uris"][0] for row in served.document["exports"]}
        assert "p1.6" not in uris
        run_tool(["nbdcopy", uris["p1.5"], tmp_path / "copy"])
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).hexdigest() == volumes["p1.5"]["sha256"]


def test_info_tells_volumes_inside_volumes(sets: Path, cli: Cli) -> None:
    ran = cli("info", str(sets / "lvm"), "--json", "--unlock", "p4=fd:0", stdin=SECRET)
    rows = {row["id"]: row for row in ran.document["volumes"]}
    assert (rows["p4.1.1"]["name"], rows["p4.1.1"]["inside"], rows["p4.1.1"]["filesystem"]) == (
        "home",
        "p4.1",
        "ext4",
    )
    assert rows["p4"]["state"] == "open"
    assert "p1.1" in cli("info", str(sets / "lvm")).text


# -- secrets --------------------------------------------------------------------------------------


def test_a_wrong_secret_is_told_and_ends_the_run(sets: Path, cli: Cli) -> None:
    ran = cli("ls", str(sets / "lvm"), "--json", "--unlock", "p4=fd:0", stdin=b"wrong")
    assert ran.code == 40
    error = json.loads(ran.out)["error"]
    assert (error["code"], error["exit"]) == ("locked", 40)
    assert error["message"].startswith("p4 (LUKS2) cannot be unlocked")


def test_a_locked_volume_is_refused_with_what_opens_it(sets: Path, cli: Cli) -> None:
    for path in ("/p4", "/p4.1", "/p4.1.1/name.txt"):
        ran = cli("stat", str(sets / "lvm"), path)
        assert ran.code == 40
        assert "--unlock p4" in ran.err


@pytest.mark.parametrize(
    ("word", "code", "why"),
    [
        ("p1=fd:0", 2, "there is no locked volume p1"),
        ("p4=fd:77", 2, "file descriptor 77 cannot be read"),
        ("p4=file:nowhere", 2, "key file nowhere cannot be read"),
        ("p4=secret", 2, "write p3"),
        ("home", 2, "not a volume"),
        ("p4", 2, "no terminal"),
    ],
)
def test_words_that_make_no_sense(word: str, code: int, why: str, sets: Path, cli: Cli) -> None:
    run = (
        "setsid",
        "--wait",
        sys.executable,
        "-P",
        "-m",
        "imagefs",
        "ls",
        str(sets / "lvm"),
        "--unlock",
        word,
    )
    done = run_tool(run, ok=(code,), stdin=SECRET)
    assert why in done.stderr.decode()


def test_key_file_and_log(sets: Path, cli: Cli, tmp_path: Path) -> None:
    """A file's bytes count as they are, so not with a line break; the log has the words, no secret."""
    (tmp_path / "key").write_bytes(SECRET)
    ran = cli("cat", str(sets / "lvm"), "/p4.1.1/name.txt", "--unlock", "p4=file:key", "--log", "log")
    assert (ran.code, ran.out) == (0, b"home\n")
    (tmp_path / "key").write_bytes(SECRET + b"\n")
    assert (
        cli("cat", str(sets / "lvm"), "/p4.1.1/name.txt", "--unlock", "p4=file:key", "--log", "log").code
        == 40
    )
    log = (tmp_path / "log").read_text()
    assert "--unlock p4=file:key" in log
    assert "secret" not in log


def test_a_terminal_is_asked_without_echo(sets: Path) -> None:
    """On a terminal of its own; what was typed is neither shown nor among the words of the process."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "imagefs",
        "cat",
        str(sets / "lvm"),
        "/p4.1.1/name.txt",
        "--unlock",
        "p4",
    ]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    said = b""
    while b"for p4: " not in said:
        said += os.read(terminal, 1000)
    assert SECRET not in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.write(terminal, SECRET + b"\n")
    with suppress(OSError):  # EIO when the other end is closed
        while part := os.read(terminal, 1000):
            said += part
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert said.replace(b"\r", b"").endswith(b"home\n")
    assert SECRET not in said


# -- on a mount -----------------------------------------------------------------------------------


def test_a_mount_shows_them_and_gets_its_secret_through_a_pipe(sets: Path, room: Room) -> None:
    (room / "key").write_bytes(SECRET + b"\n")
    with (room / "key").open("rb") as key:
        number = key.fileno()
        room.run("mount", sets / "lvm", "mnt", "--unlock", f"p4=fd:{number}", pass_fds=(number,))
    shown = set(os.listdir(room / "mnt"))
    assert {"p1.1", "p1.1.raw", "p1.txt", "p2.txt", "p4.txt", "p4.1.raw", "p4.1.1", "p4.1.1.raw"} <= shown
    assert "p1.6" not in shown
    assert (room / "mnt/p4.1.1/name.txt").read_bytes() == b"home\n"
    for volume in ("p1.1", "p1.3", "p4.1.1"):
        digest = hashlib.sha256((room / f"mnt/{volume}.raw").read_bytes()).hexdigest()
        assert digest == inner.answers("lvm")["volumes"][volume]["sha256"]
    assert b"secret" not in Path(f"/proc/{room.server()}/cmdline").read_bytes()
    room.run("umount", "mnt")


def test_a_mount_without_the_secret_says_what_is_locked(sets: Path, room: Room) -> None:
    room.run("mount", sets / "lvm", "mnt")
    assert "--unlock p4" in (room / "mnt/p4.txt").read_text()
    assert not (room / "mnt/p4.1.raw").exists()
    room.run("umount", "mnt")
    said = room.run("mount", sets / "lvm", "mnt", "--unlock", f"p4=file:{sets / 'lvm.raw'}", code=2)
    assert "larger than" in said


def test_shadow_copies_are_points_in_time_everywhere(room: Room, tmp_path: Path) -> None:
    """plaso's disk, whose files were other ones at the times of its two shadow copies."""
    need_tool("qemu-img")
    packed = unpacked_corpus_file("plaso/test_data/vsstest.qcow2", tmp_path)
    run_tool(["qemu-img", "convert", "-O", "raw", packed, tmp_path / "disk"])
    room.run("capture", "disk", "set", "--mode", "all")
    rows = json.loads(room.run("ls", "set", "--json").split("\nimagefs:")[0].split("imagefs: ")[0])["entries"]
    assert [(row["path"], row["mtime"]) for row in rows] == [
        ("/p0", None),
        ("/p0@20131203T063509Z", "2013-12-03T06:35:09.7363787Z"),
        ("/p0@20131203T063748Z", "2013-12-03T06:37:48.9190583Z"),
    ]
    assert "/p0@" not in room.run("find", "set", "--name", "syslog*")
    old = "p0@20131203T063509Z"
    room.run("get", "set", f"/{old}/syslog", "old")
    room.run("mount", "set", "mnt")
    assert {old, f"{old}.raw"} <= set(os.listdir(room / "mnt"))
    assert (room / "mnt" / old / "syslog").read_bytes() == (room / "old").read_bytes()
    assert not (room / "mnt/p0/syslog").exists()
    assert len(os.listdir(room / "mnt" / "p0@20131203T063748Z")) > 5
    room.run("umount", "mnt")
    # In mode used, what is free today is not there, and is never given as zeros.
    room.run("capture", "disk", "used", "--mode", "used")
    said = room.run("cat", "used", f"/{old}/syslog", code=40)
    assert "of the shadow copy are not in this image" in said
    assert "--mode all" in said
