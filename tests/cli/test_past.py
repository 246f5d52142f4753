"""``history``, ``get --version``, ``diff`` and ``info --growth`` as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.past import Past

DOC = "/p0/home/doc.txt"


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """doc.txt: written, changed, deleted, back again; four images."""
    past = Past(tmp_path, "ext4")

    def begin(room: Path) -> None:
        (room / "home").mkdir()
        (room / "home/doc.txt").write_text("one")

    past.step(begin)
    past.step(lambda room: (room / "home/doc.txt").write_text("the second"))
    past.step(lambda room: (room / "home/doc.txt").rename(room / "home/kept.txt"))
    past.step(lambda room: (room / "home/doc.txt").write_text("again"))
    return past


def test_history(cli: Cli, past: Past) -> None:
    ran = cli("history", "set", DOC)
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.text.splitlines()]
    assert [line[0] for line in lines] == ["version", "1", "2", "3", "4"]
    assert [line[1] for line in lines[1:]] == [info.id[:8] for info in past.catalog.images]
    assert "first seen" in ran.text
    assert "changed: content, size, mtime" in ran.text
    assert "renamed to /p0/home/kept.txt" in ran.text
    assert "back again" in ran.text
    found = cli("history", "set", DOC, "--json").document
    assert found["path"] == DOC
    assert found["images"] == 4
    assert [row["change"] for row in found["versions"]] == ["first seen", "changed", "renamed", "back again"]
    assert [row["version"] for row in found["versions"]] == [1, 2, 3, 4]
    assert found["versions"][2]["renamed_to"] == "/p0/home/kept.txt"
    assert found["versions"][2]["entry"] is None
    assert found["versions"][1]["entry"]["size"] == 10
    assert found["versions"][3]["last_image"] == past.catalog.images[-1].id
    folder = cli("history", "set", "/p0/home", "--json").document
    assert [[each["name"] for each in row["added"]] for row in folder["versions"]] == [
        [],
        ["kept.txt"],
        ["doc.txt"],
    ]
    assert "  - doc.txt" in cli("history", "/p0/home", env={"IMAGEFS_SET": "set"}).text


def test_history_of_nothing(cli: Cli, past: Past) -> None:
    ran = cli("history", "set", "/p0/home/never")
    assert ran.code == 40
    assert "no image has '/p0/home/never'" in ran.err
    assert cli("history", "set", "/").code == 2
    assert cli("history", "set", "/p0/a", "/p0/b").code == 2


def test_get_a_version(cli: Cli, past: Past, tmp_path: Path) -> None:
    for number, text in ((1, "one"), (2, "the second"), (4, "again")):
        ran = cli("get", "set", DOC, "-", "--version", str(number))
        assert (ran.code, ran.text) == (0, text), ran.err
    assert cli("get", "set", DOC, "out.txt", "--version", "2").code == 0
    assert (tmp_path / "out.txt").read_text() == "the second"
    ran = cli("get", "set", DOC, "-", "--version", "3")
    assert ran.code == 40
    assert "version 3 is where it was renamed" in ran.err
    assert cli("get", "set", DOC, "-", "--version", "9").code == 40
    assert cli("get", "set@latest", DOC, "-", "--version", "1").code == 2
    assert cli("get", "set", DOC, "/p0/home", "there", "--version", "1").code == 2
    assert cli("get", "set", DOC, "-", "--version", "1", "--deleted").code == 2


def test_diff(cli: Cli, past: Past) -> None:
    ran = cli("diff", "set@latest~2", "set@latest")
    assert ran.code == 0, ran.err
    assert ran.text.splitlines() == [
        "p0: 1 added, 0 removed, 1 changed, 0 renamed",
        "changed  /p0/home/doc.txt  (content, size, mtime, replaced)",
        "added    /p0/home/kept.txt",
    ]
    found = cli("diff", "set@latest~3", "set@latest", "--json").document
    assert found["complete"] is True
    assert found["volumes"] == [{"id": "p0", "name": "", "way": "records", "why": "", "notes": []}]
    rows = {(row["change"], row["path"]): row for row in found["differences"]}
    assert rows.keys() == {("added", "/p0/home/kept.txt"), ("changed", DOC)}
    assert rows["changed", DOC]["what"] == ["content", "size", "mtime", "replaced"]
    assert rows["changed", DOC]["old_size"] == 3
    assert cli("diff", "set@latest", "set@latest").text == "p0: unchanged\n"
    assert cli("diff", "set@latest~1", "set", "/p0/home/doc.txt").text.count("\n") == 2
    assert cli("diff", "set@latest~1", "set", "/p3").code == 40
    assert cli("diff", "set@latest~1").code == 2


def test_diff_of_what_must_be_walked(cli: Cli, tmp_path: Path) -> None:
    past = Past(tmp_path, "xfs", size=320 << 20)
    past.step(lambda room: [(room / name).write_text(name) for name in ("a", "b", "c", "d")])

    def change(room: Path) -> None:
        (room / "a").unlink()
        (room / "b").rename(room / "b renamed")
        (room / "c").write_text("C")
        (room / "e").write_text("e")

    past.step(change)
    ran = cli("diff", "set@latest~1", "set")
    assert ran.code == 0, ran.err
    assert "both were walked: nothing but a walk tells what changed on xfs" in ran.text
    assert [line.split("  (")[0] for line in ran.text.splitlines()[1:]] == [
        "removed  /p0/a",
        "renamed  '/p0/b renamed'",
        "changed  /p0/c",
        "added    /p0/e",
    ]
    found = cli("history", "set", "/p0/c", "--json").document
    assert [row["what"] for row in found["versions"]] == [[], ["content", "mtime"]]


def test_growth(cli: Cli, past: Past) -> None:
    past.step(lambda room: (room / "home/large").write_bytes(bytes(range(256)) * 4000))
    ran = cli("info", "--growth", "set")
    assert ran.code == 0, ran.err
    assert "/p0/home/large" in ran.text
    found = cli("info", "--growth", "set", "--json").document
    newest = past.catalog.images[-1]
    assert found["stored_bytes"] == newest.tail.size
    assert found["overhead"] + sum(row["bytes"] for row in found["shares"]) == newest.tail.size
    assert {"/p0/home/large"} <= {row["path"] for row in found["shares"] if row["kind"] == "file"}
