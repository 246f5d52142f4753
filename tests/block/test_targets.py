"""What open_target refuses, and how a file comes to its final name."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.block import naming, targets
from imagefs.block.targets import DeviceSink, FileSink, StreamSink, open_target
from imagefs.errors import TargetError, UsageError
from tests.block.conftest import MakeLoop
from tests.support.oracles import root_only, run_tool, tool_text

DATA = random.Random(3).randbytes(100_000)
Mounted = Callable[[str], tuple[str, Path, Path]]


def litter(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(path: str, content: bytes = DATA, **options: object) -> None:
    sink = open_target(path, len(content), **options)  # type: ignore[arg-type]
    sink.write_at(0, content)
    sink.finish(len(content))
    sink.close()


# -- the final name -------------------------------------------------------------------------------


def test_a_new_file_appears_only_when_it_is_finished(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), len(DATA))
    assert not sink.leaves_incomplete
    sink.write_at(0, DATA)
    assert litter(tmp_path) == [".disk.raw.partial"]
    sink.finish(len(DATA))
    assert litter(tmp_path) == ["disk.raw"]
    sink.close()
    assert (tmp_path / "disk.raw").read_bytes() == DATA


def test_an_abandoned_file_leaves_nothing(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), len(DATA))
    sink.write_at(0, DATA)
    sink.close()
    sink.close()
    assert litter(tmp_path) == []


def test_an_abandoned_overwrite_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"old")
    sink = open_target(str(tmp_path / "disk.raw"), len(DATA), overwrite=True)
    sink.write_at(0, DATA)
    sink.close()
    assert litter(tmp_path) == ["disk.raw"]
    assert (tmp_path / "disk.raw").read_bytes() == b"old"


def test_an_overwritten_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    owner = path.stat().st_uid, path.stat().st_gid
    fill(str(path), overwrite=True)
    now = path.stat()
    assert (stat.S_IMODE(now.st_mode), (now.st_uid, now.st_gid)) == (0o640, owner)
    assert path.read_bytes() == DATA


def test_a_new_file_is_private(tmp_path: Path) -> None:
    fill(str(tmp_path / "disk.raw"))
    assert stat.S_IMODE((tmp_path / "disk.raw").stat().st_mode) == 0o600


@root_only
def test_a_new_file_belongs_to_the_owner_of_its_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 23456)
    fill(str(tmp_path / "disk.raw"))
    made = (tmp_path / "disk.raw").stat()
    assert (made.st_uid, made.st_gid) == (12345, 23456)


def test_what_a_kill_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".disk.raw.partial").write_bytes(b"rest of a killed run" * 99_999)
    fill(str(tmp_path / "disk.raw"), b"new")
    assert litter(tmp_path) == ["disk.raw"]
    assert (tmp_path / "disk.raw").read_bytes() == b"new"


def test_a_killed_writer_leaves_the_target_unmade_and_no_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.raw")
    code = (
        "import os, sys; from imagefs.block.targets import open_target\n"
        "sink = open_target(sys.argv[1], 10); sink.write_at(0, b'x')\n"
        "os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", code, path], timeout=600, check=False)
    assert died.returncode == -9
    assert litter(tmp_path) == [".disk.raw.partial"]
    fill(path)
    assert litter(tmp_path) == ["disk.raw"]


def test_two_cannot_write_to_one_name(tmp_path: Path) -> None:
    first = open_target(str(tmp_path / "disk.raw"), 10)
    with pytest.raises(TargetError, match="being written by another"):
        open_target(str(tmp_path / "disk.raw"), 10)
    first.write_at(0, b"0123456789")
    first.finish(10)
    assert (tmp_path / "disk.raw").read_bytes() == b"0123456789"
    first.close()


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_in_the_way_is_not_written_through(tmp_path: Path, hard: bool) -> None:
    """A kill between link and unlink leaves the finished file under both names; and a symbolic link
    under the unfinished name may have been put there by somebody else."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    partial = tmp_path / ".disk.raw.partial"
    partial.hardlink_to(precious) if hard else partial.symlink_to(precious)
    fill(str(tmp_path / "disk.raw"))
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "disk.raw").read_bytes() == DATA


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), 3)
    (tmp_path / "disk.raw").write_bytes(b"someone else's")
    with pytest.raises(TargetError, match="appeared while it was being written"):
        sink.finish(3)
    sink.close()
    assert (tmp_path / "disk.raw").read_bytes() == b"someone else's"
    assert litter(tmp_path) == ["disk.raw"]


def test_without_hard_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links on FAT")

    monkeypatch.setattr(naming.os, "link", refuse)
    fill(str(tmp_path / "one.raw"))
    assert litter(tmp_path) == ["one.raw"]
    sink = open_target(str(tmp_path / "two.raw"), 3)
    (tmp_path / "two.raw").write_bytes(b"someone else's")
    with pytest.raises(TargetError, match=r"two\.raw cannot be given its name"):
        sink.finish(3)
    sink.close()
    assert (tmp_path / "two.raw").read_bytes() == b"someone else's"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.raw").write_bytes(b"old")
    (tmp_path / "link.raw").symlink_to("real.raw")
    fill(str(tmp_path / "link.raw"), overwrite=True)
    assert (tmp_path / "link.raw").is_symlink()
    assert (tmp_path / "real.raw").read_bytes() == DATA


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "with space", "-dash", "new\nline"])
def test_any_name_can_be_a_target(tmp_path: Path, name: str) -> None:
    fill(str(tmp_path / name))
    assert litter(tmp_path) == [name]


# -- in place -------------------------------------------------------------------------------------


def test_in_place_changes_only_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    inode = path.stat().st_ino
    sink = open_target(str(path), len(DATA), overwrite=True, in_place=True)
    assert sink.leaves_incomplete
    sink.write_at(500, b"changed")
    sink.zero_at(60_000, 10_000)
    sink.finish(len(DATA))
    sink.close()
    expected = bytearray(DATA)
    expected[500:507] = b"changed"
    expected[60_000:70_000] = bytes(10_000)
    assert path.read_bytes() == expected
    assert path.stat().st_ino == inode
    assert litter(tmp_path) == ["disk.raw"]


@pytest.mark.parametrize("size", [10, 99_999, 250_000])
def test_in_place_ends_at_the_size_asked_for(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    sink = open_target(str(path), size, overwrite=True, in_place=True)
    sink.zero_at(min(size, 90_000), max(0, size - 90_000))
    sink.finish(size)
    sink.close()
    assert path.read_bytes() == DATA[: min(size, 90_000)] + bytes(max(0, size - 90_000))


def test_in_place_needs_a_yes_too_and_makes_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    fill(str(path), in_place=True)
    assert path.read_bytes() == DATA
    with pytest.raises(TargetError, match="would be overwritten"):
        open_target(str(path), 10, in_place=True)


# -- refusals -------------------------------------------------------------------------------------


def test_a_file_with_bytes_in_it_needs_a_yes(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"old")
    with pytest.raises(TargetError, match="holds 3 bytes that would be overwritten") as caught:
        open_target(str(path), 10)
    assert "--yes" in caught.value.hint
    assert caught.value.data["would_overwrite"] is True
    assert caught.value.exit_code == 11
    assert litter(tmp_path) == ["disk.raw"]
    assert path.read_bytes() == b"old"


def test_an_empty_file_needs_none(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").touch()
    fill(str(tmp_path / "disk.raw"))
    assert (tmp_path / "disk.raw").read_bytes() == DATA


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_a_usage_error_that_names_get(tmp_path: Path, slash: str) -> None:
    with pytest.raises(UsageError, match="is a folder") as caught:
        open_target(str(tmp_path) + slash, 10, overwrite=True)
    assert caught.value.exit_code == 2
    assert "imagefs get" in caught.value.hint


def test_names_that_can_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        open_target(str(tmp_path / "new") + "/", 10)
    with pytest.raises(UsageError, match="no name"):
        open_target("", 10)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"there is no folder .*missing") as caught:
        open_target(str(tmp_path / "missing" / "disk.raw"), 10)
    assert "mkdir" in caught.value.hint
    assert litter(tmp_path) == []


def test_a_mistyped_device_does_not_become_a_file() -> None:
    with pytest.raises(TargetError, match="there is no device /dev/sdzz9"):
        open_target("/dev/sdzz9", 10, overwrite=True)
    assert not Path("/dev/sdzz9").exists()


def test_pipes_and_character_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        with pytest.raises(TargetError, match="neither a file nor a block device"):
            open_target(path, 10, overwrite=True)


def test_a_target_must_not_be_the_source(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(DATA)
    (tmp_path / "alias").hardlink_to(path)
    for name in ("disk.raw", "alias"):
        with pytest.raises(TargetError, match="cannot be the target"):
            open_target(str(tmp_path / name), 10, overwrite=True, sources=(str(path),))
    assert path.read_bytes() == DATA
    sink = open_target(str(tmp_path / "copy.raw"), 10, sources=(str(path), str(tmp_path / "gone")))
    sink.close()


def test_a_folder_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(naming.os, "open", deny)
    with pytest.raises(TargetError, match="cannot be made: Permission denied") as caught:
        open_target(str(tmp_path / "disk.raw"), 10)
    assert "sudo" in caught.value.hint


# -- room -----------------------------------------------------------------------------------------


def test_a_disk_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"{1 << 60} bytes are needed") as caught:
        open_target(str(tmp_path / "disk.raw"), 1 << 60)
    assert caught.value.data["needed"] == 1 << 60
    assert litter(tmp_path) == []


def test_only_what_is_not_zeros_needs_room(tmp_path: Path) -> None:
    sink = open_target(str(tmp_path / "disk.raw"), 1 << 42, data_bytes=4096)
    sink.write_at((1 << 42) - 4096, b"x" * 4096)
    sink.finish(1 << 42)
    sink.close()
    made = (tmp_path / "disk.raw").stat()
    assert made.st_size == 1 << 42
    assert made.st_blocks * 512 < 1 << 20


@root_only
def test_no_space_in_the_middle_names_what_is_needed_and_leaves_nothing(small_disk: Path) -> None:
    sink = open_target(str(small_disk / "disk.raw"), 2 << 20, data_bytes=1 << 19)
    with pytest.raises(TargetError, match=f"no space is left for the {1 << 19} bytes") as caught:
        for offset in range(0, 2 << 20, 65536):
            sink.write_at(offset, b"x" * 65536)
    assert caught.value.data["errno"] == errno.ENOSPC
    sink.close()
    assert litter(small_disk) == []


@root_only
def test_the_old_file_and_the_new_one_must_both_fit(small_disk: Path) -> None:
    path = small_disk / "disk.raw"
    path.write_bytes(b"o" * 700_000)
    with pytest.raises(TargetError, match="does not fit"):
        open_target(str(path), 700_000, overwrite=True)
    sink = open_target(str(path), 700_000, overwrite=True, in_place=True)
    sink.write_at(0, b"n" * 700_000)
    sink.finish(700_000)
    sink.close()
    assert path.read_bytes() == b"n" * 700_000


def test_a_file_larger_than_may_be(tmp_path: Path) -> None:
    """As on FAT: a limit of the process answers with the same errno as one of the file system."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(TargetError, match="File too large") as caught:
            open_target(str(tmp_path / "disk.raw"), 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "file system" in caught.value.hint
    assert litter(tmp_path) == []


# -- devices --------------------------------------------------------------------------------------


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing.raw"
    path.write_bytes(b"\xaa" * (1 << 20))
    return path


@root_only
def test_a_device_always_needs_a_yes(backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    with pytest.raises(TargetError, match="would be overwritten") as caught:
        open_target(device, 4096)
    assert caught.value.data["would_overwrite"] is True
    assert backing.read_bytes() == b"\xaa" * (1 << 20)
    sink = open_target(device, 4096, overwrite=True)
    assert isinstance(sink, DeviceSink)
    sink.close()


@root_only
def test_a_device_that_is_too_small(backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    with pytest.raises(TargetError, match="too small: it has 1048576 bytes, 1048577 are needed"):
        open_target(device, (1 << 20) + 1, overwrite=True)
    open_target(device, 1 << 20, overwrite=True).close()


@root_only
def test_a_read_only_device(backing: Path, make_loop: MakeLoop) -> None:
    with pytest.raises(TargetError, match=r"is read-only|may not be written"):
        open_target(make_loop(backing, "--read-only"), 4096, overwrite=True)


@root_only
def test_a_device_is_held_while_it_is_written(backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    first = open_target(device, 4096, overwrite=True)
    with pytest.raises(TargetError, match="in use by another program"):
        open_target(device, 4096, overwrite=True)
    first.close()
    open_target(device, 4096, overwrite=True).close()


@root_only
@pytest.mark.parametrize("options", ["ro", "rw"])
def test_what_is_mounted_is_not_overwritten(mounted_ext4: Mounted, options: str) -> None:
    device, file, place = mounted_ext4(options)
    for path in (device, str(file)):
        with pytest.raises(TargetError, match="is mounted at") as caught:
            open_target(path, 4096, overwrite=True)
        assert caught.value.data["mountpoint"] == str(place)


@root_only
def test_a_file_behind_a_loop_device_is_not_overwritten(backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    with pytest.raises(TargetError, match=f"{device} is built on it"):
        open_target(str(backing), 4096, overwrite=True)


@root_only
def test_cloning_a_loop_device_onto_its_own_file_is_refused(backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    with pytest.raises(TargetError, match="cannot be the target"):
        open_target(str(backing), 4096, overwrite=True, sources=(device,))
    with pytest.raises(TargetError, match="cannot be the target"):
        open_target(device, 4096, overwrite=True, sources=(str(backing),))


@root_only
def test_qemu_img_agrees_with_what_a_device_got(tmp_path: Path, backing: Path, make_loop: MakeLoop) -> None:
    device = make_loop(backing)
    (tmp_path / "want.raw").write_bytes(DATA + bytes(300_000) + DATA)
    sink = open_target(device, len(DATA) * 2 + 300_000, overwrite=True)
    sink.write_at(0, DATA)
    sink.zero_at(len(DATA), 300_000)
    sink.write_at(len(DATA) + 300_000, DATA)
    sink.finish(len(DATA) * 2 + 300_000)
    sink.close()
    run_tool(["cmp", "--bytes", str(len(DATA) * 2 + 300_000), device, tmp_path / "want.raw"])
    assert backing.read_bytes()[len(DATA) * 2 + 300_000 :] == b"\xaa" * ((1 << 20) - 500_000)
    assert tool_text("blockdev", "--getro", device).strip() == "0"


def test_each_path_gets_its_kind_of_sink(tmp_path: Path) -> None:
    assert isinstance(open_target("-", None), StreamSink)
    sink = open_target(str(tmp_path / "disk.raw"), None)
    assert isinstance(sink, FileSink)
    sink.write_at(5, b"five")
    sink.finish(9)
    sink.close()
    assert (tmp_path / "disk.raw").read_bytes() == bytes(5) + b"five"
    assert set(targets.__all__) >= {"open_target", "FileSink", "DeviceSink", "StreamSink"}
