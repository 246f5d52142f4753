"""The caches: what they know, and that they stay within their bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mounter.entrycache import EntryCache, Folder
from tests.mounter.fakes import file


def entries_of(*names: bytes) -> dict[bytes, object]:
    return {name: file(b"/" + name) for name in names}


def folder_of(*names: bytes) -> Folder:
    return Folder({name: file(b"/" + name) for name in names})


def test_a_folder_knows_every_name_it_has_and_lacks() -> None:
    folder = folder_of(b"Readme", b"README", "Ünïcode".encode())
    for name, exact, folded in (
        (b"Readme", b"Readme", b"Readme"),
        (b"README", b"README", b"README"),
        (b"readme", None, b"Readme"),
        ("üNÏCODE".encode(), None, "Ünïcode".encode()),
        (b"autorun.inf", None, None),
        ("ß".encode(), None, None),
    ):
        for expected, case_insensitive in ((exact, False), (folded, True)):
            found = folder.find(name, case_insensitive=case_insensitive)
            assert (found.name if found else None) == expected


def test_paths_are_known_known_missing_or_unknown() -> None:
    cache = EntryCache()
    entry = file(b"/a")
    cache.keep_path(0, b"/a", entry)
    cache.keep_path(0, b"/b", None)
    assert cache.path(0, b"/a") == (True, entry)
    assert cache.path(0, b"/b") == (True, None)
    assert cache.path(0, b"/c") == (False, None)
    assert cache.path(1, b"/a") == (False, None), "another volume"


def test_paths_are_bounded_and_the_least_used_goes_first() -> None:
    cache = EntryCache(max_paths=3)
    for name in (b"/1", b"/2", b"/3"):
        cache.keep_path(0, name, None)
    cache.path(0, b"/1")
    cache.keep_path(0, b"/4", None)
    assert [cache.path(0, name)[0] for name in (b"/1", b"/2", b"/3", b"/4")] == [True, False, True, True]


def test_a_folder_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    cache = EntryCache(max_entries=10)
    cache.keep_folder(0, b"/small", dict(folder_of(b"a").entries))
    cache.keep_folder(0, b"/huge", {b"%d" % at: file(b"/huge/%d" % at) for at in range(6)})
    assert cache.folder(0, b"/huge") is None
    assert cache.folder(0, b"/small") is not None


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 12)), max_size=60))
def test_folders_stay_within_the_bound(steps: list[tuple[int, int, int]]) -> None:
    cache = EntryCache(max_entries=20)
    last: dict[tuple[int, int], int] = {}
    for slot, place, count in steps:
        cache.keep_folder(slot, b"/%d" % place, {b"%d" % at: file(b"/%d" % at) for at in range(count)})
        if count <= 10:
            last[slot, place] = count
        held, _ = cache.counts()
        assert held <= 20
    total = 0
    for (slot, place), count in last.items():
        folder = cache.folder(slot, b"/%d" % place)
        if folder is not None:
            assert len(folder.entries) == count
            total += count + 1
    assert cache.counts()[0] == total
