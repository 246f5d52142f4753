"""File systems that were not unmounted, in a writable view and as native mounts: the kernel, e2fsck,
mkfs and qemu on one side, the bytes of the image on the other."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.build import MIB, make_sparse
from fixtures.sparse import splice
from fixtures.tools import run_tool
from imagefs.block.views import BytesReader
from imagefs.browse.opening import open_filesystem
from tests.allocation.test_ntfs import log as restart_pages
from tests.cli.mounts import Room, fingerprint, mounted
from tests.mounter.conftest import wait_until
from tests.support.oracles import need_tool, root_only, tool_text

pytestmark = [root_only, pytest.mark.timeout(1200)]

#: Volume, file system, size in MiB. XFS makes nothing smaller than 300 MiB.
PARTS = (("p1", "ext4", 64), ("p2", "xfs", 304), ("p3", "btrfs", 128), ("p4", "ntfs", 32), ("p5", "fat", 32))
MAKERS = {
    "ext4": ("mke2fs", "-q", "-t", "ext4"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ntfs": ("mkntfs", "-q", "-Q", "-F"),
    "fat": ("mkfs.fat", "-F", "16"),
}
REPORT = b"the report of the day\n" * 1000


def make_volume(path: Path, kind: str, size: int) -> None:
    """A file system with /report.txt; those with a journal are copied while they are still mounted, with
    /late.txt in it that only the journal knows."""
    make_sparse(path, size)
    need_tool(MAKERS[kind][0])
    run_tool([*MAKERS[kind], path])
    report = path.with_suffix(".txt")
    report.write_bytes(REPORT)
    if kind == "ntfs":
        run_tool(["ntfscp", "-f", path, report, "report.txt"])
        leave_log_open(path)
        return
    if kind == "fat":
        run_tool(["mcopy", "-i", path, report, "::report.txt"])
        return
    folder = path.with_suffix(".mnt")
    with mounted(path, folder, kind):
        (folder / "report.txt").write_bytes(REPORT)
    with mounted(path, folder, kind):
        write_durably(folder / "late.txt", b"only in the journal\n")
        subprocess.run(["cp", "--sparse=always", path, path.with_suffix(".dirty")], check=True, timeout=600)
    path.with_suffix(".dirty").replace(path)


def leave_log_open(path: Path) -> None:
    """The restart pages of an NTFS that was in use when its power went."""
    with contextlib.closing(open_filesystem(BytesReader(path.read_bytes()))) as fs:
        (place, *_) = [part for part in fs.places(fs.lookup(b"/$LogFile")) if not part.stream]
    with path.open("r+b") as volume:
        volume.seek(place.first)
        volume.write(restart_pages((5, 0, 0), (4, 0xFFFF, 0)))


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a disk of five partitions and the set it was captured into."""
    folder = tmp_path_factory.mktemp("journals")
    disk = folder / "disk.raw"
    make_sparse(disk, (sum(size for _, _, size in PARTS) + 2) * MIB)
    table = "label: gpt\n" + "".join(f"size={size}M\n" for _, _, size in PARTS)
    run_tool(["sfdisk", "-q", disk], stdin=table.encode())
    start = MIB
    for name, kind, size in PARTS:
        make_volume(folder / name, kind, size * MIB)
        splice(folder / name, disk, offset=start)
        start += size * MIB
    Room(folder).run("capture", "disk.raw", "set")
    return folder


@pytest.fixture
def room(captured: Path, tmp_path: Path) -> Iterator[Room]:
    """A room with that set, which every test leaves as it was, to the byte and the nanosecond."""
    (tmp_path / "set").symlink_to(captured / "set")
    room = Room(tmp_path)
    before = fingerprint(captured / "set")
    yield room
    room.clear()
    assert fingerprint(captured / "set") == before


def disk_of(captured: Path) -> Path:
    return captured / "disk.raw"


# -- the writable view ----------------------------------------------------------------------------


def test_a_journal_is_replayed_kept_and_thrown_away(room: Room) -> None:
    room.run("mount", "set", "mnt", "--overlay", "changes")
    assert "needs_recovery" in tool_text("dumpe2fs", "-h", room / "mnt/p1.raw")
    with mounted(room / "mnt/p1.raw", room / "ext4", "ext4") as folder:
        assert (folder / "late.txt").read_bytes() == b"only in the journal\n"
        (folder / "new.txt").write_bytes(b"new\n")
    assert not (room / "mnt/p1/new.txt").exists(), "the trees show the image as it was captured"
    room.run("umount", "mnt")

    room.run("mount", "set", "mnt", "--overlay", "changes")
    assert "needs_recovery" not in tool_text("dumpe2fs", "-h", room / "mnt/p1.raw")
    run_tool(["e2fsck", "-fn", room / "mnt/p1.raw"])
    with mounted(room / "mnt/p1.raw", room / "ext4", "ext4", "ro,noload") as folder:
        assert (folder / "new.txt").read_bytes() == b"new\n"
    room.run("umount", "mnt")

    (room / "changes").unlink()
    room.run("mount", "set", "mnt", "--overlay", "changes")
    assert "needs_recovery" in tool_text("dumpe2fs", "-h", room / "mnt/p1.raw")
    room.run("umount", "mnt")


def test_checkers_and_makers_work_on_the_files_themselves(room: Room, captured: Path) -> None:
    """e2fsck -fy and mkfs on the raw files, on disk and volumes by turns."""
    room.run("mount", "set", "mnt", "--overlay", "changes")
    run_tool(["e2fsck", "-fy", room / "mnt/p1.raw"], ok=(0, 1))
    run_tool(["e2fsck", "-fn", room / "mnt/p1.raw"])
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "made", room / "mnt/p2.raw"])
    run_tool(["mkfs.xfs", "-q", "-f", "-L", "turned", room / "mnt/p2.raw"])
    run_tool(["xfs_repair", "-n", room / "mnt/p2.raw"])
    run_tool(["wipefs", "-q", "-a", room / "mnt/p3.raw"])
    run_tool(["mkntfs", "-q", "-Q", "-F", "-L", "other", room / "mnt/p3.raw"])
    run_tool(["mkfs.fat", "-F", "32", "-n", "FAT", room / "mnt/p4.raw"])
    offsets = {row["node"][-1]: row["start"] * 512 for row in partitions(room / "mnt/disk.raw")}
    for number, kind in (("2", "xfs"), ("3", "ntfs"), ("4", "vfat")):
        words = ("blkid", "-p", "-o", "value", "-s", "TYPE")
        assert tool_text(*words, room / f"mnt/p{number}.raw").strip() == kind
        at = ("-O", str(offsets[number]), "-S", str(30 * MIB))
        assert tool_text(*words, *at, room / "mnt/disk.raw").strip() == kind
    assert (room / "mnt/p1/report.txt").read_bytes() == REPORT
    room.run("umount", "mnt")
    room.run("mount", "set", "mnt", "--overlay", "changes", "--native", "p2", "n2")
    assert fs_type(room / "n2") == "xfs", "the driver is chosen by what is there now"
    room.run("umount", "mnt")
    room.run("mount", "set", "mnt")
    raw = ("-f", "raw", "-F", "raw")
    assert "identical" in tool_text("qemu-img", "compare", *raw, room / "mnt/disk.raw", disk_of(captured))
    room.run("umount", "mnt")


def partitions(disk: Path) -> list[dict[str, int | str]]:
    table: list[dict[str, int | str]] = json.loads(tool_text("sfdisk", "-J", disk))["partitiontable"][
        "partitions"
    ]
    return table


def fs_type(folder: Path) -> str:
    return tool_text("findmnt", "--noheadings", "--output", "FSTYPE", folder).strip()


def test_qemu_io_does_the_same_to_the_view_and_to_a_copy(room: Room, captured: Path) -> None:
    """Writes, zeros and discards of odd and even places; the view and the copy stay equal."""
    copy = room / "copy.raw"
    subprocess.run(["cp", "--sparse=always", disk_of(captured), copy], check=True, timeout=600)
    room.run("mount", "set", "mnt", "--overlay", "changes")
    steps = [
        "write -P 0xab 0 64k", "write -P 0xcd 1000448 70000k", "write -z 2M 3M", "discard 5M 1M",
        "write -P 1 5000192 512", "write -z -u 100M 200M", "write -P 7 150M 5M", "write -z 512 1024", "flush",
    ]  # fmt: skip
    for target in (copy, room / "mnt/disk.raw"):
        words = [word for step in steps for word in ("-c", step)]
        run_tool(["qemu-io", "-f", "raw", "-d", "unmap", *words, target], timeout=600)
    raw = ("-f", "raw", "-F", "raw")
    assert "identical" in tool_text("qemu-img", "compare", *raw, room / "mnt/disk.raw", copy, timeout=600)
    room.run("umount", "mnt")


@pytest.mark.parametrize("cached", [False, True], ids=["buffered", "mapped first"])
def test_disk_and_volume_are_one(room: Room, cached: bool) -> None:
    """What one of two open files wrote, the other reads at once, though both read that place before."""
    room.run("mount", "set", "mnt", "--overlay", "changes")
    disk = os.open(room / "mnt/disk.raw", os.O_RDWR)
    part = os.open(room / "mnt/p1.raw", os.O_RDWR)
    for at in (0, 4096, 50_000, 3 * MIB + 17):
        before = os.pread(disk, 100, MIB + at)
        assert os.pread(part, 100, at) == before
        if cached:
            place = at // 4096 * 4096
            with mmap.mmap(part, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=place) as pages:
                assert pages[at - place : at - place + 100] == before
        os.pwrite(part, b"one" * 10, at)
        assert os.pread(disk, 30, MIB + at) == b"one" * 10
        os.pwrite(disk, b"two" * 10, MIB + at)
        assert os.pread(part, 30, at) == b"two" * 10
        with open(room / "mnt/p1.raw", "rb") as again:
            again.seek(at)
            assert again.read(30) == b"two" * 10
    os.close(disk)
    os.close(part)
    room.run("umount", "mnt")


def test_a_kill_loses_nothing_that_was_synced(room: Room) -> None:
    room.run("mount", "set", "mnt", "--overlay", "changes")
    with open(room / "mnt/disk.raw", "r+b") as closed:
        closed.write(b"closed")
    place = os.open(room / "mnt/p3.raw", os.O_RDWR)
    os.pwrite(place, b"synced" * 1000, 12_345)
    os.fsync(place)
    os.pwrite(place, b"not yet", 5 * MIB)
    os.kill(room.server(), signal.SIGKILL)
    with pytest.raises(OSError) as gone:
        os.close(place)
    assert gone.value.errno in (errno.ECONNABORTED, errno.ENOTCONN), "told that it may be lost"
    room.run("mount", "set", "mnt", "--overlay", "changes")
    with open(room / "mnt/p3.raw", "rb") as place_again:
        place_again.seek(12_345)
        assert place_again.read(6000) == b"synced" * 1000
    assert (room / "mnt/disk.raw").open("rb").read(6) == b"closed"
    run_tool(["dd", f"if={os.devnull}", f"of={room / 'mnt/p3.raw'}"])  # opens with O_TRUNC
    assert (room / "mnt/p3.raw").stat().st_size == 128 * MIB
    room.run("umount", "mnt")


def test_a_full_disk_is_enospc_and_no_damage(room: Room) -> None:
    small = room / "small"
    small.mkdir()
    run_tool(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small])
    room.run("mount", "set", "mnt", "--overlay", small / "changes")
    with open(room / "mnt/p2.raw", "r+b", buffering=0) as place:
        place.write(b"k" * MIB)
        os.fsync(place.fileno())
        with pytest.raises(OSError, match="No space left"):
            for at in range(64):
                os.pwrite(place.fileno(), b"f" * MIB, (2 + at) * 2 * MIB)
        os.fsync(place.fileno())
    room.run("umount", "mnt")
    run_tool(["mount", "-o", "remount,size=30m", small])
    room.run("mount", "set", "mnt", "--overlay", small / "changes")
    with open(room / "mnt/p2.raw", "r+b", buffering=0) as place:
        assert place.read(MIB) == b"k" * MIB
        assert os.pread(place.fileno(), MIB, 4 * MIB) in (b"f" * MIB, bytes(MIB))
        os.pwrite(place.fileno(), b"g" * MIB, 8 * MIB)
        assert os.pread(place.fileno(), MIB, 8 * MIB) == b"g" * MIB
    room.run("umount", "mnt")


def test_the_serving_process_opens_the_image_for_reading_only(room: Room, captured: Path) -> None:
    room.run("mount", "set", "mnt", "--overlay", "changes")
    run_tool(["mke2fs", "-q", "-F", room / "mnt/p5.raw"])
    seen = 0
    process = Path(f"/proc/{room.server()}")
    for link in (process / "fd").iterdir():
        if os.readlink(link).startswith(str(captured)):
            (flags,) = [
                line for line in (process / "fdinfo" / link.name).read_text().splitlines() if "flags" in line
            ]
            assert int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY
            seen += 1
    assert seen > 0
    room.run("umount", "mnt")


def test_whose_overlay_it_is(room: Room, captured: Path) -> None:
    room.run("mount", "set", "mnt", "--overlay", "changes")
    assert room.mounts()[0]["overlay"] == str(room / "changes")
    assert "in use by another mount" in room.run("mount", "set", "two", "--overlay", "changes", code=11)
    assert not (room / "two").exists()
    room.run("umount", "mnt")
    (room / "notes").write_bytes(b"my notes")
    assert "not an overlay" in room.run("mount", "set", "mnt", "--overlay", "notes", code=11)
    assert (room / "notes").read_bytes() == b"my notes"
    room.run("capture", captured / "p5", "other")
    assert "another image" in room.run("mount", "other", "mnt", "--overlay", "changes", code=22)
    for words, code in (
        (("mount", "set", "mnt", "--overlay", "no/folder/x"), 11),
        (("mount", "set", "mnt", "--overlay", "x.imagefs"), 2),
        (("mount", "set", "mnt", "--native-rw"), 2),
        (("mount", "set", "captured", "--overlay", "fresh"), 50),
    ):
        (room / "captured").mkdir(exist_ok=True)
        (room / "captured/file").touch()
        room.run(*words, code=code)
    assert not (room / "fresh").exists(), "a mount that came to nothing leaves no overlay"
    assert not (room / "mnt").exists()


# -- native mounts --------------------------------------------------------------------------------

ALL = [word for number in range(1, 6) for word in ("--native", f"p{number}", f"n{number}")]


def test_every_file_system_is_mounted_read_only_and_undone(room: Room) -> None:
    need_tool("fusefat", "ntfs-3g")
    room.run("mount", "set", "mnt", *ALL)
    before = hashlib.sha256((room / "mnt/disk.raw").read_bytes()).hexdigest()
    for number in range(1, 6):
        folder = room / f"n{number}"
        assert (folder / "report.txt").read_bytes() == REPORT
        options = tool_text("findmnt", "--noheadings", "--output", "VFS-OPTIONS", folder).strip().split(",")
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
        with pytest.raises(OSError):
            (folder / "new").write_bytes(b"")
    for number in (1, 2, 3):
        assert not (room / f"n{number}/late.txt").exists(), "no journal is replayed"
    (listed,) = room.mounts()
    assert [native["volume"] for native in listed["natives"]] == ["p1", "p2", "p3", "p4", "p5"]
    assert sorted(native["device"] for native in listed["natives"]) == sorted(room.loops())
    for device in room.loops():
        assert tool_text("blockdev", "--getro", device).strip() == "1"
    assert f"p3 on {room / 'n3'}" in room.run("mount")
    assert hashlib.sha256((room / "mnt/disk.raw").read_bytes()).hexdigest() == before
    room.run("umount", "mnt")
    gone(room)


def gone(room: Room) -> None:
    """Nothing is left of mounts, loop devices and the directories that were made."""
    wait_until(lambda: not room.loops())
    assert room.mounts() == []
    assert not [path for path in room.folder.iterdir() if path.name.startswith(("n", "mnt"))]


def test_writable_native_mounts_go_to_the_overlay(room: Room) -> None:
    words = ("mount", "set", "mnt", "--overlay", "changes")
    room.run(*words, "--native-rw", *ALL[:12])
    for number in range(1, 4):
        assert (room / f"n{number}/late.txt").read_bytes() == b"only in the journal\n"
    for number in range(1, 5):
        (room / f"n{number}/new.txt").write_bytes(b"new\n")
    room.run("umount", "mnt")
    gone(room)
    room.run(*words, *ALL[:12])
    for number in range(1, 5):
        assert (room / f"n{number}/new.txt").read_bytes() == b"new\n"
    room.run("umount", "mnt")
    gone(room)


def test_who_holds_it_is_told_and_nothing_is_undone(room: Room) -> None:
    room.run("mount", "set", "mnt", *ALL[:6])
    for place in ("n1", "n2", "mnt"):
        with subprocess.Popen(["sleep", "60"], cwd=room / place) as holder:
            said = room.run("umount", "mnt", code=50)
            assert f"sleep (pid {holder.pid})" in said
            assert str(room / place) in said
            holder.kill()
        assert len(room.mounts()[0]["natives"]) == 2
    with subprocess.Popen(["sleep", "60"], cwd=room / "n1") as holder:
        room.run("umount", "--lazy", "mnt")
        holder.kill()
    gone(room)


@pytest.mark.parametrize("way", ["umount", "mount again"])
def test_a_killed_mount_is_undone_all_the_same(room: Room, way: str) -> None:
    room.run("mount", "set", "mnt", *ALL)
    os.kill(room.server(), signal.SIGKILL)
    wait_until(lambda: not room.mounts()[0]["alive"])
    assert len(room.mounts()[0]["natives"]) == 5
    if way == "mount again":
        room.run("mount", "set", "mnt", *ALL)
        assert (room / "n2/report.txt").read_bytes() == REPORT
    room.run("umount", "mnt")
    gone(room)


def test_a_killed_writable_mount_is_undone(room: Room) -> None:
    room.run("mount", "set", "mnt", "--overlay", "changes", "--native-rw", *ALL[:6])
    write_durably(room / "n1/synced.txt", b"synced\n")
    write_durably(room / "n2/synced.txt", b"synced\n")
    (room / "n1/lost.txt").write_bytes(b"maybe\n")
    os.kill(room.server(), signal.SIGKILL)
    wait_until(lambda: not room.mounts()[0]["alive"])
    room.run("umount", "mnt")
    gone(room)
    room.run("mount", "set", "mnt", "--overlay", "changes", "--native-rw", *ALL[:6])
    for number in (1, 2):
        assert (room / f"n{number}/synced.txt").read_bytes() == b"synced\n"
    room.run("umount", "mnt")
    run = room.run("mount", "set", "mnt", "--overlay", "changes")
    assert run is not None
    run_tool(["e2fsck", "-fn", room / "mnt/p1.raw"])
    run_tool(["xfs_repair", "-n", room / "mnt/p2.raw"])
    room.run("umount", "mnt")


def test_a_mount_that_is_told_to_end_undoes_them(room: Room) -> None:
    room.run("mount", "set", "mnt", *ALL[:6])
    os.kill(room.server(), signal.SIGTERM)
    wait_until(lambda: not (room / "mnt").exists())
    gone(room)


def test_what_is_in_the_way_is_told_and_nothing_is_left(room: Room) -> None:
    (room / "full").mkdir()
    (room / "full/x").touch()
    run_tool(["mount", "-t", "tmpfs", "tmpfs", str(make(room / "taken"))])
    for words, code, said in (
        (("p1", "full"), 50, "is not empty"),
        (("p1", "taken"), 50, "already a mount point"),
        (("p1", "no/where"), 50, "does not exist"),
        (("p1", "mnt"), 50, "one lies in the other"),
        (("p1", "mnt/in"), 50, "one lies in the other"),
        (("p9", "n9"), 40, "no volume p9"),
        (("x", "n9"), 2, "not a volume"),
    ):
        assert said in room.run("mount", "set", "mnt", "--native", "p2", "n2", "--native", *words, code=code)
        gone(room)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_volume_that_its_driver_refuses_takes_the_whole_mount_back(room: Room) -> None:
    """A superblock that is good enough to know the file system, and no more."""
    room.run("mount", "set", "mnt", "--overlay", "changes")
    with open(room / "mnt/p1.raw", "r+b") as volume:
        volume.seek(4096)
        volume.write(b"\xff" * MIB)
    room.run("umount", "mnt")
    said = room.run("mount", "set", "mnt", "--overlay", "changes", *ALL[3:6], *ALL[:3], code=50)
    assert "p1 (ext4) cannot be mounted" in said
    gone(room)


def test_without_root_it_is_refused_with_the_way_out(room: Room, captured: Path) -> None:
    """Root's user id and nothing else of it is enough to know that: a user of another id in a namespace."""
    need_tool("unshare")
    prefix = ("unshare", "--user", "--map-user=1000", "--keep-caps")
    said = room.run("mount", "set", "mnt", "--native", "p1", "n1", code=50, prefix=prefix)
    assert "only root can mount p1 natively" in said
    assert "sudo" in said
