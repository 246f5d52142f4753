"""Names on a terminal: nothing acts, nothing hides, columns are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fixtures.past import HOSTILE
from imagefs.tui.names import fitted, middle, pieces, plain, text_pieces

ANY_NAME = st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)


def test_what_cannot_be_shown_is_an_escape() -> None:
    assert pieces(b"bell\x07 and escape\x1b[31m") == [
        ("bell", False),
        ("\\x07", True),
        (" and escape", False),
        ("\\x1b", True),
        ("[31m", False),
    ]
    assert plain("a\u202eb".encode()) == "a\\u202eb"
    assert plain(b"\xff\xfe") == "\\xff\\xfe"
    assert plain("\u3164\ufe0f\u034f".encode()) == "\\u3164\\ufe0f\\u034f"
    assert plain("e\u0301 日本".encode()) == "e\u0301 日本"
    assert pieces(b"a\\x07") == [("a\\x07", False)], "a real backslash is not coloured as an escape"


def test_spaces_at_the_ends_are_seen() -> None:
    assert pieces(b" a b ") == [("␠", True), ("a b", False), ("␠", True)]
    assert plain(b"  ") == "␠␠"
    assert plain(b"") == "''"


@given(ANY_NAME, st.integers(0, 50))
def test_a_name_takes_exactly_its_column_and_no_control_character(name: bytes, width: int) -> None:
    found = fitted(pieces(name), width)
    text = "".join(part for part, _ in found)
    assert cell_len(text) == width
    assert text.isprintable()


@given(st.text(max_size=200))
def test_no_text_acts_on_the_terminal(text: str) -> None:
    assert all(part.isprintable() for part, _ in text_pieces(text))


@given(ANY_NAME, st.integers(1, 40))
def test_the_middle_is_left_out(name: bytes, width: int) -> None:
    assert cell_len(middle(plain(name), width)) <= width


def test_hostile_names_stay_apart() -> None:
    """Two different names are never shown as one."""
    shown = {tuple(pieces(name)) for name in (*HOSTILE, b"line\\nbreak", b"ends in a space", b"bell\x07")}
    assert len(shown) == len(HOSTILE) + 3
    assert middle("/p2/a long way/to the/report.txt", 16) == "/p2/a…report.txt"
