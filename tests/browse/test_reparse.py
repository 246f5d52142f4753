"""Reparse buffers, well made and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.browse.reparse import DEDUP, WOF, decode
from imagefs.interfaces import EntryType
from tests.browse.disks import reparse_point, symlink_data

SYMLINK, JUNCTION = 0xA000000C, 0xA0000003


def test_a_relative_symlink_gets_slashes() -> None:
    point = decode(reparse_point(SYMLINK, symlink_data("..\\docs\\a.txt", relative=True)))
    assert point is not None
    assert (point.type, point.target) == (EntryType.SYMLINK, b"../docs/a.txt")


def test_an_absolute_symlink_stays_as_windows_writes_it() -> None:
    point = decode(reparse_point(SYMLINK, symlink_data("C:\\Users\\Ö", relative=False)))
    assert point is not None
    assert point.target == "C:\\Users\\Ö".encode()


def test_a_junction_is_a_symlink_with_a_flag() -> None:
    point = decode(reparse_point(JUNCTION, symlink_data("C:\\ProgramData", relative=False, junction=True)))
    assert point is not None
    assert (point.type, point.target, point.flag) == (EntryType.SYMLINK, b"C:\\ProgramData", "junction")


def test_without_a_print_name_the_substitute_name_serves() -> None:
    data = symlink_data("C:\\Old", relative=False)
    cut = data[:4] + bytes(4) + data[8:]
    point = decode(reparse_point(SYMLINK, cut))
    assert point is not None
    assert point.target == b"C:\\Old"


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        (0xA000001D, EntryType.SYMLINK),
        (0x80000023, EntryType.SOCKET),
        (0x80000024, EntryType.FIFO),
        (0x80000025, EntryType.DEVICE),
        (WOF, None),
        (DEDUP, None),
        (0xA0001234, EntryType.SYMLINK),  # an unknown name surrogate: a link to somewhere
    ],
)
def test_tags_say_what_an_entry_is(tag: int, kind: EntryType | None) -> None:
    point = decode(reparse_point(tag, b"\x02\0\0\0/target"))
    assert point is not None
    assert point.type is kind
    if tag == 0xA000001D:
        assert point.target == b"/target"


def test_reasons_name_what_holds_the_content() -> None:
    for tag, word in ((WOF, "WOF"), (DEDUP, "dedup"), (0x9000601A, "cloud"), (0x80001234, "80001234")):
        point = decode(reparse_point(tag, b""))
        assert point is not None
        assert word in point.reason


@given(st.sampled_from([SYMLINK, JUNCTION, 0xA000001D, WOF]), st.binary(max_size=60))
def test_no_buffer_is_too_odd(tag: int, data: bytes) -> None:
    point = decode(reparse_point(tag, data))
    assert point is not None
    assert point.tag == tag


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    point = decode(data)
    assert (point is None) == (len(data) < 8)
