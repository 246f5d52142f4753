"""Taking files out, beyond the plain copy: resumed, recorded, read back, linked, with attributes and streams."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.views import BytesReader
from imagefs.browse import filewriter
from imagefs.browse.extract import extract
from imagefs.browse.manifest import Manifest, line_of, parse_line
from imagefs.browse.opening import open_filesystem
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.errors import BrowseError, TargetError
from imagefs.interfaces import Entry, Extent, Reader, State, Stream
from tests.browse.disks import MIB, STAMP_NS, FakeFs, FileReader, file, folder, link, make_ext, pattern
from tests.support.oracles import ToolError, need_tool, root_only, run_tool

pytestmark = pytest.mark.usefixtures("made")

RESUME = ExtractOptions(resume=True)


def out(
    fs: FakeFs, target: Path, options: ExtractOptions | None = None, manifest: Manifest | None = None
) -> ExtractReport:
    return extract(fs, [(fs.root(), os.fsencode(target))], options=options, manifest=manifest)


def codes(report: ExtractReport) -> list[str]:
    return [finding.code for finding in report.findings]


def stamped(path: bytes, inode: str = "9", **more: object) -> Entry:
    return file(path, inode, mtime_ns=STAMP_NS, **more)


class Rich(FakeFs):
    """A FakeFs with attributes and streams, by path."""

    attributes: ClassVar[dict[bytes, dict[bytes, bytes]]] = {}
    named: ClassVar[dict[bytes, dict[bytes, bytes]]] = {}

    def xattrs(self, entry: Entry, /) -> dict[bytes, bytes]:
        return self.attributes.get(entry.path, {})

    def streams(self, entry: Entry, /) -> list[Stream]:
        return [Stream(name, len(data)) for name, data in self.named.get(entry.path, {}).items()]

    def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
        return BytesReader(self.named[entry.path][name])


# -- resume ----------------------------------------------------------------------------------------


class Counting(FakeFs):
    """Counts what is opened, and dies at the file named ``last``."""

    opened: list[bytes]
    last = b""

    def open(self, entry: Entry, /) -> Reader:
        if entry.path == self.last:
            raise KeyboardInterrupt
        self.opened.append(entry.path)
        return super().open(entry)


def counting(last: bytes = b"") -> Counting:
    tree = {
        b"/": [
            stamped(b"/a"),
            folder(b"/d", "3", mode=0o750, mtime_ns=STAMP_NS),
            link(b"/l"),
            stamped(b"/z"),
        ],
        b"/d": [stamped(b"/d/b"), stamped(b"/d/c"), stamped(b"/d/e")],
    }
    fs = Counting(tree, links={b"/l": b"a"})
    fs.opened, fs.last = [], last
    return fs


def test_a_run_that_ended_early_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        out(counting(b"/d/c"), tmp_path / "out")
    fs = counting()
    report = out(fs, tmp_path / "out", RESUME)
    assert fs.opened == [b"/d/c", b"/d/e", b"/z"]
    assert (report.files, report.kept, report.findings) == (5, 2, [])
    info = os.stat(tmp_path / "out" / "d")
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o750, STAMP_NS)
    again = counting()
    report = out(again, tmp_path / "out", RESUME)
    assert (again.opened, report.kept, report.symlinks, report.findings) == ([], 6, 1, [])


def test_what_differs_is_not_ours(tmp_path: Path) -> None:
    out(counting(), tmp_path / "out")
    (tmp_path / "out" / "a").write_text("mine, longer")
    os.utime(tmp_path / "out" / "d" / "b", ns=(5, 5))
    report = out(counting(), tmp_path / "out", RESUME)
    assert codes(report) == ["exists", "exists"]
    assert (tmp_path / "out" / "a").read_text() == "mine, longer"


def test_a_file_cut_off_by_a_crash_is_copied_again(tmp_path: Path) -> None:
    out(counting(), tmp_path / "out")
    with (tmp_path / "out" / "z").open("r+b") as stream:
        stream.truncate(1)
    os.utime(tmp_path / "out" / "z", ns=(STAMP_NS, STAMP_NS))
    fs = counting()
    assert out(fs, tmp_path / "out", RESUME).findings == []
    assert fs.opened == [b"/z"]
    assert (tmp_path / "out" / "z").read_bytes() == b"/z"


def test_files_without_a_time_are_compared(tmp_path: Path) -> None:
    fs = FakeFs({b"/": [file(b"/same"), file(b"/other")]})
    out(fs, tmp_path / "out")
    (tmp_path / "out" / "other").write_bytes(b"/othxx")
    report = out(fs, tmp_path / "out", RESUME)
    assert (report.kept, codes(report)) == (1, ["exists"])


def test_what_a_killed_run_left_beside_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.browse.place._makes_unnamed", lambda fd: False)
    out(counting(), tmp_path / "out")
    (tmp_path / "out" / "z").unlink()
    (tmp_path / "out" / ".z.imagefs.partial").write_bytes(b"/")
    assert out(counting(), tmp_path / "out", RESUME).findings == []
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "d", "l", "z"]


@pytest.mark.parametrize("grain", [100, 10**7, 2 * 10**9])
def test_targets_with_coarse_times(grain: int) -> None:
    assert filewriter.same_time(STAMP_NS - STAMP_NS % grain, STAMP_NS)
    assert not filewriter.same_time(STAMP_NS - STAMP_NS % grain + 1, STAMP_NS)


def test_the_manifest_decides_what_is_the_same(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "m")
    manifest = Manifest(path, overwrite=False, resume=False)
    with pytest.raises(KeyboardInterrupt):
        out(counting(b"/d/e"), tmp_path / "out", manifest=manifest)
    manifest.keep()
    assert not (tmp_path / "m").exists()
    (tmp_path / "out" / "d" / "b").write_bytes(b"rott")  # same size, same time, other bytes
    os.utime(tmp_path / "out" / "d" / "b", ns=(STAMP_NS, STAMP_NS))
    with (tmp_path / "m.partial").open("ab") as stream:
        stream.write(b"0123")  # a line that was cut off
    fs = counting()
    manifest = Manifest(path, overwrite=False, resume=True)
    report = out(fs, tmp_path / "out", RESUME, manifest)
    manifest.commit()
    assert fs.opened == [b"/d/b", b"/d/e", b"/z"]
    assert report.findings == []
    assert run_tool(["sha256sum", "--strict", "-c", tmp_path / "m"]).stdout.count(b": OK\n") == 5
    assert not (tmp_path / "m.partial").exists()


# -- manifests -------------------------------------------------------------------------------------

ODD = [
    b"plain",
    b"new\nline",
    b"back\\slash",
    b"cr\r",
    b"-",
    b" lead",
    b"trail ",
    b") = (",
    b"\xff\xfe",
    b"\\\\n",
]


@pytest.mark.parametrize("algorithms", [("sha256",), ("md5",), ("sha1",), ("md5", "sha1", "sha256")])
def test_coreutils_accept_it(
    algorithms: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_tool("sha256sum", "md5sum", "sha1sum", "cksum")
    fs = FakeFs({b"/": [file(b"/" + name, str(at)) for at, name in enumerate(ODD)]})
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    manifest = Manifest(b"m", algorithms, overwrite=False, resume=False)
    jobs = [(entry, b"in/" + entry.name) for entry in fs.tree[b"/"]]
    extract(fs, jobs, manifest=manifest)
    manifest.commit()
    for name in algorithms:
        assert run_tool([f"{name}sum", "-c", "m"]).stdout.count(b": OK\n") == len(ODD)
    program = "cksum" if len(algorithms) > 1 else f"{algorithms[0]}sum"
    assert run_tool([program, "--strict", "-c", "m"]).stdout.count(b": OK\n") == len(ODD) * len(algorithms)
    Path("in/plain").write_text("changed")
    with pytest.raises(ToolError, match="did NOT match"):
        run_tool([f"{algorithms[0]}sum", "-c", "m"])


@pytest.mark.parametrize("tag", [[], ["--tag"]])
def test_lines_are_those_of_coreutils(tag: list[str], tmp_path: Path) -> None:
    names = [name for name in ODD if name != b"-"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    told = run_tool(["sha256sum", *tag, "--", *[os.fsdecode(name) for name in names]], cwd=tmp_path).stdout
    ours = b"".join(
        line_of(name, "sha256", hashlib.sha256(name).hexdigest(), tagged=bool(tag)) for name in names
    )
    assert ours == told


@given(
    st.binary(min_size=1).filter(lambda name: b"\0" not in name),
    st.sampled_from(["md5", "sha256"]),
    st.booleans(),
)
def test_a_line_says_what_was_meant(name: bytes, algorithm: str, tagged: bool) -> None:
    digest = hashlib.new(algorithm, name).hexdigest()
    line = line_of(name, algorithm, digest, tagged=tagged)
    assert line.count(b"\n") == 1
    assert parse_line(line[:-1]) == (b"./-" if name == b"-" else name, algorithm, digest)


def test_a_file_named_as_standard_input_is_known_again(tmp_path: Path) -> None:
    for resume in (False, True):
        manifest = Manifest(os.fsencode(tmp_path / "m"), overwrite=False, resume=resume)
        assert manifest.known(b"-") == manifest.known(b"./-") == (["00" * 32] if resume else None)
        manifest.add(b"-", ["00" * 32])
        manifest.commit()


@given(st.binary())
def test_any_line_is_borne(line: bytes) -> None:
    parsed = parse_line(line)
    assert parsed is None or isinstance(parsed[0], bytes)


def test_an_existing_manifest_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(TargetError, match="exists already"):
        Manifest(os.fsencode(tmp_path / "m"), overwrite=False, resume=False)
    assert os.listdir(tmp_path) == ["m"]


def test_a_manifest_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be written"):
        Manifest(os.fsencode(tmp_path / "no" / "m"), overwrite=False, resume=False)


class Parts(BytesReader):
    """Data and holes by turns, told as extents."""

    def __init__(self, parts: list[tuple[bool, int]]) -> None:
        super().__init__(b"".join(pattern(length) if full else bytes(length) for full, length in parts))
        self._parts = parts

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        at = 0
        for full, size in self._parts:
            yield Extent(State.STORED if full else State.ZERO, at, size)
            at += size


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=5))
def test_digests_are_over_holes_too(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bool, int]]
) -> None:
    reader = Parts(parts)
    data = reader.read_at(0, reader.size)
    room = tmp_path_factory.mktemp("digest")
    fs = FakeFs({}, content={b"/f": reader})
    manifest = Manifest(os.fsencode(room / "m"), overwrite=False, resume=False)
    extract(fs, [(file(b"/f"), os.fsencode(room / "f"))], manifest=manifest)
    manifest.commit()
    assert (room / "m").read_bytes().split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert (room / "f").read_bytes() == data


# -- verify ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashes", [None, ("md5", "sha1")])
def test_what_reads_back_otherwise_is_no_file(
    hashes: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = FakeFs({b"/": [file(b"/bad"), file(b"/good")]}, content={b"/bad": BytesReader(pattern(3 * MIB))})
    verify = ExtractOptions(verify=True)
    manifest = (
        Manifest(os.fsencode(tmp_path / "m"), hashes, overwrite=False, resume=False) if hashes else None
    )
    real = os.pwrite

    def flip(fd: int, data: bytes, offset: int) -> int:
        if offset == 2 * MIB:
            data = bytes([data[0] ^ 1]) + bytes(data[1:])
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    report = out(fs, tmp_path / "out", verify, manifest)
    assert codes(report) == ["verify"]
    assert os.listdir(tmp_path / "out") == ["good"]
    if manifest:
        manifest.commit()
        assert (tmp_path / "m").read_bytes().count(b"\n") == 2


def test_verify_asks_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(filewriter, "_ENOUGH", 1000)
    monkeypatch.setattr(os, "fsync", lambda fd: asked.append("fsync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: asked.append("drop"))
    out(FakeFs({b"/": [file(b"/f")]}), tmp_path / "out", ExtractOptions(verify=True))
    assert asked == ["fsync", "drop"]


def test_resume_and_verify_hold_what_is_there_against_the_image(tmp_path: Path) -> None:
    fs = FakeFs({b"/": [stamped(b"/a"), stamped(b"/b")]})
    out(fs, tmp_path / "out")
    (tmp_path / "out" / "b").write_bytes(b"/x")
    os.utime(tmp_path / "out" / "b", ns=(STAMP_NS, STAMP_NS))
    report = out(fs, tmp_path / "out", ExtractOptions(resume=True, verify=True))
    assert (report.kept, report.findings) == (1, [])
    assert (tmp_path / "out" / "b").read_bytes() == b"/b"


# -- hard links ------------------------------------------------------------------------------------


def linked() -> FakeFs:
    a, b, c = (stamped(path, "5", nlink=3)._replace(size=4) for path in (b"/a", b"/d/b", b"/d/c"))
    tree = {b"/": [a, folder(b"/d", "3")], b"/d": [b, c]}
    return FakeFs(tree, content={path: BytesReader(b"once") for path in (b"/a", b"/d/b", b"/d/c")})


def test_hard_links_on_demand(tmp_path: Path) -> None:
    report = out(linked(), tmp_path / "apart")
    assert os.stat(tmp_path / "apart" / "a").st_nlink == 1
    report = out(linked(), tmp_path / "out", ExtractOptions(hard_links=True))
    assert (report.files, report.findings) == (3, [])
    inodes = {os.stat(tmp_path / "out" / name).st_ino for name in ("a", "d/b", "d/c")}
    assert len(inodes) == 1
    again = out(linked(), tmp_path / "out", ExtractOptions(hard_links=True, resume=True))
    assert (again.files, again.findings) == (3, [])


def test_a_hard_link_never_leads_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first name is another file by the time its second is made: it is copied."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    fs = linked()
    real = fs.children

    def swapped(entry: Entry, /):  # type: ignore[no-untyped-def]
        if entry.path == b"/d":
            (tmp_path / "out" / "a").unlink()
            (tmp_path / "out" / "a").symlink_to(victim)
        yield from real(entry)

    monkeypatch.setattr(fs, "children", swapped)
    report = out(fs, tmp_path / "out", ExtractOptions(hard_links=True))
    assert (tmp_path / "out" / "d" / "b").read_text() == "once"
    assert not (tmp_path / "out" / "d" / "b").is_symlink()
    assert report.findings == []
    assert os.stat(victim).st_nlink == 1


# -- attributes and streams ------------------------------------------------------------------------


def rich() -> Rich:
    fs = Rich({b"/": [stamped(b"/f"), folder(b"/d", "3", mtime_ns=STAMP_NS)]})
    fs.attributes = {b"/f": {b"user.note": b"\0\xffx"}, b"/d": {b"user.d": b"1"}}
    fs.named = {b"/f": {b"Zone": b"[x]", b"../../evil": b"out", b"..": b"up"}, b"/d": {b"s": b"of a folder"}}
    return fs


def test_attributes_on_demand(tmp_path: Path) -> None:
    assert out(rich(), tmp_path / "plain").findings == []
    assert os.listxattr(tmp_path / "plain" / "f") == []
    assert out(rich(), tmp_path / "out", ExtractOptions(xattrs=True)).findings == []
    assert os.getxattr(tmp_path / "out" / "f", "user.note") == b"\0\xffx"
    assert os.getxattr(tmp_path / "out" / "d", "user.d") == b"1"


def test_attributes_that_the_target_refuses_are_told(tmp_path: Path) -> None:
    fs = rich()
    fs.attributes = {b"/f": {b"nonsense": b"1", b"user.kept": b"2"}}
    report = out(fs, tmp_path / "out", ExtractOptions(xattrs=True))
    assert [(finding.code, finding.severity) for finding in report.findings] == [("xattr", "warning")]
    assert os.getxattr(tmp_path / "out" / "f", "user.kept") == b"2"


def test_streams_on_demand(tmp_path: Path) -> None:
    assert out(rich(), tmp_path / "plain").findings == []
    assert sorted(os.listdir(tmp_path / "plain")) == ["d", "f"]
    report = out(rich(), tmp_path / "out", ExtractOptions(streams=True))
    assert report.findings == []
    made = sorted(os.listdir(tmp_path / "out"))
    assert made == ["d", "d:s", "f", "f:%2E%2E", "f:..%2F..%2Fevil", "f:Zone"]
    assert (tmp_path / "out" / "f:Zone").read_bytes() == b"[x]"
    assert os.stat(tmp_path / "out" / "f:Zone").st_mtime_ns == STAMP_NS
    assert sorted(os.listdir(tmp_path)) == ["out", "plain"]


def test_a_stream_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    class Locked(Rich):
        def open_stream(self, entry: Entry, name: bytes, /) -> Reader:
            raise BrowseError("it is encrypted")

    fs = Locked({b"/": [stamped(b"/f")]})
    fs.named = {b"/f": {b"s": b"1"}}
    report = out(fs, tmp_path / "out", ExtractOptions(streams=True))
    assert codes(report) == ["browse"]
    assert report.findings[0].files == ("/f:s",)
    assert os.listdir(tmp_path / "out") == ["f"]


@root_only
def test_an_ext4_with_everything(tmp_path: Path) -> None:
    """rsync's own comparison finds no difference in times, modes, owners, links."""
    need_tool("mke2fs", "rsync")
    source = tmp_path / "source" / "tree"
    (source / "d").mkdir(parents=True)
    (source / "a").write_bytes(pattern(100_000))
    os.link(source / "a", source / "d" / "a2")
    os.symlink("../a", source / "d" / "l")
    os.mkfifo(source / "fifo")
    os.chown(source / "a", 1234, 4321)
    os.chmod(source / "a", 0o4755)
    os.utime(source / "a", ns=(STAMP_NS, STAMP_NS))
    fs = open_filesystem(FileReader(make_ext(tmp_path / "ext4", source.parent, "-I", "256")))
    target = tmp_path / "out"
    report = extract(
        fs, [(fs.lookup(b"/tree"), os.fsencode(target))], options=ExtractOptions(owners=True, hard_links=True)
    )
    assert report.findings == []
    words = ["rsync", "-aHAin", "--checksum", "--delete", f"{source}/", f"{target}/"]
    assert run_tool(words).stdout == b""


# -- names that the target cannot hold -------------------------------------------------------------


def test_a_windows_target(tmp_path: Path) -> None:
    names = [
        b"CON",
        b"nul.txt",
        b"COM1.tar.gz",
        b"console",
        b"a:b",
        b"dot.",
        b"sp ",
        b'q?*|<>"\\',
        b"\x01",
        b"\xff",
    ]
    names += ["ö".encode() * 255, "ö".encode() * 256, b"Same", b"same"]
    fs = FakeFs({b"/": [file(b"/" + name, str(at)) for at, name in enumerate(names)]})
    report = out(fs, tmp_path / "out", ExtractOptions(windows_names=True))
    made = set(os.listdir(tmp_path / "out"))
    expected = {"%43ON", "%6Eul.txt", "%43OM1.tar.gz", "console", "a%3Ab", "dot%2E", "sp%20"}
    expected |= {"q%3F%2A%7C%3C%3E%22%5C", "%01", "%FF", "Same", "same"}
    assert expected <= made
    assert all(len(name.encode()) <= 255 and len(name) <= 255 for name in made)
    assert len(made) == len(names)
    assert set(codes(report)) == {"renamed"}
    assert {finding.severity for finding in report.findings} == {"note"}


@given(st.binary(min_size=1, max_size=300).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_any_name_fits(name: bytes) -> None:
    from imagefs.browse.targetnames import NameRules

    for rules in (NameRules(), NameRules(windows=True), NameRules(limit=143)):
        for made in (rules.fit(name, "12-128-1"), rules.distinct(name, "12-128-1")):
            assert 0 < len(made) <= rules.limit
            assert b"/" not in made
            assert b"\0" not in made
    windows = NameRules(windows=True).fit(name, "5")
    text = windows.decode()  # always valid
    assert not set(text) & set('<>:"/\\|?*')
    assert text[-1] not in ". "
    assert NameRules(windows=True).fit(windows, "5") == windows


def test_findings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.browse.taking.MAX_FINDINGS", 3)
    report = out(FakeFs({b"/": [file(b"/..", str(at)) for at in range(10)]}), tmp_path / "out")
    assert (len(report.findings), report.dropped) == (3, 7)
