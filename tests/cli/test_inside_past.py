"""``history``, ``get --version`` and ``diff`` of volumes inside volumes as a user runs them: also those that are
locked, are in one image only, or are numbered otherwise in another."""

from __future__ import annotations

import json
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures import inner
from tests.cli.conftest import Cli
from tests.support.images import noise
from tests.support.insidepast import SECRET, LuksPast, LvmPast, change_of
from tests.support.oracles import qemu_img, run_tool, tool_text

UNLOCK = ("--unlock", "p0=fd:0")


@pytest.fixture
def luks(tmp_path: Path) -> LuksPast:
    past = LuksPast(tmp_path)
    past.step(change_of("one"))
    past.step(change_of("the second"))
    return past


def test_versions_of_a_file_in_a_logical_volume(cli: Cli, tmp_path: Path) -> None:
    """Also when it had another number in older images, grew, and lies in more places: as LVM's tools made it."""
    past = LvmPast(tmp_path)
    past.step(change_of("one"))
    past.step(change_of("the second"))
    with past.lvm() as lvm:
        lvm("lvextend", "-l", "+2", "office/root", past.loops[2])
        lvm("lvrename", "office", "root", "srv")
        lvm("lvcreate", "-an", "-Wn", "-Zn", "-l", "1", "-n", "first", "office", past.loops[2])
    assert len(past.segments("office/srv")) == 4
    past.step()
    with past.lvm() as lvm:
        lvm("lvremove", "-f", "-f", "-y", "office/gap")
    past.step()
    ran = cli("ls", "set", "--json")
    names = {row["name"]: row["path"] for row in ran.document["entries"] if "name" in row}
    doc = f"{names['srv']}/home/doc.txt"
    found = cli("history", "set", doc, "--json").document
    assert [(row["change"], row["images"]) for row in found["versions"]] == [
        ("first seen", 1),
        ("changed", 3),
    ]
    assert found["notes"] == []
    assert cli("get", "set", doc, "-", "--version", "1").text == "one"
    assert cli("get", "set", doc, "-", "--version", "2").text == "the second"
    moved = names["striped"]
    assert moved == "/p1.2"  # and p1.3 before
    found = cli("history", "set", f"{moved}/name.txt", "--json").document
    assert [(row["change"], row["images"]) for row in found["versions"]] == [("first seen", 4)]
    assert cli("get", "set", f"{moved}/name.txt", "-", "--version", "1").text == "striped\n"
    volumes = cli("diff", "set@latest~3", "set", "--json").document["volumes"]
    rows = {(row["id"], row["name"]): row for row in volumes}
    assert (rows["p1.1", "srv"]["way"], rows["p1.1", "srv"]["why"]) == ("records", "")
    assert rows["p1.2", "striped"]["way"] == "unchanged"
    assert rows["p1.2", "gap"]["why"].startswith("only the older image has it; ")


def test_a_logical_volume_that_one_of_two_images_has(cli: Cli, tmp_path: Path) -> None:
    past = LvmPast(tmp_path)
    past.step(change_of("one"))
    with past.lvm() as lvm:
        lvm("lvremove", "-f", "-f", "-y", "office/raid1")
    past.step()
    ran = cli("diff", "set@latest~1", "set", "--json")
    found = ran.document
    (row,) = (row for row in found["volumes"] if "only the older" in row["why"])
    assert (row["name"], row["why"]) == ("raid1", "only the older image has it")
    assert {each["path"].removeprefix(f"/{row['id']}") for each in found["differences"]} == {
        *("", "/dir", "/dir/copy.txt", "/lines.txt", "/lost+found", "/name.txt")
    }
    assert {each["change"] for each in found["differences"]} == {"removed"}
    back = cli("diff", "set", "set@latest~1", f"/{row['id']}", "--json").document
    assert {each["change"] for each in back["differences"]} == {"added"}


def test_encrypted_volumes_take_their_secret(cli: Cli, luks: LuksPast) -> None:
    found = cli("history", "set", "/p0.1/home/doc.txt", "--json", *UNLOCK, stdin=SECRET).document
    assert [row["what"] for row in found["versions"]] == [[], ["content", "size", "mtime"]]
    ran = cli("get", "set", "/p0.1/home/doc.txt", "-", "--version", "1", *UNLOCK, stdin=SECRET)
    assert ran.text == "one"
    ran = cli("diff", "set@latest~1", "set", *UNLOCK, stdin=SECRET)
    assert (ran.code, ran.text.splitlines()) == (
        0,
        [
            "p0 is encrypted (LUKS1); what it holds is p0.1",
            "p0.1: 0 added, 0 removed, 1 changed, 0 renamed",
            "changed  /p0.1/home/doc.txt  (content, size, mtime)",
        ],
    )


def test_what_is_locked_is_told_once(cli: Cli, luks: LuksPast) -> None:
    ran = cli("diff", "set@latest~1", "set")
    assert (ran.code, ran.text) == (3, "p0: cannot be compared\n")
    assert ran.err.count("p0 is locked (LUKS1): --unlock p0 asks for its passphrase or key file") == 1
    assert cli("diff", "set", "set").text == "p0: unchanged\n"
    ran = cli("history", "set", "/p0.1/home/doc.txt")
    assert ran.code == 40
    assert "--unlock p0" in ran.err


@pytest.mark.parametrize("words", [("history", "set", "/p0.1/home"), ("diff", "set@latest~1", "set")])
def test_secrets_that_open_nothing(cli: Cli, luks: LuksPast, words: tuple[str, ...]) -> None:
    ran = cli(*words, *UNLOCK, stdin=b"wrong")
    assert ran.code == 40
    assert "p0 (LUKS1) cannot be unlocked" in ran.err
    ran = cli(*words, *UNLOCK, "--unlock", "p7=file:disk.key", stdin=SECRET)
    assert ran.code == 2


def test_one_image_that_another_secret_opens(cli: Cli, luks: LuksPast) -> None:
    """Formatted again with another passphrase: the older images are looked into, the newest is told."""
    words = ["--object", "secret,id=s,data=other", "-o", "key-secret=s,iter-time=10", luks.disk, str(8 << 20)]
    qemu_img("create", "-q", "-f", "luks", *words)
    luks.step(new_source=True)
    ran = cli("history", "set", "/p0.1/home/doc.txt", *UNLOCK, stdin=SECRET)
    assert ran.code == 3
    assert ran.text.count("\n") == 3
    assert ran.err.count("p0 (LUKS1) cannot be unlocked") == 1
    ran = cli("diff", "set@latest~1", "set", *UNLOCK, stdin=SECRET)
    assert (ran.code, ran.text) == (3, "p0: cannot be compared\np0.1: cannot be compared\n")
    assert ran.err.count("p0 (LUKS1) cannot be unlocked") == 1


def test_a_container_is_told_as_such(cli: Cli, tmp_path: Path) -> None:
    past = LvmPast(tmp_path)
    past.step(change_of("one"))
    past.step(change_of("the second"))
    said = cli("diff", "set@latest~1", "set").text
    assert "p1 is a physical volume of the volume group office (LVM)\n" in said
    assert "p1.1 (root): 0 added, 0 removed, 1 changed, 0 renamed\n" in said
    assert "p4: unchanged\n" in said
    assert inner.PASSPHRASE.decode() not in said


@pytest.mark.parametrize("kind", ["lvm", "luks"])
def test_files_in_bad_and_damaged_places(cli: Cli, tmp_path: Path, kind: str) -> None:
    """``info --affected`` of sectors that a mapfile calls bad, ``verify`` after damage to the image; where the file
    lies is asked of debugfs."""
    past = LvmPast(tmp_path) if kind == "lvm" else LuksPast(tmp_path)
    with past.mounted() as room:
        for number in range(4):
            (room / f"f{number}").write_bytes(noise(100_000, number + 1))
    past.put()
    block = int(tool_text("debugfs", "-R", "blocks /f2", past.volume).split()[5])
    at = past.place_of(block * 1024)
    size = past.disk.stat().st_size
    rows = [(0, at, "+"), (at, 1024, "-"), (at + 1024, size - at - 1024, "+")]
    lines = [f"{first:#x} {length:#x} {state}" for first, length, state in rows]
    (tmp_path / "map").write_text("\n".join(["0x0 + 1", *lines]) + "\n")
    assert cli("capture", "disk", "bad", "--mapfile", "map").code == 3
    unlock = {} if kind == "lvm" else {"stdin": SECRET}
    words = () if kind == "lvm" else UNLOCK
    told = cli("info", "bad", "--affected", "--json", *words, **unlock).document
    assert [(row["volume"], row["path"], row["offset"], row["length"]) for row in told["affected"]] == [
        (past.name, "/f2", at, 1024)
    ]
    past.step()
    (image,) = (tmp_path / "set").glob("*.imagefs")
    stored = bytearray(image.read_bytes())
    with past.disk.open("rb") as disk:
        disk.seek(at)
        stored[stored.index(disk.read(64))] ^= 1
    image.chmod(0o600)
    image.write_bytes(stored)
    ran = cli("verify", "set", "--json", *words, **unlock)
    assert ran.code == 4
    (finding,) = (row for row in ran.document["findings"] if row["chunk"] is not None)
    assert f"/{past.name}/f2" in finding["files"]
    refused = [note.partition(" ")[0] for note in ran.document["notes"]]
    assert refused == ([] if kind == "luks" else ["p1.6", "p1.7"])  # which may lie anywhere
    if kind == "luks":
        ran = cli("verify", "set")
        assert ran.code == 4
        assert ran.err.count("files in it are not named: p0 is locked (LUKS1): --unlock p0") == 1


#: The command line, which thinks that a second is over at once.
AT_ONCE = "import imagefs.cli.console as c; c.QUIET_SECONDS = 0; from imagefs.cli.main import main; main()"


def test_what_is_waited_for_is_told(luks: LuksPast, tmp_path: Path) -> None:
    """While a key is made: a line on a terminal, which goes away again; lines of JSON; nothing where nobody looks."""
    (tmp_path / "key").write_bytes(SECRET)
    words = [
        sys.executable,
        "-c",
        AT_ONCE,
        "ls",
        str(tmp_path / "set"),
        "--unlock",
        f"p0=file:{tmp_path / 'key'}",
    ]
    said = run_tool([*words, "--json"]).stderr.decode()
    told = [json.loads(line)["progress"] for line in said.splitlines() if "progress" in line]
    assert told
    assert {row["phase"] for row in told} == {"unlocking p0"}
    assert {row["total"] for row in told} == {None}
    assert b"unlocking" not in run_tool(words).stderr
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    shown = b""
    with suppress(OSError):  # EIO when the other end is closed
        while part := os.read(terminal, 1000):
            shown += part
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"\r\x1b[Kunlocking p0: 00:0" in shown
    assert b"unlocking" not in shown.rpartition(b"\r\x1b[K")[2]
