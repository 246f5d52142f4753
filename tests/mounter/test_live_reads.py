"""Bytes through a real mount: the same as the Reader's, or an error; never fewer, never others."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mounter import mounttable
from tests.mounter.conftest import Live, Mount, drop_pages, need, need_root, wait_until
from tests.mounter.fakes import MTIME, noise


def pread(path: Path, length: int, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def test_cmp_of_everything(mount: Mount, tmp_path: Path) -> None:
    live = mount()
    data = noise(1_000_003)
    expected = {
        "disk.raw": data,
        "p1.raw": data[4096:400_001],
        "p2.raw": data[400_001:],
        "p1/big.bin": noise(300_001, 3),
        "p1/etc/fstab": b"# nothing\n",
        "p1/etc/link": b"# nothing\n",
        "image.json": b'{"id": "3f2a"}\n',
    }
    for name, content in expected.items():
        (tmp_path / "expected").write_bytes(content)
        subprocess.run(["cmp", tmp_path / "expected", live.directory / name], check=True, timeout=600)
    assert (live.directory / os.fsdecode(b"p1/caf\xe9 \xff.txt")).read_bytes() == b"latin"


def test_what_stat_and_listings_say(mount: Mount) -> None:
    live = mount()
    assert sorted(os.listdir(live.directory)) == [
        "disk.raw",
        "image.json",
        "p1",
        "p1.raw",
        "p2.raw",
        "p2.txt",
    ]
    status = os.stat(live.directory / "p1/etc/fstab")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1000, 100)
    assert (status.st_size, status.st_mtime_ns) == (10, MTIME)
    assert os.readlink(live.directory / "p1/etc/link") == "fstab"
    listed = {entry.name: entry.inode() for entry in os.scandir(live.directory / "p1")}
    assert listed["big.bin"] == os.stat(live.directory / "p1/big.bin").st_ino == 1 << 48 | 23
    assert os.statvfs(live.directory).f_blocks * 4096 >= 1_000_003
    with pytest.raises(FileNotFoundError):
        os.stat(live.directory / ".Trash-1000")


def test_the_mount_table_says_what_it_is(mount: Mount) -> None:
    live = mount("named")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(live.directory) in line)
    options = line.split()[3].split(",")
    assert line.split()[2] == "fuse.imagefs"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    mounted = mounttable.find(str(live.directory))
    assert mounted is not None
    assert mounted.source == 'a, "b" \\c? ü', "a comma in the name must not become an option"
    assert not mounted.is_stale()


def test_nothing_can_be_written(mount: Mount) -> None:
    live = mount()
    attempts = [
        lambda: (live.directory / "new").write_bytes(b"x"),
        lambda: os.open(live.directory / "disk.raw", os.O_RDWR),
        lambda: os.truncate(live.directory / "disk.raw", 5),
        lambda: os.unlink(live.directory / "p1/big.bin"),
        lambda: os.mkdir(live.directory / "p1/new"),
        lambda: os.rename(live.directory / "image.json", live.directory / "x"),
        lambda: os.chmod(live.directory / "disk.raw", 0o777),
        lambda: os.utime(live.directory / "disk.raw"),
        lambda: os.symlink("a", live.directory / "b"),
        lambda: os.link(live.directory / "disk.raw", live.directory / "b"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


def test_damage_is_eio_and_what_surrounds_it_is_right(mount: Mount) -> None:
    live = mount("bad")  # 300,000 to 365,536 fail their check
    disk = live.directory / "disk.raw"
    data = noise(1 << 20)
    before, after = 300_000 // 4096 * 4096, -(-365_536 // 4096) * 4096
    given = pread(disk, 131_072, 262_144)  # the kernel gives what it has, up to the bad page
    assert given == data[262_144:before]
    with pytest.raises(OSError) as caught:
        pread(disk, 131_072, before)
    assert caught.value.errno == errno.EIO
    assert pread(disk, before, 0) == data[:before], "up to the very page"
    assert pread(disk, 1 << 20, after) == data[after:]
    drop_pages(disk)
    for offset in range(0, 1 << 20, 4096):
        if offset + 4096 <= 300_000 or offset >= 365_536:
            assert pread(disk, 4096, offset) == data[offset : offset + 4096]
        else:
            with pytest.raises(OSError):
                pread(disk, 4096, offset)
    for part in ("integrity", "image=3f2a", "chunk=5", "offset=300000"):
        assert part in live.log()


def test_one_request_across_damage_fails_whole(mount: Mount) -> None:
    """With O_DIRECT a read is one request: 128 KiB of which 36 KiB would be good are an error."""
    live = mount("bad")
    descriptor = os.open(live.directory / "disk.raw", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 131_072) as buffer:
            with pytest.raises(OSError) as caught:
                os.preadv(descriptor, [buffer], 262_144)
            assert caught.value.errno == errno.EIO
            assert os.preadv(descriptor, [buffer], 131_072) == 131_072
            assert buffer[:] == noise(1 << 20)[131_072:262_144]
    finally:
        os.close(descriptor)


def test_dd_and_cat_fail_on_damage_rather_than_end_early(mount: Mount) -> None:
    live = mount("bad")
    for command in (
        ["dd", "bs=64k", "status=none", f"if={live.directory}/disk.raw"],
        ["cat", f"{live.directory}/disk.raw"],
    ):
        done = subprocess.run(command, capture_output=True, timeout=600, check=False)
        assert done.returncode != 0
        assert noise(1 << 20).startswith(done.stdout)
        assert b"Input/output error" in done.stderr


def test_a_short_reader_is_an_error_and_not_the_end(mount: Mount) -> None:
    live = mount("short")
    with pytest.raises(OSError) as caught:
        (live.directory / "disk.raw").read_bytes()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("threads", [1, 4])
def test_eight_readers_at_once(mount: Mount, threads: int) -> None:
    live = mount(threads=threads)
    data = noise(1_000_003)
    drop_pages(live.directory / "disk.raw")

    def work(number: int) -> None:
        dice = random.Random(number)
        with open(live.directory / "disk.raw", "rb", buffering=0) as file:
            for _ in range(60):
                offset, length = dice.randrange(1_000_003), dice.choice((1, 4096, 70_000, 200_000))
                assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]
        assert len(os.listdir(live.directory / "p1")) == 4

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(60)


def test_a_killed_reader_does_no_harm(mount: Mount) -> None:
    live = mount("slow")
    for _ in range(2):
        victim = subprocess.Popen(["cat", live.directory / "disk.raw"], stdout=subprocess.DEVNULL)
        time.sleep(0.4)
        victim.kill()
        victim.wait(300)
    assert pread(live.directory / "disk.raw", 4096, 4096) == noise(8 << 20)[4096:8192]
    assert live.process.poll() is None


def test_a_folder_of_thousands_is_listed_whole(mount: Mount) -> None:
    live = mount("many")
    listed = list(os.scandir(live.directory / "p1"))
    assert sorted(entry.name for entry in listed) == [f"file-{at:06d}" for at in range(5000)]
    assert sum(entry.stat().st_size for entry in listed) == sum(range(5000))
    assert all(entry.inode() == entry.stat().st_ino for entry in listed)


def loop_device(path: Path, *options: str) -> str:
    made = subprocess.run(
        ["losetup", "--find", "--show", *options, path], capture_output=True, timeout=600, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"needs a loop device: {made.stderr.decode(errors='replace').strip()}")
    return made.stdout.decode().strip()


def test_the_kernel_mounts_ext4_from_a_raw_file(mount: Mount, tmp_path: Path) -> None:
    need_root()
    need(shutil.which("mke2fs"), "mke2fs")
    source = tmp_path / "source"
    source.mkdir()
    (source / "hello").write_bytes(noise(123_457, 9))
    image = tmp_path / "ext4"
    command = ["mke2fs", "-q", "-t", "ext4", "-d", source, image, "16M"]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    live = mount("file", path=str(image))
    device = loop_device(live.directory / "p1.raw", "--read-only")
    inner = tmp_path / "inner"
    inner.mkdir()
    try:
        subprocess.run(["mount", "-o", "ro", device, inner], check=True, timeout=600)
        try:
            assert (inner / "hello").read_bytes() == noise(123_457, 9)
        finally:
            subprocess.run(["umount", inner], check=True, timeout=600)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=600)
    assert live.end() == 128 + signal.SIGTERM


def test_fusepy_on_libfuse_2(mount: Mount, tmp_path: Path) -> None:
    pytest.importorskip("fuse", reason="needs fusepy")
    need(shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin"), "ldconfig")
    libraries = subprocess.run(
        ["ldconfig", "-p"], capture_output=True, text=True, timeout=600, check=True
    ).stdout
    need("libfuse.so.2" in libraries, "libfuse 2")
    live = mount(binding="fusepy")
    check_smoke(live)
    assert "libfuse.so.2" in Path(f"/proc/{live.process.pid}/maps").read_text()
    live.end()
    assert not live.directory.exists()


def test_mfusepy_takes_libfuse_3_where_both_are_there(mount: Mount) -> None:
    live = mount()
    check_smoke(live)
    maps = Path(f"/proc/{live.process.pid}/maps").read_text()
    assert "libfuse3.so" in maps
    assert "libfuse.so.2" not in maps


def check_smoke(live: Live) -> None:
    assert (live.directory / "disk.raw").read_bytes() == noise(1_000_003)
    assert (live.directory / "p1/big.bin").read_bytes() == noise(300_001, 3)
    assert (live.directory / os.fsdecode(b"p1/caf\xe9 \xff.txt")).read_bytes() == b"latin"
    assert os.readlink(live.directory / "p1/etc/link") == "fstab"
    assert len(os.listdir(live.directory / "p1")) == 4
    with pytest.raises(OSError) as caught:
        (live.directory / "p1/broken").read_bytes()
    assert caught.value.errno == errno.EIO
    with contextlib.suppress(OSError):
        (live.directory / "new").write_bytes(b"")
    wait_until(lambda: "compressed" in live.log())
