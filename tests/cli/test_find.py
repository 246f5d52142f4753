"""find by the command line: the words of its options, against GNU find, and how it tells what it could not do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timezone
from pathlib import Path

import click
import pytest

from imagefs.browse.find import Range
from imagefs.cli.criteria import moment, needle_of_hex, needle_of_text, path_pattern, size_range
from imagefs.cli.find import find
from imagefs.errors import BrowseError, UsageError
from tests.cli.conftest import Cli

DAY = 86_400 * 10**9


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0", Range(0, 0)),
        ("512", Range(512, 512)),
        ("+10M", Range(10 << 20, None)),
        ("-4k", Range(None, 4096)),
        ("4K..10KiB", Range(4096, 10240)),
        ("..3G", Range(None, 3 << 30)),
        ("1T..", Range(1 << 40, None)),
        ("100c", Range(100, 100)),
    ],
)
def test_sizes(text: str, span: Range) -> None:
    assert size_range(text) == span


@pytest.mark.parametrize("text", ["", "+", "x", "1.5M", "4k..x", "..", "--4k", "9" * 30, "10b10"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        size_range(text)


def test_moments() -> None:
    berlin = timezone(datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None) - datetime(2025, 12, 31, 23))
    first = 1_767_225_600 * 10**9  # date -u -d 2026-01-01 +%s
    assert moment("2026-01-01", UTC) == first
    assert moment("2026-01-01T00:00:00Z", berlin) == first
    assert moment("2026-01-01 01:00", berlin) == first
    assert moment("2026-01-01T02:30+02:30", UTC) == first
    assert moment("2026-01-01T00:00:00.25", UTC) == first + 250_000_000
    assert moment("@1767225600", None) == first
    assert moment("@-1", None) == -(10**9)
    for text, length in (("3d", 3 * DAY), ("2weeks", 14 * DAY), ("12 hours", DAY // 2), ("1y", 365 * DAY)):
        assert abs(time.time_ns() - length - moment(text, UTC)) < 60 * 10**9
    for text in ("yesterday", "2026-13-01", "3 moons", "@x", ""):
        with pytest.raises(UsageError):
            moment(text, UTC)


def test_words() -> None:
    assert needle_of_text("ä".encode()) == (b"\xc3\xa4", b"\xe4\x00")
    assert needle_of_text(b"\xff") == (b"\xff",)
    for text in ("deadBEEF", "de ad be ef", "0xdeadbeef", "de:ad:be:ef"):
        assert needle_of_hex(text) == (b"\xde\xad\xbe\xef",)
    for wrong in (lambda: needle_of_hex("abc"), lambda: needle_of_hex(""), lambda: needle_of_text(b"")):
        with pytest.raises(UsageError):
            wrong()


def test_patterns_are_for_the_whole_path() -> None:
    test = path_pattern(r"/p1/.*\.txt", ignore_case=False)
    assert test(b"/p1/d/a.txt")
    assert test(b"/p1/new\nline.txt")
    assert test(b"/p1/caf\xe9.txt")
    assert not test(b"/p1/a.txt.old")
    assert not test(b"x/p1/a.txt")
    assert not test(b"/p1/a.TXT")
    assert path_pattern(r"/p1/.*\.txt", ignore_case=True)(b"/P1/a.TXT")
    with pytest.raises(UsageError):
        path_pattern("(", ignore_case=False)


def test_a_pattern_that_would_take_for_ever_is_told() -> None:
    test = path_pattern("(a+)+b", ignore_case=False)
    with pytest.raises(BrowseError, match="too long"):
        test(b"a" * 40)
    assert test(b"aab"), "and the next path is matched as if nothing had been"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def image(cli: Cli, tmp_path: Path) -> Cli:
    """A set with an ext4: sizes and times of many kinds, a file in two pieces of a hole, a deep one."""
    files = tmp_path / "files"
    (files / "dir/deep").mkdir(parents=True)
    for number in range(40):
        path = files / "dir" / f"file{number:02d}.{'TXT' if number % 3 else 'log'}"
        path.write_bytes(b"x" * (number * 257) + b"the word" * (number % 2))
        stamp = 1_600_000_000_000_000_000 + number * DAY + number
        os.utime(path, ns=(stamp + 5, stamp))
    with (files / "dir/deep/sparse").open("wb") as out:
        out.seek((1 << 20) - 4)
        out.write(b"the word")
        out.truncate(3 << 20)
    (files / "utf16").write_bytes("\N{BOM}the word".encode("utf-16-le"))
    (files / "link").symlink_to("dir")
    path = tmp_path / "disk.raw"
    with path.open("wb") as out:
        out.truncate(16 << 20)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-I", "256", "-d", str(files), str(path)]
    subprocess.run(words, check=True, timeout=600)
    assert cli("capture", "disk.raw", "set").code == 0
    return cli


Expect = Callable[..., set[str]]


@pytest.fixture
def expect(tmp_path: Path) -> Expect:
    """What GNU find finds in the files that the image was made of."""

    def run(*words: str) -> set[str]:
        done = subprocess.run(
            ["find", ".", "-mindepth", "1", *words, "-print0"],
            cwd=tmp_path / "files",
            capture_output=True,
            check=True,
            timeout=600,
            env={**os.environ, "TZ": "UTC"},
        )
        return {"/p0" + name[1:] for name in done.stdout.decode().split("\0") if name}

    return run


def found(image: Cli, *words: str, code: int = 0) -> set[str]:
    ran = image("find", "set", "-0", *words)
    assert ran.code == code, ran.err
    return {name for name in ran.text.split("\0") if name} - {"/p0/lost+found"}


SEVEN = ("-regextype", "posix-extended", "-regex", r"./dir/file[0-3][0-9]\.(log|md)")
SEPTEMBER = ("-newermt", "2020-09-20", "!", "-newermt", "2020-10-01")
GREP = ("-type", "f", "-exec", "grep", "-q", "the word", "{}", ";")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("--name", "*.TXT"), ("-name", "*.TXT")),
        (("--iname", "*.txt", "--type", "f"), ("-iname", "*.txt", "-type", "f")),
        (("--type", "d", "--type", "l"), ("-type", "d,l")),
        (("--size", "+2k", "--size", "-4k", "--name", "f*"), ("-size", "+2047c", "-size", "-4097c", "-name", "f*")),
        (("--size", "2k..4k", "--name", "f*"), ("-size", "+2047c", "-size", "-4097c", "-name", "f*")),
        (("--size", "514"), ("-size", "514c")),
        (("--regex", r"/p0/dir/file[0-3]\d\.(log|md)"), SEVEN),
        (("--iregex", r"/P0/.*\.txt"), ("-iregex", r"./.*\.txt")),
        (("--newer", "/p0/dir/file20.TXT"), ("-newer", "dir/file20.TXT")),
        (("--mtime-after", "2020-09-20", "--older", "2020-10-01"), SEPTEMBER),
        (("--contains", "the word", "--changed-before", "2020-10-01"), ("!", "-newermt", "2020-10-01", *GREP)),
    ],
)  # fmt: skip
def test_as_gnu_find(image: Cli, expect: Expect, ours: tuple[str], theirs: tuple[str]) -> None:
    expected = expect(*theirs)
    assert expected, "a comparison of nothing"
    assert found(image, *ours) == expected


def test_each_time_is_its_own(image: Cli) -> None:
    stat = image("stat", "set", "/p0/dir/file07.TXT", "--json").document["entries"][0]
    times = {field: stat[field] for field in ("mtime", "atime", "ctime", "crtime")}
    assert times["mtime"][:10] != times["ctime"][:10]
    words = ["/p0/dir", "--name", "file07*", *(f"--{field}-after={time}" for field, time in times.items())]
    assert found(image, *words) == {"/p0/dir/file07.TXT"}
    for field, when in times.items():
        assert found(image, *words, f"--{field}-before={when}") == set()


def test_contents_by_text_bytes_and_digest(image: Cli, tmp_path: Path) -> None:
    by_text = found(image, "--contains", "the word")
    assert {"/p0/dir/deep/sparse", "/p0/utf16", "/p0/dir/file01.TXT"} <= by_text
    assert len(by_text) == 22
    assert found(image, "/p0/dir/deep", "--contains-hex", "74 68 65 20 77 6f 72 64 00") == {
        "/p0/dir/deep/sparse"
    }
    files = tmp_path / "files/dir"
    one, two, three = (files / name for name in ("file03.log", "file04.TXT", "deep/sparse"))
    sums = [hashlib.md5(one.read_bytes()).hexdigest(), hashlib.sha1(two.read_bytes()).hexdigest()]
    listed = subprocess.run(["sha256sum", three], check=True, capture_output=True, timeout=600).stdout
    (tmp_path / "hashes").write_bytes(b"# known\n" + listed)
    words = ["--hash", sums[0], "--hash", sums[1].upper(), "--hash-set", "hashes"]
    assert found(image, *words) == {"/p0/dir/file03.log", "/p0/dir/file04.TXT", "/p0/dir/deep/sparse"}
    assert found(image, *words, "--contains", "the word", "--name", "file*") == {"/p0/dir/file03.log"}


def test_json_and_its_progress(image: Cli) -> None:
    ran = image("find", "set", "--contains", "the word", "--name", "file1*", "--json")
    document = ran.document
    assert document["complete"] is True
    assert [row["path"] for row in document["entries"]] == [
        f"/p0/dir/file{number}.{'TXT' if number % 3 else 'log'}" for number in range(11, 20, 2)
    ]
    assert {"path", "type", "size", "mtime", "inode", "deleted"} <= document["entries"][0].keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hash", "abc"], "digest"),
        (["--hash-set", "DIR/nowhere"], "nowhere"),
        (["--hash-set", "DIR/empty"], "no digest"),
        (["--size", "big"], "size"),
        (["--newer", "soon"], "time"),
        (["--regex", "["], "regular expression"),
        (["--contains", ""], "text"),
        (["--contains-hex", "xyz"], "hex"),
        (["--type", "x"], "symlink"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    with pytest.raises((UsageError, click.UsageError)) as refused:
        find.main(["there is no such set", *words], standalone_mode=False)
    assert said in str(refused.value)


def test_a_time_of_a_file_that_is_not_there(image: Cli) -> None:
    assert image("find", "set", "--newer", "/p0/nothing").code == 40


def test_odd_lines_of_a_hash_set_are_told(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "hashes").write_text("d41d8cd98f00b204e9800998ecf8427e\nwhat is this\n")
    ran = image("find", "set", "--hash-set", "hashes")
    assert (ran.code, ran.text) == (0, "/p0/dir/file00.log\n")
    assert "1 lines" in ran.err


def test_damage_is_told_and_passed(image: Cli, tmp_path: Path) -> None:
    """A file whose extents lead nowhere: the others are searched all the same."""
    script = "set_inode_field dir/file01.TXT block[4] 0xffff0001\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", tmp_path / "disk.raw"],
        input=script.encode(),
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert image("capture", "disk.raw", "damaged", "--mode", "all").code == 0
    ran = image("find", "damaged", "--contains", "the word")
    assert ran.code == 3
    assert "file01.TXT" in ran.err
    assert len(ran.text.splitlines()) == 21
    document = image("find", "damaged", "--contains", "the word", "--json")
    assert (document.code, document.document["complete"]) == (3, True)
    assert "file01.TXT" in json.loads(document.err.splitlines()[-1])["warning"]
