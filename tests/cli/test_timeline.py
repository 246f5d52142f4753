"""timeline by the command line: body files that are those of fls, CSV, JSON, and what it is asked for."""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.oracles import tool_text


@pytest.fixture
def image(cli: Cli, ext4: Path) -> Cli:
    assert cli("capture", "ext4.raw", "set").code == 0
    return cli


def fls(ext4: Path, inode: str = "") -> set[str]:
    words = ["env", "TZ=UTC", "fls", "-r", "-m", "/p0", ext4, *([inode] if inode else [])]
    said = tool_text(*words).splitlines()
    return {line for line in said if "$OrphanFiles" not in line}


def test_a_body_file_is_that_of_fls(image: Cli, ext4: Path) -> None:
    expected = fls(ext4)
    for words in ((), ("p0",), ("/p0",)):
        ran = image("timeline", "set", *words)
        assert (ran.code, set(ran.text.splitlines())) == (0, expected)
    below = {line for line in expected if "/p0/dir/" in line}
    assert len(below) == 2
    assert set(image("timeline", "set", "/p0/dir").text.splitlines()) == below


def _shortest(time: str) -> str:
    """Without the zeros that end its fraction."""
    return time.rstrip("Z").rstrip("0").rstrip(".") if "." in time else time.rstrip("Z")


def test_csv_and_json(image: Cli) -> None:
    header, *rows = csv.reader(io.StringIO(image("timeline", "set", "--csv").text))
    assert header == ["time", "size", "macb", "mode", "uid", "gid", "inode", "name"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    document = image("timeline", "set", "--json").document
    assert document["complete"] is True
    by_path = {row["path"]: row for row in document["entries"]}
    link = by_path["/p0/dir/link"]
    assert (link["type"], link["target"]) == ("symlink", "plan.txt")
    assert {"mtime", "atime", "ctime", "crtime", "inode", "deleted"} <= link.keys()
    wanted = {
        (row["path"], letter, row[field])
        for row in document["entries"]
        for letter, field in zip("macb", ("mtime", "atime", "ctime", "crtime"), strict=True)
    }
    told = {
        (row[7].split(" -> ")[0], letter, _shortest(row[0]))
        for row in rows
        for letter in row[2].replace(".", "")
    }
    assert told == {(path, letter, _shortest(time)) for path, letter, time in wanted}


@pytest.mark.parametrize(
    ("words", "code"), [(("--csv", "--json"), 2), (("p7",), 40), (("/p0/nothing",), 40), (("etc",), 2)]
)
def test_what_cannot_be_told(image: Cli, words: tuple[str, ...], code: int) -> None:
    assert image("timeline", "set", *words).code == code


def test_damage_is_told_and_the_rest_comes(image: Cli, ext4: Path) -> None:
    """A folder whose block lies nowhere."""
    script = "set_inode_field dir block[4] 0xffff0001\n"
    words = ["debugfs", "-w", "-f", "-", str(ext4)]
    subprocess.run(words, input=script.encode(), check=True, capture_output=True, timeout=600)
    assert image("capture", "ext4.raw", "damaged", "--mode", "all").code == 0
    ran = image("timeline", "damaged", "--csv")
    assert ran.code == 3
    assert "'/dir'" in ran.err
    assert "/p0/report.txt" in ran.text
