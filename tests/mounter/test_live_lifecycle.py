"""From mount to unmount: directories, signals, busy and dead mounts, what is remembered."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from imagefs.errors import MountError
from mounter import mounttable
from mounter.unmount import list_mounts, unmount
from tests.mounter import serve
from tests.mounter.conftest import Mount, clear, is_mounted, need_root, wait_until
from tests.mounter.test_live_reads import loop_device


def test_directory_is_made_and_removed_again(mount: Mount) -> None:
    live = mount()
    assert is_mounted(live.directory)
    unmount(str(live.directory), state_dir=live.state_dir)
    assert not live.directory.exists(), "gone when unmount returns"
    assert live.process.wait(300) == 0
    assert list(live.state_dir.glob("*.json")) == []


def test_a_directory_that_was_there_stays(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir(mode=0o750)
    live = mount()
    unmount(str(live.directory), state_dir=live.state_dir)
    assert os.listdir(live.directory) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_and_say_which(mount: Mount, number: signal.Signals) -> None:
    live = mount()
    assert live.end(number) == 128 + number
    assert not live.directory.exists()
    assert list(live.state_dir.glob("*.json")) == []


def test_a_signal_ends_a_mount_in_use(mount: Mount) -> None:
    live = mount()
    descriptor = os.open(live.directory / "disk.raw", os.O_RDONLY)
    try:
        assert live.end() == 128 + signal.SIGTERM
        assert not live.directory.exists()
        with pytest.raises(OSError):
            os.pread(descriptor, 4096, 500_000)
    finally:
        with contextlib.suppress(OSError):  # nobody is there to hear of the close
            os.close(descriptor)


def test_several_dispatchers_end_as_well(mount: Mount) -> None:
    live = mount(threads=3)
    assert (live.directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"
    assert live.end(signal.SIGINT) == 128 + signal.SIGINT
    assert not live.directory.exists()


def test_fusermount_leaves_nothing_behind(mount: Mount) -> None:
    live = mount()
    subprocess.run(["fusermount3", "-u", live.directory], check=True, timeout=600)
    assert live.process.wait(300) == 0
    assert not live.directory.exists()
    assert list(live.state_dir.glob("*.json")) == []


def test_a_directory_with_something_in_it_is_refused(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "precious").write_bytes(b"x")
    live = mount(wait=False)
    assert live.process.wait(300) == 50
    assert "is not empty" in live.log()
    assert os.listdir(tmp_path / "mnt") == ["precious"]


def test_a_mount_on_a_mount_is_refused(mount: Mount) -> None:
    first = mount()
    second = mount(wait=False)
    assert second.process.wait(300) == 50
    assert "already shows test image" in second.log()
    assert is_mounted(first.directory)


def test_busy_names_the_process_and_lazy_detaches(mount: Mount) -> None:
    live = mount()
    held = subprocess.Popen(["sleep", "60"], stdin=open(live.directory / "disk.raw", "rb"))  # noqa: SIM115 (inherited)
    try:
        with pytest.raises(MountError) as caught:
            unmount(str(live.directory), state_dir=live.state_dir)
        assert f"sleep (pid {held.pid})" in caught.value.message
        assert "--lazy" in caught.value.hint
        assert (live.directory / "p1/etc/fstab").read_bytes() == b"# nothing\n", "still there"
        unmount(str(live.directory), lazy=True, state_dir=live.state_dir)
        assert not live.directory.exists()
        assert live.process.poll() is None, "serves its last user"
    finally:
        held.kill()
        held.wait(300)
    assert live.process.wait(300) == 0


def test_a_working_directory_is_in_use_too(mount: Mount) -> None:
    live = mount()
    held = subprocess.Popen(["sleep", "60"], cwd=live.directory / "p1")
    try:
        with pytest.raises(MountError, match=rf"sleep \(pid {held.pid}\)"):
            unmount(str(live.directory), state_dir=live.state_dir)
    finally:
        held.kill()
        held.wait(300)
    unmount(str(live.directory), state_dir=live.state_dir)


def test_a_loop_device_is_named(mount: Mount) -> None:
    need_root()
    live = mount()
    device = loop_device(live.directory / "p1.raw", "--read-only")
    try:
        with pytest.raises(MountError, match=f"{device} on p1.raw"):
            unmount(str(live.directory), state_dir=live.state_dir)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=600)
    unmount(str(live.directory), state_dir=live.state_dir)


def test_a_dead_mount_is_listed_then_cleared_by_unmount(mount: Mount) -> None:
    live = mount()
    live.process.kill()
    live.process.wait(300)
    with pytest.raises(OSError):
        os.listdir(live.directory)
    assert [record.alive() for record in list_mounts(live.state_dir)] == [False]
    unmount(str(live.directory), state_dir=live.state_dir)
    assert not live.directory.exists(), "the mount had made it"
    assert list(live.state_dir.glob("*.json")) == []


def test_a_dead_mount_is_cleared_by_the_next(mount: Mount) -> None:
    first = mount()
    first.process.kill()
    first.process.wait(300)
    second = mount()
    assert (second.directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"
    unmount(str(second.directory), state_dir=second.state_dir)
    assert not second.directory.exists()


def test_a_dead_mount_that_somebody_took_away_leaves_no_record(mount: Mount) -> None:
    live = mount()
    live.process.kill()
    live.process.wait(300)
    clear(live.directory)
    assert list_mounts(live.state_dir) == []
    assert list(live.state_dir.glob("*.json")) == []
    assert not live.directory.exists()


def test_a_lazy_mount_does_not_remove_what_came_after_it(mount: Mount) -> None:
    """The first server ends only when its last user does; by then DIR is another mount's."""
    first = mount()
    with open(first.directory / "disk.raw", "rb"):
        unmount(str(first.directory), lazy=True, state_dir=first.state_dir)
        second = mount()
        assert [record.pid for record in list_mounts(first.state_dir)] == [second.process.pid]
    assert first.process.wait(300) == 0
    assert (second.directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"
    assert [record.pid for record in list_mounts(first.state_dir)] == [second.process.pid]


def test_the_record_counts_errors(mount: Mount) -> None:
    live = mount("bad", log="/some/log")
    (record,) = list_mounts(live.state_dir)
    assert (record.directory, record.image, record.log) == (str(live.directory), "test image", "/some/log")
    assert (record.pid, record.errors, record.alive()) == (live.process.pid, 0, True)
    assert abs(record.since_ns - time.time_ns()) < 60 * 10**9
    with pytest.raises(OSError):
        (live.directory / "disk.raw").read_bytes()
    wait_until(lambda: list_mounts(live.state_dir)[0].errors > 0)


def test_no_state_folder_no_harm(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    live = mount(state_dir=tmp_path / "file" / "state")
    assert "cannot write to the state folder" in live.log()
    unmount(str(live.directory))
    assert live.process.wait(300) == 0


def test_unmounting_what_is_no_mount_of_ours(tmp_path: Path) -> None:
    for place in (str(tmp_path), "/proc", str(tmp_path / "nothing")):
        with pytest.raises(MountError, match="is not a mount of imagefs"):
            unmount(place, state_dir=tmp_path)


def background(tmp_path: Path, kind: str = "usual") -> tuple[Path, Path]:
    directory, state_dir = tmp_path / "mnt", tmp_path / "state"
    try:
        serve.background(directory, {"kind": kind, "state_dir": str(state_dir)})
    except BaseException:
        clear(directory)
        raise
    return directory, state_dir


def test_the_background_is_ready_when_it_returns_and_has_its_own_session(tmp_path: Path) -> None:
    directory, state_dir = background(tmp_path)
    try:
        assert (directory / "p1/etc/fstab").read_bytes() == b"# nothing\n"
        (record,) = list_mounts(state_dir)
        assert os.getsid(record.pid) == record.pid != os.getsid(0)
        assert os.readlink(f"/proc/{record.pid}/fd/0") == "/dev/null"
        assert "mounted test image" in Path(record.log).read_text()
        unmount(str(directory), state_dir=state_dir)
        assert not directory.exists()
        assert not record.alive()
    finally:
        clear(directory)


def test_the_background_hands_its_error_over(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "precious").write_bytes(b"x")
    with pytest.raises(MountError, match="is not empty") as caught:
        background(tmp_path)
    assert "choose an empty" in caught.value.hint
    assert caught.value.exit_code == 50


def test_a_background_that_dies_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=r"exit code 1 before it was ready: KeyError") as caught:
        background(tmp_path, "no such kind")
    assert "log" in caught.value.hint


def test_the_mount_table_is_resolved_through_links(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    live = mount(directory=tmp_path / "link" / "mnt")
    assert mounttable.find(str(tmp_path / "real" / "mnt")) is not None
    unmount(str(tmp_path / "link" / "mnt"), state_dir=live.state_dir)
    assert not (tmp_path / "real" / "mnt").exists()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["mfusepy", "fusepy"])
def test_a_signal_taken_by_another_thread_ends_the_mount(mount: Mount, threads: int, name: str) -> None:
    """Such as one that numpy left running, which knows nothing of masks and handlers."""
    pytest.importorskip("fuse" if name == "fusepy" else name, reason=f"needs {name}")
    live = mount("threaded", threads=threads, binding=name)
    assert live.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert not live.directory.exists()


def test_a_signal_before_the_mount_is_ready_ends_it_too(mount: Mount) -> None:
    live = mount("usual", wait=False)
    for pause in (0.05, 0.1, 0.15, 0.2, 0.3):
        time.sleep(pause)
        live.process.send_signal(signal.SIGTERM)
        if live.process.poll() is not None:
            break
    assert live.process.wait(300) in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not is_mounted(live.directory)
