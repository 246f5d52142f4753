"""A folder without a screen: order, filter, marks, and a million entries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imagefs.interfaces import Entry, EntryType, Whole
from imagefs.tui import folder
from imagefs.tui.folder import Gone, Mark, Marks, Order, Rows, arranged, mark_of, name_test

KINDS = [EntryType.FILE, EntryType.DIRECTORY, EntryType.SYMLINK]
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.binary(min_size=1, max_size=6).map(lambda name: b"/d/" + name.replace(b"/", b"_")),
        st.sampled_from(KINDS),
        st.integers(-5, 1 << 65),
        st.just("1"),
        mtime_ns=st.one_of(st.none(), st.integers(-(1 << 65), 1 << 65)),
    ),
    max_size=40,
)


def rows_of(entries: list[Entry]) -> Rows:
    rows = Rows(b"/p1/d")
    rows.add(entries)
    return rows


def file(name: bytes, size: int = 0, mtime_ns: int | None = None) -> Entry:
    return Entry(b"/d/" + name, EntryType.FILE, size, "1", mtime_ns=mtime_ns)


@given(ENTRIES, st.sampled_from(Order.KEYS), st.booleans(), st.integers(1, 7))
def test_every_order_is_that_of_one_sort(entries: list[Entry], by: str, backwards: bool, run: int) -> None:
    """Sorted in runs that are merged, however short these are."""
    rows = rows_of(entries)
    whole = list(arranged(rows, Order(by, backwards)))
    kept, folder._RUN = folder._RUN, run
    try:
        assert list(arranged(rows, Order(by, backwards))) == whole
    finally:
        folder._RUN = kept
    assert sorted(whole) == list(range(len(entries)))
    flags = [rows.is_folder(index) for index in whole]
    assert flags == sorted(flags, reverse=True), "folders first"
    values = [(rows.is_folder(index), rows.size(index)) for index in whole]
    if by == "size":
        only = [size for is_folder, size in values if not is_folder]
        assert only == sorted(only, reverse=backwards)


def test_orders() -> None:
    rows = rows_of([file(b"b.txt", 3, 5), file(b"A.zip", 1, None), file(b"c", 2, 9), file(b".hidden", 4, 7)])
    rows.add([Entry(b"/d/z", EntryType.DIRECTORY, 0, "1")])

    def names(order: Order, wanted: str = "") -> list[bytes]:
        return [rows.names[index] for index in arranged(rows, order, wanted)]

    assert names(Order()) == [b"z", b".hidden", b"A.zip", b"b.txt", b"c"]
    assert names(Order("name", True)) == [b"z", b"c", b"b.txt", b"A.zip", b".hidden"]
    assert names(Order("size", True)) == [b"z", b".hidden", b"b.txt", b"c", b"A.zip"]
    assert names(Order("time", True)) == [b"z", b"c", b".hidden", b"b.txt", b"A.zip"]
    assert names(Order("kind")) == [b"z", b".hidden", b"c", b"b.txt", b"A.zip"]
    assert names(Order(), "*.t?t") == [b"b.txt"]
    assert names(Order(), "Z") == [b"z", b"A.zip"]
    assert Order().next() == Order("size", True)
    assert Order("size", True).words == "by size, largest first"


def test_filters_know_no_case_and_take_bytes() -> None:
    assert name_test("GRÜ")("grüße".encode())
    assert not name_test("[ab]*")(b"cab")
    assert name_test("*.jp*")(b"\xff.JPG")
    assert name_test("")(b"anything")


def test_marks_know_deleted_from_live() -> None:
    rows = rows_of([file(b"same", 10)])
    gone = file(b"same", 7)._replace(deleted=True)
    rows.add_gone([Gone(gone, Whole.INTACT)])
    marks = Marks()
    for index in (0, 1):
        marks.toggle(*mark_of(rows, index))
    assert set(marks.sizes) == {Mark(b"/p1/d/same"), Mark(b"/p1/d/same", deleted=True)}
    assert (len(marks), marks.bytes, marks.folders) == (2, 17, 0)
    marks.toggle(Mark(b"/p1/d"), None)
    assert marks.folders == 1
    marks.drop([Mark(b"/p1/d/same"), Mark(b"/p1/d")])
    assert list(marks.sizes) == [Mark(b"/p1/d/same", deleted=True)]


def test_sorting_much_lets_others_have_their_turn() -> None:
    """``heed`` is called so often that no stretch of work between two calls is long, whatever the number."""
    rows = rows_of([file(b"%07d" % (number * 7919 % 100_003)) for number in range(100_000)])
    turns = 0

    def heed() -> None:
        nonlocal turns
        turns += 1

    shown = arranged(rows, Order(), heed=heed)
    assert [rows.names[shown[at]] for at in (0, 1, 99_999)] == [b"0000000", b"0000001", b"0100002"]
    assert turns >= 3 * 100_000 // folder.PORTION


def test_giving_up_ends_the_work() -> None:
    class GivenUp(Exception):
        pass

    def heed() -> None:
        raise GivenUp

    try:
        arranged(rows_of([file(b"a")]), Order(), heed=heed)
    except GivenUp:
        return
    raise AssertionError("it went on")
