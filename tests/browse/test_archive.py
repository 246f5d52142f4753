"""tar and zip: unpacked by programs we did not write, whole or not at all, and nothing to climb out with."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.block.views import BytesReader
from imagefs.browse.archive import archive
from imagefs.browse.manifest import Manifest
from imagefs.browse.opening import open_filesystem
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.browse.tarzip import archive_writer
from imagefs.errors import BrowseError, TargetError
from imagefs.interfaces import Entry, EntryType, Extent, FileSystem, State
from tests.browse.disks import MIB, STAMP_NS, FakeFs, FileReader, file, folder, link, make_ext, pattern
from tests.browse.test_extract import Failing
from tests.browse.test_taking import Rich, codes, linked, stamped
from tests.support.oracles import need_tool, root_only, run_tool


def packed(
    fs: FileSystem, kind: str, options: ExtractOptions | None = None, manifest: Manifest | None = None
) -> tuple[bytes, ExtractReport]:
    out = io.BytesIO()
    with archive_writer(kind, out.write) as writer:
        report = archive(fs, [(fs.root(), b"top")], writer, options=options, manifest=manifest)
    return out.getvalue(), report


def tar_names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def unpack_tar(data: bytes, room: Path, *words: str, tool: str = "tar") -> Path:
    need_tool(tool)
    (room / "t.tar").write_bytes(data)
    target = room / tool
    target.mkdir()
    run_tool([tool, "-C", target, *words, "-xpf", room / "t.tar"])
    return target / "top"


# -- tar -------------------------------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_a_tree_through_tar_is_the_tree(tool: str, staged: Path, tmp_path: Path) -> None:
    """GNU tar and bsdtar make of it what rsync cannot tell from the source: times, modes, owners, links, holes."""
    need_tool("rsync")
    fs = open_filesystem(FileReader(make_ext(tmp_path / "ext4", staged, "-I", "256")))
    data, report = packed(fs, "tar")
    assert report.findings == []
    target = unpack_tar(data, tmp_path, "--numeric-owner", tool=tool)
    words = ["rsync", "-aHin", "--checksum", "--delete", "--exclude=lost+found", f"{staged}/", f"{target}/"]
    assert [line for line in run_tool(words).stdout.splitlines() if not line.endswith(b" ./")] == []
    assert os.stat(target / "sparse").st_blocks * 512 < MIB


def test_devices_and_owners_are_in_a_tar(ext4: Path) -> None:
    fs = open_filesystem(FileReader(ext4))
    data, _ = packed(fs, "tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for name in ("block", "char", "fifo", "a.txt"):
            entry, member = fs.lookup(b"/" + name.encode()), tar.getmember(f"top/{name}")
            assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
        assert (tar.getmember("top/block").devmajor, tar.getmember("top/block").devminor) == (8, 17)
        assert tar.getmember("top/char").ischr()
        assert tar.getmember("top/fifo").isfifo()


def test_attributes_come_through_gnu_tar(tmp_path: Path) -> None:
    need_tool("tar")
    fs = Rich({b"/": [stamped(b"/f"), folder(b"/d", "3")]})
    fs.attributes = {b"/f": {b"user.bin": b"\0\xff=\n", b"user.bad=name": b"1"}, b"/d": {b"user.d": b"x"}}
    data, report = packed(fs, "tar", ExtractOptions(xattrs=True))
    assert [(finding.code, finding.severity) for finding in report.findings] == [("xattr", "warning")]
    target = unpack_tar(data, tmp_path, "--xattrs", "--xattrs-include=*")
    assert os.getxattr(target / "d", "user.d") == b"x"
    assert os.getxattr(target / "f", "user.bin") == b"\0\xff=\n"
    assert os.stat(target / "f").st_mtime_ns == STAMP_NS


def test_hard_links_are_always_kept_in_a_tar(tmp_path: Path) -> None:
    data, report = packed(linked(), "tar")
    assert report.files == 3
    target = unpack_tar(data, tmp_path)
    assert len({os.stat(target / name).st_ino for name in ("a", "d/b", "d/c")}) == 1


class Holey(BytesReader):
    """4 MiB of which the third holds data; ``tail`` makes it the last."""

    def __init__(self, *, tail: bool) -> None:
        super().__init__(
            bytes(3 * MIB) + pattern(MIB) if tail else bytes(2 * MIB) + pattern(MIB) + bytes(MIB)
        )
        self._at = 3 * MIB if tail else 2 * MIB

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(State.ZERO, 0, self._at)
        yield Extent(State.STORED, self._at, MIB)
        if self._at + MIB < self.size:
            yield Extent(State.ZERO, self._at + MIB, MIB)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_holes_cost_nothing_in_a_tar(tool: str, tail: bool, tmp_path: Path) -> None:
    reader = Holey(tail=tail)
    expected = reader.read_at(0, 4 * MIB)
    data, report = packed(FakeFs({b"/": [file(b"/holes")]}, content={b"/holes": reader}), "tar")
    assert len(data) < 1.1 * MIB
    assert report.bytes == 4 * MIB
    assert (unpack_tar(data, tmp_path, tool=tool) / "holes").read_bytes() == expected


def test_odd_names_and_times_in_a_tar(tmp_path: Path) -> None:
    names = [b"\xff\xfe", "Ω".encode() * 100, b"new\nline", b"n" * 255, b"back\\slash", b"-"]
    entries = [file(b"/" + name, str(at), mtime_ns=-86_400_500_000_000) for at, name in enumerate(names)]
    entries.append(file(b"/late", mtime_ns=20_000_000_000 * 10**9 + 5))
    data, report = packed(FakeFs({b"/": entries}), "tar")
    assert report.findings == []
    target = unpack_tar(data, tmp_path)
    assert {*os.listdir(os.fsencode(target))} == {*names, b"late"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmember("top/-").pax_headers["mtime"] == "-86400.500000000"
        assert tar.getmember("top/late").pax_headers["mtime"] == "20000000000.000000005"


def test_the_manifest_of_a_tar(tmp_path: Path) -> None:
    need_tool("sha256sum")
    fs = FakeFs({b"/": [file(b"/holes"), file(b"/big"), file(b"/a")]})
    fs.content = {b"/holes": Holey(tail=False), b"/big": BytesReader(pattern(20 * MIB))}
    with Manifest(os.fsencode(tmp_path / "m"), overwrite=False, resume=False) as manifest:
        data, _ = packed(fs, "tar", manifest=manifest)
    target = unpack_tar(data, tmp_path)
    done = run_tool(["sha256sum", "--strict", "-c", tmp_path / "m"], cwd=target.parent)
    assert done.stdout.count(b": OK\n") == 3


# -- zip -------------------------------------------------------------------------------------------


def test_a_tree_through_zip(staged: Path, tmp_path: Path) -> None:
    need_tool("unzip")
    fs = open_filesystem(FileReader(make_ext(tmp_path / "ext4", staged, "-I", "256")))
    data, report = packed(fs, "zip")
    assert sorted(codes(report)) == ["left-out", "renamed"]  # the pipe; a name that is no UTF-8
    (tmp_path / "t.zip").write_bytes(data)
    run_tool(["unzip", "-q", "-d", tmp_path, tmp_path / "t.zip"])
    target = tmp_path / "top"
    assert (target / "rnd").read_bytes() == (staged / "rnd").read_bytes()
    assert os.readlink(target / "longlink") == "x" * 200
    info, wanted = os.stat(target / "a.txt"), os.stat(staged / "a.txt")
    assert (
        stat.S_IMODE(info.st_mode) == stat.S_IMODE(wanted.st_mode) & 0o777 or info.st_mode == wanted.st_mode
    )
    assert int(info.st_mtime) == STAMP_NS // 10**9
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        assert {"top/caf%E9", "top/new\nline", "top/d/", "top/d/hard"} <= {*found.namelist()}


def test_names_in_a_zip(tmp_path: Path) -> None:
    names = [b"..\\..\\evil", "Größe".encode(), b"\xff", b"C:x"]
    data, report = packed(
        FakeFs({b"/": [file(b"/" + name, str(at)) for at, name in enumerate(names)]}), "zip"
    )
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.namelist() == ["top/", "top/..%5C..%5Cevil", "top/Größe", "top/%FF", "top/C:x"]
    assert codes(report) == ["renamed", "renamed"]


def test_sizes_of_more_than_four_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limits lowered, so that nobody writes gigabytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    data, _ = packed(FakeFs({b"/": [file(b"/f")]}, content={b"/f": BytesReader(pattern(100_000))}), "zip")
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.read("top/f") == pattern(100_000)
        assert found.getinfo("top/f").extract_version >= 45


# -- damage and hostility --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3 * MIB, 20 * MIB])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_damaged_file_is_not_in_it_and_the_rest_is(kind: str, size: int) -> None:
    reader = Failing(pattern(size), size - MIB, BrowseError("bad"))
    fs = FakeFs({b"/": [file(b"/bad"), file(b"/good")]}, content={b"/bad": reader})
    data, report = packed(fs, kind)
    assert codes(report) == ["browse"]
    if kind == "tar":
        assert tar_names(data) == ["top", "top/good"]
    else:
        assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["top/", "top/good"]


class Once(BytesReader):
    """Can be read whole once."""

    reads = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        if self.reads > 25:
            raise BrowseError("it went bad")
        return super().read_at(offset, length)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_breaks_off_has_no_end(kind: str) -> None:
    fs = FakeFs({b"/": [file(b"/f")]}, content={b"/f": Once(pattern(20 * MIB))})
    out = io.BytesIO()
    with pytest.raises(TargetError, match="ends within '/f'"), archive_writer(kind, out.write) as writer:
        archive(fs, [(fs.root(), b"top")], writer)
    del writer
    data = out.getvalue()
    if kind == "tar":
        assert not data.endswith(bytes(1024))
    else:
        with pytest.raises(zipfile.BadZipFile):
            zipfile.ZipFile(io.BytesIO(data))


def test_a_pipe_that_nobody_reads() -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TargetError, match="No space left"), archive_writer("tar", full) as writer:
        archive(FakeFs({}), [(file(b"/f"), b"f")], writer)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", [b"..", b".", b"", b"a\0b", b"a/../../b"])
def test_no_name_leads_out(kind: str, name: bytes) -> None:
    bad = [Entry(b"/x", EntryType.FILE, 0, "5"), Entry(b"/x", EntryType.DIRECTORY, 0, "6")]

    class Lying(FakeFs):
        def children(self, entry: Entry, /) -> Iterator[Entry]:
            for each in bad if entry.path == b"/" else ():
                yield each._replace(path=b"/" + name)

    data, _ = packed(Lying({}), kind)
    names = tar_names(data) if kind == "tar" else zipfile.ZipFile(io.BytesIO(data)).namelist()
    for each in names:
        parts = each.rstrip("/").split("/")
        assert parts[0] == "top"
        assert not {"..", "."} & set(parts)
        assert not each.startswith("/")


@pytest.mark.parametrize("pair", [(b"a", b"a"), (b"a", b"A"), ("é".encode(), "É".encode())])
@pytest.mark.parametrize("order", [1, -1])
def test_a_symlink_and_a_folder_never_share_a_name(pair: tuple[bytes, bytes], order: int) -> None:
    both = [link(b"/" + pair[0], "8"), folder(b"/" + pair[1], "7")][::order]
    fs = FakeFs(
        {b"/": both, b"/" + pair[1]: [file(b"/" + pair[1] + b"/x")]}, links={b"/" + pair[0]: b"/outside"}
    )
    data, report = packed(fs, "tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        links = {member.name.casefold() for member in tar if member.issym()}
        assert links
        for member in tar:
            assert not any(member.name.casefold().startswith(each + "/") for each in links)
    assert "renamed" in codes(report)


def test_streams_become_members() -> None:
    fs = Rich({b"/": [stamped(b"/f")]})
    fs.named = {b"/f": {b"Zone": b"[x]", b"a/b": b"1"}}
    data, _ = packed(fs, "tar", ExtractOptions(streams=True))
    assert tar_names(data) == ["top", "top/f", "top/f:Zone", "top/f:a%2Fb"]
