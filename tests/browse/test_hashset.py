"""Lists of digests, as the tools write them."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
from pathlib import Path

import pytest

from imagefs.browse import hashset
from imagefs.browse.hashset import HashSet
from tests.support.oracles import run_tool

NAMES = [f"file {number}" for number in range(40)]


def digest(kind: str, text: str) -> bytes:
    return hashlib.new(kind, text.encode()).digest()


def read(text: bytes) -> tuple[HashSet, int]:
    found = HashSet()
    return found, found.read(io.BytesIO(text))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lists of a few lines are read in several blocks."""
    monkeypatch.setattr(hashset, "_BLOCK", 100)


def holds_all(found: HashSet, kind: str) -> bool:
    return all(found.holds({kind: digest(kind, name)}) for name in NAMES)


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("words", [[], ["--tag"], ["-b"]])
def test_what_coreutils_writes(kind: str, words: list[str], tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(name)
    (tmp_path / "new\nline").write_text("escaped")
    listed = run_tool([f"{kind}sum", *words, *sorted(tmp_path.iterdir())]).stdout
    found, unknown = read(listed)
    assert (found.kinds, len(found), unknown) == ((kind,), 41, 0)
    assert holds_all(found, kind)
    assert found.holds({kind: digest(kind, "escaped")})
    assert not found.holds({kind: digest(kind, "another")})


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_digest_a_line_of_any_kind(end: bytes) -> None:
    lines = [b"# a comment", b""]
    for kind in ("md5", "sha1", "sha256"):
        lines += [digest(kind, name).hex().upper().encode() for name in NAMES]
    found, unknown = read(end.join(lines))
    assert (len(found), unknown) == (120, 0)
    assert all(holds_all(found, kind) for kind in found.kinds)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b'"SHA-1","MD5","CRC32","FileName","FileSize"', "sha1"),
        (b'\xef\xbb\xbf"SHA-1","MD5","CRC32","FileName","FileSize"\r', "sha1"),
        (b"crc32,md5,file_name", "md5"),
        (b'"file_id","sha256","sha1","md5"', "sha256"),
    ],
)
def test_nsrl(header: bytes, kind: str) -> None:
    columns = [
        part.strip(b'"\xef\xbb\xbf\r').lower().replace(b"-", b"").decode() for part in header.split(b",")
    ]
    lines = [header]
    for name in NAMES:
        parts = [
            digest(column, name).hex().upper() if column in ("md5", "sha1", "sha256") else "0BADF00D"
            for column in columns
        ]
        lines.append(",".join(f'"{part}"' if b'"' in header else part for part in parts).encode())
    found, unknown = read(b"\n".join(lines) + b"\n")
    assert (found.kinds, len(found), unknown) == ((kind,), 40, 0)
    assert holds_all(found, kind)


def test_lines_that_hold_none_are_counted() -> None:
    good = digest("md5", "x").hex().encode()
    found, unknown = read(b"\n".join([good, good + b"0", b"nonsense", b"  ", b"zz" * 16, b"; note"]))
    assert (len(found), unknown) == (1, 3)
    assert found.holds({"md5": digest("md5", "x")})


def test_digests_that_end_in_zeros_are_told_apart() -> None:
    found = HashSet(["ab" + "00" * 15, "00" * 16])
    assert found.holds({"md5": b"\xab" + bytes(15)})
    assert found.holds({"md5": bytes(16)})
    assert not found.holds({"md5": b"\xab\x01" + bytes(14)})
    assert not HashSet().holds({"md5": bytes(16)})
    with pytest.raises(ValueError):
        found.add("abc")


def test_a_long_list_is_held_at_little_more_than_its_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    count, path = 100_000, tmp_path / "list"
    path.write_bytes(b"".join(b"%s  name\n" % os.urandom(20).hex().encode() for _ in range(count)))
    tracemalloc.start()
    try:
        found = HashSet()
        with path.open("rb") as stream:
            found.read(stream)
        assert not found.holds({"sha1": bytes(20)})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert peak < 20 * count * 1.5 + 12 * hashset._BLOCK
