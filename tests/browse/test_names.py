"""Names are safe, different and foldable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imagefs.browse.names import fold, join, parts, printable, repeated, safe_name, shown_name


@given(st.binary(max_size=40))
def test_a_safe_name_is_one_part_of_a_path(name: bytes) -> None:
    safe = safe_name(name)
    assert safe not in (b"", b".", b"..")
    assert b"/" not in safe
    assert b"\0" not in safe
    assert parts(join(b"/dir", safe)) == [b"dir", safe]


@given(st.binary(min_size=1, max_size=20).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b"..")))
def test_an_ordinary_name_stays_as_it_is(name: bytes) -> None:
    assert safe_name(name) == name


def test_names_that_would_escape_are_rewritten() -> None:
    assert safe_name(b"..") == b"%2E%2E"
    assert safe_name(b"../etc/passwd") == b"..%2Fetc%2Fpasswd"
    assert safe_name(b"a\0b") == b"a%00b"
    assert safe_name(b"") == b"%"


def test_folding_is_upper_case_one_for_one() -> None:
    assert fold(b"ReadMe.TXT") == fold(b"readme.txt")
    assert fold("größe".encode()) == fold("GRÖßE".encode())
    assert fold("straße".encode()) != fold(b"STRASSE")
    assert fold(b"caf\xe9") == b"CAF\xe9"


@given(st.lists(st.sampled_from([b"a", b"b", b"a~1", b"c"]), max_size=8))
def test_shown_names_of_one_directory_differ(names: list[bytes]) -> None:
    twice, taken = repeated(names), frozenset(names)
    assert twice == {name for name in names if names.count(name) > 1}
    shown = [
        shown_name(name, str(inode), twice=twice, taken=taken) for inode, name in enumerate(names, start=1)
    ]
    assert len(set(shown)) == len(shown)


def test_a_repeated_name_carries_its_inode() -> None:
    assert shown_name(b"a", "12-128-1", twice={b"a"}) == b"a~12-128-1"
    assert shown_name(b"a", "12", twice={b"b"}) == b"a"
    assert shown_name(b"a", "12", twice={b"a"}, taken={b"a~12"}) == b"a~12~12"


def test_parts_skip_what_means_nothing() -> None:
    assert parts(b"//etc/./fstab/") == [b"etc", b"fstab"]
    assert parts(b"/") == []
    assert parts(b"a/..") == [b"a", b".."]


@given(st.binary(max_size=40))
def test_sentences_hold_no_control_characters(path: bytes) -> None:
    assert printable(path).isprintable()
