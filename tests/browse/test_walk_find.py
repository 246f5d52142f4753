"""Walking and finding: order, loops, damage; globs."""

from __future__ import annotations

import importlib
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.browse.find import Range, find, glob
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import MAX_DEPTH, walk
from imagefs.errors import BrowseError, ImagefsError
from imagefs.interfaces import Entry, EntryType
from tests.browse.disks import FakeFs, FileReader, file, folder, link
from tests.support.oracles import unpacked_corpus_file

#: The package gives its function the name of the module.
walk_module = importlib.import_module("imagefs.browse.walk")


def collect(fs: FakeFs, start: Entry | None = None) -> tuple[list[bytes], list[ImagefsError]]:
    errors: list[ImagefsError] = []
    return [entry.path for entry in walk(fs, start or fs.root(), onerror=errors.append)], errors


def test_parents_come_first_and_the_start_is_left_out() -> None:
    fs = FakeFs({b"/": [folder(b"/a", "3"), file(b"/z")], b"/a": [file(b"/a/1"), folder(b"/a/b", "4")]})
    assert collect(fs) == ([b"/a", b"/a/1", b"/a/b", b"/z"], [])


def test_a_file_has_nothing_below_it() -> None:
    assert collect(FakeFs({}), file(b"/f")) == ([], [])


def test_a_damaged_directory_is_reported_and_passed() -> None:
    fs = FakeFs(
        {b"/": [folder(b"/bad", "3"), file(b"/after")], b"/bad": [file(b"/bad/kept")]}, damaged={b"/bad"}
    )
    paths, errors = collect(fs)
    assert paths == [b"/bad", b"/bad/kept", b"/after"]
    assert [type(error) for error in errors] == [BrowseError]


def test_an_error_handler_may_end_the_walk() -> None:
    fs = FakeFs({b"/": [file(b"/x")]}, damaged={b"/"})

    def stop(error: ImagefsError) -> None:
        raise error

    with pytest.raises(BrowseError):
        list(walk(fs, fs.root(), onerror=stop))


class Loop(FakeFs):
    """A directory that holds itself, under two names."""

    def children(self, entry: Entry, /):  # type: ignore[no-untyped-def]
        base = entry.path.rstrip(b"/")
        yield folder(base + b"/self", "3")
        yield file(base + b"/file")


def test_a_loop_ends() -> None:
    paths, errors = collect(Loop({}))
    assert paths == [b"/self", b"/self/self", b"/self/file", b"/file"]
    assert len(errors) == 1
    assert "loop" in errors[0].message


class Fan(FakeFs):
    """60 levels, each holding the next one twice: 2^60 paths without a loop."""

    def children(self, entry: Entry, /):  # type: ignore[no-untyped-def]
        depth = entry.path.count(b"/") if entry.path != b"/" else 0
        if depth < 60:
            for name in (b"l", b"r"):
                yield folder(entry.path.rstrip(b"/") + b"/" + name, str(100 + depth))


def test_a_small_disk_is_never_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_VISITS", 20)
    paths, errors = collect(Fan({}))
    assert errors
    assert len(paths) <= 61 * 2 * 20


class Deep(FakeFs):
    def children(self, entry: Entry, /):  # type: ignore[no-untyped-def]
        number = int(entry.inode) + 1
        yield folder(entry.path.rstrip(b"/") + b"/d", str(number))


def test_depth_is_bounded() -> None:
    paths, errors = collect(Deep({}))
    assert len(paths) == MAX_DEPTH
    assert "deep" in errors[0].message


def test_the_fat_directory_loop_of_the_corpus_ends(tmp_path: Path) -> None:
    path = unpacked_corpus_file("dfir_ntfs/test_data/fat32_loop.raw.gz", tmp_path)
    fs = open_filesystem(FileReader(path))
    errors: list[ImagefsError] = []
    paths = [e.path for e in itertools.islice(walk(fs, fs.root(), onerror=errors.append), 100_000)]
    assert 10 < len(paths) < 100_000
    assert b"/test_dir/1/11/111.txt" in paths


# -- find ------------------------------------------------------------------------------------------

TREE = FakeFs(
    {
        b"/": [
            folder(b"/Docs", "3"),
            file(b"/Read.me", mtime_ns=50),
            file(b"/caf\xe9"),
            link(b"/read.link"),
        ],
        b"/Docs": [
            file(b"/Docs/a.TXT", mtime_ns=10),
            file(b"/Docs/b.txt", mtime_ns=20),
            file("/Docs/ü".encode()),
        ],
    }
)


def found(fs: FakeFs = TREE, start: Entry | None = None, **words: object) -> list[bytes]:
    hits = find(fs, start or fs.root(), onerror=pytest.fail, **words)  # type: ignore[arg-type]
    return [entry.path for entry in hits]


def test_names_and_types() -> None:
    assert found(name=b"*.txt") == [b"/Docs/b.txt"]
    assert found(iname=b"*.txt") == [b"/Docs/a.TXT", b"/Docs/b.txt"]
    assert found(name=b"[Rr]ead*") == [b"/Read.me", b"/read.link"]
    assert found(name=b"[Rr]ead*", types={EntryType.SYMLINK}) == [b"/read.link"]
    assert found(types={EntryType.DIRECTORY}) == [b"/Docs"]
    assert found(name=b"nothing") == []
    assert len(found()) == 7


def test_names_that_are_no_unicode() -> None:
    assert found(name=b"caf\xe9") == [b"/caf\xe9"]
    assert found(name=b"caf?") == [b"/caf\xe9"]
    assert found(name=b"?") == ["/Docs/ü".encode()], "one character, two bytes"


def test_case_follows_the_file_system() -> None:
    folding = FakeFs(TREE.tree, case_insensitive=True)
    assert found(folding, name=b"*.TXT") == [b"/Docs/a.TXT", b"/Docs/b.txt"]
    assert found(folding, name="Ü".encode()) == ["/Docs/ü".encode()]


def test_a_start_that_is_a_file_is_tested_itself() -> None:
    assert found(start=file(b"/x/one.txt"), name=b"*.txt") == [b"/x/one.txt"]
    assert found(start=file(b"/x/one.txt"), name=b"*.md") == []


def test_sizes_and_times() -> None:
    modified = [("mtime_ns", Range(15, 50))]
    assert sorted(found(times=modified)) == [b"/Docs/b.txt", b"/Read.me"]
    assert found(times=[*modified, ("mtime_ns", Range(low=21))]) == [b"/Read.me"]
    assert found(times=[("atime_ns", Range())]) == [], "a time that is not known is in no range"
    assert found(sizes=[Range(low=11)]) == [b"/Docs/a.TXT", b"/Docs/b.txt"]
    assert found(sizes=[Range(high=0)]) == [b"/Docs"]
    assert found(sizes=[Range(low=8), Range(high=10)]) == ["/Docs/ü".encode(), b"/Read.me"]


def test_paths() -> None:
    assert found(path=lambda path: path.count(b"/") == 2 and path.endswith(b"txt")) == [b"/Docs/b.txt"]


@given(st.binary(max_size=20).filter(lambda n: b"/" not in n), st.booleans())
def test_a_name_without_wildcards_matches_itself(name: bytes, ignore_case: bool) -> None:
    escaped = b"".join(b"[%c]" % c if c in b"*?[" else bytes([c]) for c in name)
    assert glob(escaped, ignore_case=ignore_case)(file(b"/" + name))
    assert glob(b"*", ignore_case=ignore_case)(file(b"/" + name))


def test_a_costly_pattern_costs_little() -> None:
    """Many stars must not make the matcher try everything: this would outlast the universe."""
    assert not glob(b"*a" * 30 + b"b", ignore_case=True)(file(b"/" + b"a" * 250))


def test_find_on_a_real_volume(ext4: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    hits = find(fs, fs.root(), name=b"*_29?", onerror=pytest.fail)
    assert {os.path.basename(entry.path)[-3:] for entry in hits} == {b"%d" % n for n in range(290, 300)}
