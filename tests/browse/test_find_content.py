"""Finding by what is in files: across pieces and holes, in streams, past damage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.block.views import BytesReader, MarkedReader
from imagefs.browse import examine
from imagefs.browse.examine import Content
from imagefs.browse.find import Range, find
from imagefs.browse.hashset import HashSet
from imagefs.browse.opening import open_filesystem
from imagefs.errors import BrowseError, ImagefsError, PathNotFound
from imagefs.interfaces import Entry, EntryType, NoProgress, Reader, State, Stream, Whole
from tests.browse.disks import FakeFs, FileReader, file, folder
from tests.support.oracles import run_tool


def matches(content: Content, reader: Reader) -> bool:
    return content.matches(reader, "it", NoProgress())


def words(*needles: bytes) -> Content:
    return Content(tuple((needle,) for needle in needles))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.binary(min_size=1, max_size=30), st.integers(1, 20))
def test_a_word_is_found_wherever_pieces_end(data: bytes, word: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examine, "PIECE", piece)
        assert matches(words(word), BytesReader(data)) == (word in data)
        for cut in range(len(data) + 1):
            assert matches(words(word), BytesReader(data[:cut] + word + data[cut:]))


class Holed:
    """A content with a hole, which must not be read."""

    def __init__(self, before: bytes, hole: int, after: bytes) -> None:
        self._data = before + bytes(hole) + after
        self._hole = range(len(before), len(before) + hole)
        self.size = len(self._data)

    def read_at(self, offset: int, length: int, /) -> bytes:
        assert offset + length <= self._hole.start or offset >= self._hole.stop, "the hole is not read"
        return self._data[offset : offset + length]

    def extents(self, offset: int, length: int, /):  # type: ignore[no-untyped-def]
        assert (offset, length) == (0, self.size)
        zero, data = State.ZERO, State.STORED
        marked = MarkedReader(BytesReader(self._data), [self._hole.start], [self._hole.stop], zero)
        return (each for each in marked.extents(0, self.size) if each.state in (zero, data))

    def close(self) -> None:
        pass


@given(st.binary(max_size=6), st.integers(1, 60), st.binary(max_size=6), st.binary(min_size=1, max_size=8))
def test_a_hole_is_as_many_zeros_for_searching_and_hashing(
    before: bytes, hole: int, after: bytes, word: bytes
) -> None:
    data = before + bytes(hole) + after
    for needle in (word, word + b"\0\0", b"\0" + word, bytes(len(word)), bytes(hole + 1)):
        assert matches(words(needle), Holed(before, hole, after)) == (needle in data)
    right = Content(hashes=HashSet([hashlib.sha1(data).hexdigest()]))
    assert matches(right, Holed(before, hole, after))


def test_a_hole_without_end_ends() -> None:
    """Eight exbibytes of zeros are searched at once."""

    class Endless(Holed):
        def extents(self, offset: int, length: int, /):  # type: ignore[no-untyped-def]
            yield from Holed.extents(self, 0, self.size)
            from imagefs.interfaces import Extent

            yield Extent(State.ZERO, self.size, 1 << 63)

    assert not matches(words(b"word"), Endless(b"w", 5, b"ord"))


@pytest.mark.parametrize("state", [State.SKIPPED, State.UNREADABLE])
def test_what_is_not_in_the_image_is_no_zeros(state: State) -> None:
    reader = MarkedReader(BytesReader(b"a" * 100), [10], [20], state)
    with pytest.raises(BrowseError, match="10 bytes of 'it'"):
        matches(words(b"word"), reader)


def test_all_words_and_a_digest() -> None:
    data = b"one two three"
    digest = hashlib.md5(data).hexdigest()
    other = hashlib.sha256(b"other").hexdigest()
    assert matches(words(b"three", b"one"), BytesReader(data))
    assert not matches(words(b"three", b"four"), BytesReader(data))
    assert matches(Content(((b"four", b"two"),), HashSet([other, digest])), BytesReader(data))
    assert not matches(Content(((b"four",),), HashSet([digest])), BytesReader(data))
    assert not matches(Content(hashes=HashSet([other])), BytesReader(data))


# -- with file systems -----------------------------------------------------------------------------


class Closing(BytesReader):
    """A content whose file system knows whether it was closed."""

    def __init__(self, data: bytes, fs: ForensicFs) -> None:
        super().__init__(data)
        self._fs = fs
        fs.left_open += 1

    def close(self) -> None:
        super().close()
        self._fs.left_open -= 1


@dataclass
class ForensicFs(FakeFs):
    """A FakeFs with named streams and deleted files."""

    named: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    gone: list[Entry] = field(default_factory=list)
    left_open: int = 0
    opened: list[bytes] = field(default_factory=list)

    def open(self, entry: Entry, /) -> Reader:
        self.opened.append(entry.path)
        if entry.path in self.damaged:
            raise BrowseError(f"{entry.path!r} is damaged")
        return super().open(entry)

    def streams(self, entry: Entry, /) -> list[Stream]:
        if entry.path == b"/bad":
            raise BrowseError("its streams cannot be listed")
        return [Stream(name, len(data)) for name, data in self.named.get(entry.path, {}).items()]

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        self.opened.append(entry.path + b":" + name)
        return Closing(self.named[entry.path][name], self)

    def deleted(self) -> Iterator[Entry]:
        yield from self.gone
        if self.damaged:
            raise BrowseError("the rest is damaged")

    def at(self, inode: str, /) -> Entry:
        raise PathNotFound(inode)

    def wholeness(self, entry: Entry, /) -> Whole:
        return Whole.INTACT


def forensic() -> ForensicFs:
    return ForensicFs(
        {b"/": [folder(b"/d", "3"), file(b"/a.txt"), file(b"/bad"), file(b"/z.txt")], b"/d": [file(b"/d/e")]},
        content={
            b"/a.txt": BytesReader(b"the needle"),
            b"/z.txt": BytesReader(b"needle too, and longer"),
            b"/d/e": BytesReader(b"nothing"),
        },
        named={b"/d": {b"s": b"a needle in a folder"}, b"/d/e": {b"t": b"needle", b"u": b"straw"}},
        damaged={b"/bad"},
    )


def test_contents_and_streams_are_searched_past_damage() -> None:
    errors: list[ImagefsError] = []
    fs = forensic()
    hits = list(find(fs, fs.root(), onerror=errors.append, content=words(b"needle")))
    assert [(hit.path, hit.type, hit.size) for hit in hits] == [
        (b"/d:s", EntryType.FILE, 20),
        (b"/d/e:t", EntryType.FILE, 6),
        (b"/a.txt", EntryType.FILE, 6),
        (b"/z.txt", EntryType.FILE, 6),
    ]
    assert fs.left_open == 0
    assert [error.message for error in errors] == ["its streams cannot be listed", "b'/bad' is damaged"]


def test_what_is_cheap_comes_first_and_each_content_is_read_once() -> None:
    fs = forensic()
    hits = find(
        fs,
        fs.root(),
        onerror=pytest.fail,
        name=b"*.txt",
        sizes=[Range(low=1)],
        content=Content(((b"needle",), (b"the",)), HashSet([hashlib.md5(b"the needle").hexdigest()])),
    )
    assert [hit.path for hit in hits] == [b"/a.txt"]
    assert fs.opened == [b"/a.txt", b"/z.txt"]


def test_a_size_is_that_of_the_stream() -> None:
    fs = forensic()
    hits = find(fs, fs.root(), onerror=lambda _: None, sizes=[Range(low=20)], content=words(b"needle"))
    assert [hit.path for hit in hits] == [b"/d:s"]
    assert fs.opened == [b"/d:s"], "nothing else is opened"


def test_a_real_volume_against_grep_and_sha256sum(ext4: Path, staged: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    seen = find(fs, fs.root(), onerror=pytest.fail, content=words(b"e", b"l"))
    told = run_tool(["grep", "-rlZ", "--binary-files=text", "--devices=skip", "-e", "e", staged]).stdout
    also = run_tool(["grep", "-rlZ", "--binary-files=text", "--devices=skip", "-e", "l", staged]).stdout
    both = set(told.split(b"\0")) & set(also.split(b"\0")) - {b""}
    lead = str(staged).encode()
    assert {hit.path for hit in seen} == {path.removeprefix(lead) for path in both}
    assert len(both) > 3
    listed = run_tool(["sha256sum", staged / "rnd", staged / "sparse"]).stdout
    hashes = HashSet(line.split()[0].decode() for line in listed.splitlines())
    hits = find(fs, fs.root(), onerror=pytest.fail, content=Content(hashes=hashes))
    assert {hit.path for hit in hits} == {b"/rnd", b"/sparse"}
