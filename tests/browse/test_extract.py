"""Extraction: what comes out, what must never happen, and what is said of what was left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse import filewriter
from imagefs.browse import place as place_module
from imagefs.browse.content import MappedReader, Piece
from imagefs.browse.extract import extract, plan_targets
from imagefs.browse.opening import open_filesystem
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.errors import BrowseError, IntegrityError, TargetError, UsageError
from imagefs.interfaces import Entry, EntryType, Extent, Reader, State
from tests.browse.disks import MIB, STAMP_NS, FakeFs, FileReader, file, folder, link, pattern
from tests.support.oracles import need_tool, root_only, run_tool

pytestmark = pytest.mark.usefixtures("made")

OVERWRITE = ExtractOptions(overwrite=True)


def out(fs: FakeFs, target: Path, options: ExtractOptions | None = None) -> ExtractReport:
    return extract(fs, [(fs.root(), os.fsencode(target))], options=options)


def codes(report: ExtractReport) -> list[str]:
    return [finding.code for finding in report.findings]


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]


# -- real volumes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ext4", "ext2"])
def test_a_whole_volume_comes_out_as_it_went_in(
    name: str, request: pytest.FixtureRequest, staged: Path, tmp_path: Path
) -> None:
    need_tool("diff")
    fs = open_filesystem(FileReader(request.getfixturevalue(name)))
    target = tmp_path / "out"
    report = extract(fs, [(fs.root(), os.fsencode(target))])
    words = ["diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=lost+found", staged, target]
    assert run_tool(words).stdout == b""
    assert litter(target) == []
    assert set(codes(report)) == {"left-out"}
    files = [path for path in staged.rglob("*") if path.is_file() and not path.is_symlink()]
    assert (report.files, report.symlinks) == (len(files), 3)
    assert os.stat(target / "sparse").st_blocks * 512 < MIB


def test_modes_and_times_are_kept_to_the_nanosecond(tmp_path: Path) -> None:
    entry = file(b"/f", mode=0o4751, mtime_ns=STAMP_NS, atime_ns=STAMP_NS + 7)
    inside = folder(b"/d", "5", mode=0o2550, mtime_ns=STAMP_NS - 5)
    fs = FakeFs({b"/": [entry, inside], b"/d": [file(b"/d/x", mtime_ns=STAMP_NS)]})
    report = out(fs, tmp_path / "out")
    assert report.findings == []
    info = os.stat(tmp_path / "out" / "f")
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o751, STAMP_NS)
    assert info.st_atime_ns == STAMP_NS + 7
    info = os.stat(tmp_path / "out" / "d")
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o550, STAMP_NS - 5)
    os.chmod(tmp_path / "out" / "d", 0o750)


@root_only
def test_owners_bits_and_devices_on_demand(ext4: Path, tmp_path: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    report = extract(fs, [(fs.root(), os.fsencode(tmp_path / "out"))], options=ExtractOptions(owners=True))
    assert report.findings == []
    for name in ("block", "char", "fifo", "a.txt", "d"):
        entry, info = fs.lookup(b"/" + name.encode()), os.lstat(tmp_path / "out" / name)
        assert stat.S_IMODE(info.st_mode) == entry.mode
        assert (info.st_uid, info.st_gid) == (entry.uid, entry.gid)
        assert info.st_mtime_ns == entry.mtime_ns
    assert stat.S_ISBLK(os.lstat(tmp_path / "out" / "block").st_mode)
    assert os.lstat(tmp_path / "out" / "block").st_rdev == os.makedev(8, 17)
    assert stat.S_ISCHR(os.lstat(tmp_path / "out" / "char").st_mode)
    assert stat.S_ISFIFO(os.lstat(tmp_path / "out" / "fifo").st_mode)


def test_setuid_is_not_given_to_the_wrong_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(filewriter, "_ENOUGH", 1000)
    monkeypatch.setattr(os, "fchown", refuse)
    fs = FakeFs({b"/": [file(b"/su", mode=0o4755, uid=12345)]})
    report = out(fs, tmp_path / "out", ExtractOptions(owners=True))
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "su").st_mode) == 0o755
    assert set(codes(report)) == {"owner"}


# -- nothing outside the target --------------------------------------------------------------------


def test_a_symlink_from_the_image_never_redirects_what_follows(tmp_path: Path) -> None:
    """``a -> /outside``, then a directory of the same name with a file in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    fs = FakeFs(
        {b"/": [link(b"/a"), folder(b"/a", "7"), file(b"/b")], b"/a": [file(b"/a/file")]},
        links={b"/a": os.fsencode(outside)},
    )
    report = out(fs, tmp_path / "out")
    assert list(outside.iterdir()) == []
    assert os.readlink(tmp_path / "out" / "a") == str(outside)
    assert (tmp_path / "out" / "a~7" / "file").is_file()
    assert (tmp_path / "out" / "b").exists(), "the rest goes on"
    assert codes(report) == ["renamed"]


def test_a_symlink_that_lies_there_already_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    os.symlink(outside, tmp_path / "out" / "a")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, tmp_path / "out" / "b")
    fs = FakeFs({b"/": [folder(b"/a", "7"), file(b"/b")], b"/a": [file(b"/a/file")]})
    for options in (None, OVERWRITE):
        report = out(fs, tmp_path / "out", options)
        assert list(outside.iterdir()) == []
        assert victim.read_text() == "mine"
        assert "exists" in codes(report)
    assert not (tmp_path / "out" / "b").is_symlink(), "overwriting replaces the link itself"


HOSTILE = [b"..", b".", b"", b"a\0b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    tree = {
        b"/": [folder(b"/d", "3"), file(b"/ok")],
        b"/d": [file(b"/d/" + name), folder(b"/d/" + name, "5")],
    }
    report = out(FakeFs(tree), tmp_path / "room" / "out")
    assert codes(report) == ["name", "name"]
    assert (tmp_path / "room" / "out" / "ok").exists()
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["out"]


def test_only_the_last_part_of_a_path_counts(tmp_path: Path) -> None:
    """An entry that lies about where it is still lands where its directory is."""
    fs = FakeFs({b"/": [folder(b"/d", "3")], b"/d": [file(b"/../../../etc/evil")]})
    out(fs, tmp_path / "out")
    assert (tmp_path / "out" / "d" / "evil").exists()


@given(st.binary(min_size=1, max_size=30))
def test_any_name_stays_inside(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    room = tmp_path_factory.mktemp("any")
    fs = FakeFs({b"/": [file(b"/" + name), folder(b"/" + name, "4")]})
    report = out(fs, room / "out")
    assert os.listdir(room) == ["out"]
    made = os.listdir(os.fsencode(room / "out"))
    refused = [finding for finding in report.findings if finding.code == "name"]
    assert len(made) + len(refused) == 2


def test_names_too_long_for_the_target_are_cut(tmp_path: Path) -> None:
    names = [b"n" * 255, b"m" * 256, b"m" * 400 + b".txt", b"ok"]
    fs = FakeFs({b"/": [file(b"/" + name, str(inode)) for inode, name in enumerate(names)]})
    report = out(fs, tmp_path / "out")
    made = sorted(os.listdir(tmp_path / "out"))
    assert made == ["m" * 253 + "~1", "m" * 249 + "~2.txt", "n" * 255, "ok"]
    assert codes(report) == ["renamed"] * 2
    assert litter(tmp_path) == []


def test_a_loop_is_left_out(tmp_path: Path) -> None:
    class Loop(FakeFs):
        def children(self, entry: Entry, /):  # type: ignore[no-untyped-def]
            yield folder(entry.path.rstrip(b"/") + b"/self", "3")

    report = out(Loop({}), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "self"]
    assert "loop" in report.findings[0].message


# -- nothing overwritten ---------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_text("mine")
    (tmp_path / "out" / "g").mkdir()
    fs = FakeFs({b"/": [file(b"/f"), file(b"/g"), link(b"/l"), file(b"/new")]}, links={b"/l": b"x"})
    os.symlink("mine", tmp_path / "out" / "l")
    report = out(fs, tmp_path / "out")
    assert codes(report) == ["exists"] * 3
    assert (tmp_path / "out" / "f").read_text() == "mine"
    assert os.readlink(tmp_path / "out" / "l") == "mine"
    assert (tmp_path / "out" / "new").exists()
    report = out(fs, tmp_path / "out", OVERWRITE)
    assert (tmp_path / "out" / "f").read_bytes() == b"/f"
    assert os.readlink(tmp_path / "out" / "l") == "x"
    assert codes(report) == ["target"], "a folder is never replaced by a file"
    assert litter(tmp_path) == []


def test_an_existing_folder_is_gone_into_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out" / "d").mkdir(parents=True, mode=0o700)
    (tmp_path / "out" / "d" / "mine").touch()
    os.utime(tmp_path / "out" / "d", ns=(5, 5))
    fs = FakeFs({b"/": [folder(b"/d", "3", mode=0o755, mtime_ns=1)], b"/d": [file(b"/d/x")]})
    report = out(fs, tmp_path / "out")
    assert report.findings == []
    assert sorted(path.name for path in (tmp_path / "out" / "d").iterdir()) == ["mine", "x"]
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "d").st_mode) == 0o700


def test_names_that_differ_in_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a target without case the second gets a name of its own, whatever was asked for."""
    fs = FakeFs({b"/": [file(b"/readme"), file(b"/README", "7")]})
    assert out(fs, tmp_path / "cased").findings == []
    assert len(os.listdir(tmp_path / "cased")) == 2
    real = place_module.Folder.status

    def status(self: place_module.Folder, name: bytes) -> os.stat_result | None:
        return real(self, name) or real(self, name.lower())

    monkeypatch.setattr(place_module.Folder, "status", status)
    for options in (None, OVERWRITE):
        target = tmp_path / f"caseless{options is None}"
        report = out(fs, target, options)
        assert codes(report) == ["renamed"]
        assert (target / "readme").read_bytes() == b"/readme"
        assert (target / "README~7").read_bytes() == b"/README"


def test_a_target_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fs = FakeFs({b"/": [file(b"/f"), link(b"/l")]}, links={b"/l": b"t"})
    assert out(fs, tmp_path / "out").findings == []
    assert (tmp_path / "out" / "f").read_bytes() == b"/f"
    assert codes(out(fs, tmp_path / "out")) == ["exists", "exists"]
    assert litter(tmp_path) == []


def test_an_old_partial_file_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".f.partial").write_text("from a run that was killed")
    assert out(FakeFs({b"/": [file(b"/f")]}), tmp_path / "out").findings == []
    assert (tmp_path / "out" / "f").read_bytes() == b"/f"
    assert (tmp_path / "out" / ".f.partial").read_text() == "from a run that was killed"


# -- damage ----------------------------------------------------------------------------------------


class Failing(BytesReader):
    """Readable up to ``good`` bytes."""

    def __init__(self, data: bytes, good: int, error: BaseException) -> None:
        super().__init__(data)
        self._good = good
        self._error = error

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset + length > self._good:
            raise self._error
        return super().read_at(offset, length)


@pytest.mark.parametrize(
    ("error", "code"),
    [(BrowseError("bad"), "browse"), (IntegrityError("bad", chunk=3), "integrity")],
)
def test_a_damaged_file_leaves_nothing_and_the_rest_goes_on(
    error: Exception, code: str, tmp_path: Path
) -> None:
    fs = FakeFs(
        {b"/": [file(b"/bad"), file(b"/good")]},
        content={b"/bad": Failing(pattern(3 * MIB), 2 * MIB, error)},
    )
    report = out(fs, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["good"]
    assert [(f.severity, f.code, f.files) for f in report.findings] == [("error", code, ("/bad",))]


def test_a_damaged_file_does_not_replace_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bad").write_text("an older one, but whole")
    fs = FakeFs({b"/": [file(b"/bad")]}, content={b"/bad": Failing(b"x" * 99, 5, BrowseError("bad"))})
    assert codes(out(fs, tmp_path / "out", OVERWRITE)) == ["browse"]
    assert (tmp_path / "out" / "bad").read_text() == "an older one, but whole"


def test_an_interrupt_leaves_no_litter(tmp_path: Path) -> None:
    fs = FakeFs(
        {b"/": [file(b"/f")]}, content={b"/f": Failing(pattern(3 * MIB), 2 * MIB, KeyboardInterrupt())}
    )
    with pytest.raises(KeyboardInterrupt):
        out(fs, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_damaged_directory_gives_what_it_can(tmp_path: Path) -> None:
    fs = FakeFs({b"/": [folder(b"/d", "3")], b"/d": [file(b"/d/kept")]}, damaged={b"/d"})
    report = out(fs, tmp_path / "out")
    assert (tmp_path / "out" / "d" / "kept").exists()
    assert codes(report) == ["browse"]


def test_what_the_source_could_not_read_is_reported(tmp_path: Path) -> None:
    class Patchy(BytesReader):
        def extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]
            yield Extent(State.STORED, 0, 4096)
            yield Extent(State.UNREADABLE, 4096, 512)
            yield Extent(State.STORED, 4608, 3584)

    fs = FakeFs({b"/": [file(b"/f")]}, content={b"/f": Patchy(pattern(8192))})
    report = out(fs, tmp_path / "out")
    assert [(f.code, f.severity, f.offset, f.length) for f in report.findings] == [
        ("unreadable", "warning", 4096, 512)
    ]
    data = bytearray(pattern(8192))
    data[4096:4608] = bytes(512)
    assert (tmp_path / "out" / "f").read_bytes() == bytes(data)


# -- room ------------------------------------------------------------------------------------------


def with_content(reader: Reader) -> FakeFs:
    return FakeFs({b"/": [file(b"/f")]}, content={b"/f": reader})


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(place_module.Folder, "free_bytes", lambda self: free)


def test_a_file_that_does_not_fit_is_a_target_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, 1000)
    with pytest.raises(TargetError, match="needs 5000 bytes"):
        out(with_content(BytesReader(pattern(5000))), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_holes_need_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, 1000)
    reader = MappedReader(BytesReader(b"x"), 1 << 30, [Piece(0, 1 << 30, None)], label="/f")
    assert out(with_content(reader), tmp_path / "out").findings == []
    info = os.stat(tmp_path / "out" / "f")
    assert (info.st_size, info.st_blocks) == (1 << 30, 0)


def test_a_hostile_size_is_the_files_fault(tmp_path: Path) -> None:
    """A size of 2^60 with nothing behind it must not end the extraction of the others."""
    reader = MappedReader(BytesReader(b"x"), 1 << 60, [Piece(0, 1 << 60, 0)], label="/f")
    report = out(with_content(reader), tmp_path / "out")
    assert codes(report) == ["browse"]
    assert os.listdir(tmp_path / "out") == []


def test_a_full_target_ends_the_run_without_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filewriter, "_ENOUGH", 1000)
    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(TargetError, match="No space left"):
        out(with_content(BytesReader(b"data")), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_missing_folder_is_a_target_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nowhere"):
        extract(FakeFs({}), [(file(b"/f"), os.fsencode(tmp_path / "nowhere" / "f"))])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=6))
def test_zeros_become_holes_and_nothing_else_changes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bool, int]]
) -> None:
    data = b"".join(pattern(length) if full else bytes(length) for full, length in parts)
    target = tmp_path_factory.mktemp("holes")
    report = extract(with_content(BytesReader(data)), [(file(b"/f"), os.fsencode(target / "f"))])
    assert (target / "f").read_bytes() == data
    assert (report.files, report.bytes, report.findings) == (1, len(data), [])


def test_progress_hears_of_every_byte(tmp_path: Path) -> None:
    class Ears:
        total: int | None = 0
        heard = 0

        def start(self, label: str, total: int | None, /) -> None:
            self.total = total

        def advance(self, count: int, /) -> None:
            self.heard += count

        def note(self, message: str, /) -> None:
            pass

    ears = Ears()
    fs = FakeFs({}, content={b"/f": BytesReader(pattern(3 * MIB + 5))})
    entry = Entry(b"/f", EntryType.FILE, 3 * MIB + 5, "1", mode=0o600)
    extract(fs, [(entry, os.fsencode(tmp_path / "f"))], progress=ears)
    assert ears.total == ears.heard == 3 * MIB + 5


# -- where things go -------------------------------------------------------------------------------


def test_into_a_folder() -> None:
    assert plan_targets([b"/p2/etc/fstab", b"/p1/d/"], b"out", is_dir=True) == [b"out/fstab", b"out/d"]
    assert plan_targets([b"/p2"], b".", is_dir=True) == [b"./p2"]


def test_under_a_new_name() -> None:
    assert plan_targets([b"/p2/etc/fstab"], b"here", is_dir=False) == [b"here"]


REFUSED: list[Callable[[], object]] = [
    lambda: plan_targets([b"/p2/a"], b"/p2/b", is_dir=False),  # DEST forgotten
    lambda: plan_targets([b"/p2/a", b"/p2/b"], b"new", is_dir=False),
    lambda: plan_targets([b"/p2/a"], b"new/", is_dir=False),
    lambda: plan_targets([b"/p2/a"], b"", is_dir=False),
    lambda: plan_targets([b"/p2/x/a", b"/p2/y/a"], b"out", is_dir=True),
    lambda: plan_targets([b"/"], b"out", is_dir=True),
    lambda: plan_targets([b"/p2/a/.."], b"out", is_dir=True),
]


@pytest.mark.parametrize("call", REFUSED)
def test_what_makes_no_sense_is_a_usage_error(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.hint


def test_the_forgotten_dest_is_named() -> None:
    with pytest.raises(UsageError, match="DEST is missing"):
        plan_targets([b"/p2/a"], b"/p2/b", is_dir=False)
    assert plan_targets([b"/p2/a"], b"/p2", is_dir=True) == [b"/p2/a"], "a real folder of that name"
