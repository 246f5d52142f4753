"""Who uses a device: laid-out machines of all kinds, and real loop devices mounted by the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imagefs.block import usage
from imagefs.block.usage import MountUse, check_not_mounted_rw, check_target_free
from imagefs.errors import SourceError, TargetError
from tests.block.conftest import MakeLoop
from tests.block.machine import Machine
from tests.support.oracles import root_only, run_tool

Mounted = Callable[[str], tuple[str, Path, Path]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A desktop: sda with ESP, a mounted ext4 and an LVM volume with root and swap; an idle sdb."""
    made = Machine(tmp_path / "machine")
    made.disk("sda", "8:0")
    made.partition("sda", 1, "8:1")
    made.partition("sda", 2, "8:2")
    pv = made.partition("sda", 3, "8:3")
    made.disk("sdb", "8:16")
    made.partition("sdb", 1, "8:17")
    for index, name in enumerate(("vg-root", "vg-swap")):
        mapped = made.disk(f"dm-{index}", f"253:{index}", attributes={"dm/name": f"{name}\n"})
        made.stack(mapped, pv)
        made.node(f"/dev/mapper/{name}", f"253:{index}")
    made.mount("proc", "/proc", "0:21", fstype="proc")
    made.mount("/dev/mapper/vg-root", "/", "253:0")
    made.mount("/dev/sda1", "/boot/efi", "8:1", fstype="vfat")
    made.mount("/dev/sda2", "/media/old disk", "8:2", options="ro,noload")
    made.swap("/dev/dm-1")
    made.folder("/", on="253:0")
    made.folder("/media/old disk", on="8:2")
    return made


# -- mounts ---------------------------------------------------------------------------------------


def test_a_disk_is_mounted_where_its_partitions_and_volumes_are(machine: Machine) -> None:
    assert usage.mounts_of("/dev/sda", system=machine.system()) == [
        MountUse("/", False, "/dev/mapper/vg-root"),
        MountUse("/boot/efi", False, "/dev/sda1"),
        MountUse("/media/old disk", True, "/dev/sda2"),
    ]


def test_a_partition_is_mounted_only_where_it_is_itself(machine: Machine) -> None:
    system = machine.system()
    assert usage.mounts_of("/dev/sda1", system=system) == [MountUse("/boot/efi", False, "/dev/sda1")]
    assert usage.mounts_of("/dev/sda3", system=system) == [MountUse("/", False, "/dev/mapper/vg-root")]
    assert usage.mounts_of("/dev/mapper/vg-root", system=system) == [
        MountUse("/", False, "/dev/mapper/vg-root")
    ]
    for idle in ("/dev/sdb", "/dev/sdb1", "/dev/mapper/vg-swap", "/dev/nowhere", "/"):
        assert usage.mounts_of(idle, system=system) == []


def test_a_read_only_bind_of_a_writable_file_system_is_writable(machine: Machine) -> None:
    machine.mount("/dev/sdb1", "/mnt", "8:17")
    text = (machine.root / "proc/self/mountinfo").read_text()
    (machine.root / "proc/self/mountinfo").write_text(text.replace("/mnt rw,", "/mnt ro,"))
    assert usage.mounts_of("/dev/sdb", system=machine.system()) == [MountUse("/mnt", False, "/dev/sdb1")]


def test_loop_devices_over_a_file_and_over_a_disk(machine: Machine) -> None:
    machine.file("/data/disk.raw", on="253:0")
    machine.loop(0, "/data/disk.raw")
    machine.partition("loop0", 1, "259:0")
    machine.loop(1, "/dev/sdb1")
    machine.loop(2, "/data/deleted.raw (deleted)")
    machine.mount("/dev/loop0p1", "/mnt/a", "259:0")
    machine.mount("/dev/loop1", "/mnt/b", "7:1", options="ro")
    system = machine.system()
    assert usage.mounts_of("/data/disk.raw", system=system) == [MountUse("/mnt/a", False, "/dev/loop0p1")]
    assert usage.mounts_of("/dev/sdb", system=system) == [MountUse("/mnt/b", True, "/dev/loop1")]


def test_btrfs_over_two_disks_is_mounted_from_both(machine: Machine) -> None:
    second = machine.disk("sdc", "8:32")
    machine.btrfs("d3b0", machine.root / "sys/devices/pci0/sdb/sdb1", second)
    machine.mount("/dev/sdb1", "/pool", "0:45", fstype="btrfs")
    for path in ("/dev/sdb", "/dev/sdb1", "/dev/sdc"):
        assert usage.mounts_of(path, system=machine.system()) == [MountUse("/pool", False, "/dev/sdb1")]


def test_fuse_mounts_of_devices_and_of_files(machine: Machine) -> None:
    machine.file("/data/ntfs.img")
    machine.mount("/dev/sdb1", "/mnt/a", "8:17", fstype="fuseblk")
    machine.mount("/data/ntfs.img", "/mnt/b", "0:50", fstype="fuse.ntfs-3g")
    machine.mount("host:/dev/sdb", "/mnt/c", "0:51", fstype="fuse.sshfs")
    system = machine.system()
    assert usage.mounts_of("/dev/sdb", system=system) == [MountUse("/mnt/a", False, "/dev/sdb1")]
    assert usage.mounts_of("/data/ntfs.img", system=system) == [MountUse("/mnt/b", False, "/data/ntfs.img")]


def test_damaged_or_missing_proc_files_are_no_mounts(machine: Machine) -> None:
    path = machine.root / "proc/self/mountinfo"
    path.write_bytes(
        b"\n \n1 2 3\n30 1 8:17 / /x rw - \n30 1 8:17 / /\xff\\040\\999 rw - ext4 /dev/sdb1 rw\n"
    )
    found = usage.mounts_of("/dev/sdb", system=machine.system())
    assert [os.fsencode(use.mountpoint) for use in found] == [b"/\xff \\999"]
    path.unlink()
    (machine.root / "proc/swaps").unlink()
    assert usage.mounts_of("/dev/sda", system=machine.system()) == []
    assert usage.swaps_of("/dev/sda", system=machine.system()) == []


# -- swap, holders, partitions --------------------------------------------------------------------


def test_swap_is_found_through_the_mapper_and_in_files(machine: Machine) -> None:
    machine.file("/swap file", on="253:0")
    machine.swap("/dev/dm-1", "/swap file")
    system = machine.system()
    assert usage.swaps_of("/dev/sda", system=system) == ["/dev/dm-1"]
    assert usage.swaps_of("/swap file", system=system) == ["/swap file"]
    assert usage.swaps_of("/dev/sdb", system=system) == []
    assert usage.swaps_of("/missing", system=system) == []


def test_holders_are_named_as_people_know_them(machine: Machine) -> None:
    system = machine.system()
    volumes = ["/dev/mapper/vg-root", "/dev/mapper/vg-swap"]
    assert usage.holders_of("/dev/sda", system=system) == volumes
    assert usage.holders_of("/dev/sda3", system=system) == volumes
    assert usage.holders_of("/dev/sda1", system=system) == []
    assert usage.holders_of("/dev/sdb", system=system) == []


def test_partitions_come_in_the_order_of_their_numbers(machine: Machine) -> None:
    for index in (12, 10, 2):
        machine.partition("sdb", index, f"259:{index}")
    system = machine.system()
    assert usage.partitions_of("/dev/sdb", system=system) == [f"/dev/sdb{index}" for index in (1, 2, 10, 12)]
    for path in ("/dev/sdb1", "/", "/dev/nowhere"):
        assert usage.partitions_of(path, system=system) == []


def test_a_name_with_an_exclamation_mark_is_a_folder(machine: Machine) -> None:
    machine.disk("cciss!c0d0", "104:0")
    machine.mount("/dev/cciss/c0d0", "/raid", "104:0")
    found = usage.mounts_of("/dev/cciss/c0d0", system=machine.system())
    assert found == [MountUse("/raid", False, "/dev/cciss/c0d0")]


# -- the two checks -------------------------------------------------------------------------------


def test_a_source_mounted_read_write_is_refused_with_the_way_out(machine: Machine) -> None:
    with pytest.raises(SourceError, match="/dev/sda1 is mounted read-write at /boot/efi") as caught:
        check_not_mounted_rw("/dev/sda1", system=machine.system())
    assert "--snapshot live" in caught.value.hint
    assert caught.value.data["mountpoint"] == "/boot/efi"
    for path in ("/dev/sda2", "/dev/sdb", "/dev/mapper/vg-swap"):
        check_not_mounted_rw(path, system=machine.system())


def test_a_target_must_be_free_of_all_use(machine: Machine) -> None:
    machine.file("/data/disk.raw")
    machine.loop(5, "/data/disk.raw")
    md = machine.disk("md0", "9:0")
    machine.stack(md, machine.disk("sdc", "8:32"), machine.disk("sdd", "8:48"))
    reasons = {
        "/dev/sda": "/dev/mapper/vg-root is mounted at /",
        "/dev/sda2": "/dev/sda2 is mounted at /media/old disk",
        "/dev/dm-1": "is swap space",
        "/dev/sdd": "/dev/md0 is built on it",
        "/data/disk.raw": "/dev/loop5 is built on it",
    }
    hints = []
    for path, reason in reasons.items():
        with pytest.raises(TargetError, match=reason) as caught:
            check_target_free(path, system=machine.system())
        hints.append(caught.value.hint)
        assert caught.value.exit_code == 11
    assert hints[1:3] == ["unmount it with: umount '/media/old disk'", "turn it off with: swapoff /dev/dm-1"]
    for path in ("/dev/sdb", "/dev/sdb1", "/dev/md0", "/dev/loop5", "/data/none"):
        check_target_free(path, system=machine.system())


# -- what lies on what ----------------------------------------------------------------------------


def test_a_set_lies_on_every_device_under_its_folder(machine: Machine) -> None:
    system = machine.system()
    under = {path: usage.lies_on("/home/me/set", path, system=system) for path in NODES}
    assert [path for path, inside in under.items() if inside] == ["/dev/sda", "/dev/sda3", "/dev/dm-0"]


NODES = ("/dev/sda", "/dev/sda1", "/dev/sda2", "/dev/sda3", "/dev/sdb", "/dev/sdb1", "/dev/dm-0", "/dev/dm-1")


def test_a_set_on_another_disk_does_not(machine: Machine) -> None:
    machine.mount("/dev/sdb1", "/backup", "8:17")
    machine.folder("/backup", on="8:17")
    system = machine.system()
    assert not usage.lies_on("/backup/set", "/dev/sda", system=system)
    assert usage.lies_on("/backup/set", "/dev/sdb", system=system)
    assert usage.lies_on("/backup", "/dev/sdb1", system=system)


def test_a_set_inside_an_image_file_lies_on_it_and_on_its_disk(machine: Machine) -> None:
    machine.mount("/dev/sdb1", "/data", "8:17")
    machine.folder("/data", on="8:17")
    machine.file("/data/disk.raw", on="8:17")
    machine.loop(0, "/data/disk.raw")
    machine.mount("/dev/loop0", "/inner", "7:0")
    machine.folder("/inner", on="7:0")
    system = machine.system()
    for path, expected in {
        "/data/disk.raw": True,
        "/dev/loop0": True,
        "/dev/sdb1": True,
        "/dev/sdb": True,
        "/dev/sda": False,
    }.items():
        assert usage.lies_on("/inner/set", path, system=system) is expected, path


def test_a_set_on_btrfs_lies_on_all_its_disks(machine: Machine) -> None:
    second = machine.disk("sdc", "8:32")
    machine.btrfs("d3b0", machine.root / "sys/devices/pci0/sdb/sdb1", second)
    machine.mount("/dev/sdb1", "/pool", "0:45", fstype="btrfs")
    machine.folder("/pool", on="0:46")  # a subvolume has a number of its own
    for path in ("/dev/sdb", "/dev/sdb1", "/dev/sdc"):
        assert usage.lies_on("/pool/set", path, system=machine.system())
    assert not usage.lies_on("/pool/set", "/dev/sda", system=machine.system())


def test_a_set_on_an_overlay_lies_where_its_upper_layer_does(machine: Machine) -> None:
    machine.mount("/dev/sdb1", "/store", "8:17")
    machine.folder("/store/upper", on="8:17")
    machine.mount(
        "overlay", "/merged", "0:60", fstype="overlay", options="rw,lowerdir=/,upperdir=/store/upper"
    )
    machine.folder("/merged", on="0:60")
    assert usage.lies_on("/merged/set", "/dev/sdb", system=machine.system())
    assert not usage.lies_on("/merged/set", "/dev/sda", system=machine.system())


def test_a_set_on_bcachefs_lies_on_all_named_devices(machine: Machine) -> None:
    machine.mount("/dev/sdb1:/dev/sda2", "/pool", "0:70", fstype="bcachefs")
    machine.folder("/pool", on="0:70")
    for path in ("/dev/sda2", "/dev/sda", "/dev/sdb"):
        assert usage.lies_on("/pool/set", path, system=machine.system())


def test_the_last_of_two_mounts_on_one_point_counts(machine: Machine) -> None:
    machine.mount("/dev/sda2", "/mnt", "8:2")
    machine.mount("/dev/sdb1", "/mnt", "0:80", fstype="fuse.exfat")
    machine.folder("/mnt", on="0:80")
    assert usage.lies_on("/mnt/set", "/dev/sdb", system=machine.system())
    assert not usage.lies_on("/mnt/set", "/dev/sda", system=machine.system())


def test_devices_and_files_overlap_in_both_directions(machine: Machine) -> None:
    machine.file("/root.img", on="253:0")
    system = machine.system()
    pairs = {
        ("/dev/sda", "/dev/sda1"): True,
        ("/dev/sda1", "/dev/sda2"): False,
        ("/dev/sda", "/dev/sdb"): False,
        ("/dev/sda3", "/dev/mapper/vg-swap"): True,
        ("/dev/mapper/vg-root", "/dev/mapper/vg-swap"): False,
        ("/root.img", "/dev/sda"): True,
        ("/root.img", "/root.img"): True,
        ("/new.img", "/dev/sda"): True,
        ("/new.img", "/root.img"): False,
        ("/dev/sdb", "/dev/sdb"): True,
    }
    for (one, other), expected in pairs.items():
        assert usage.overlaps(one, other, system=system) is expected, (one, other)
        assert usage.overlaps(other, one, system=system) is expected, (other, one)


def test_a_tree_that_goes_in_circles_is_walked_once(machine: Machine) -> None:
    one = machine.disk("dm-7", "253:7")
    two = machine.disk("dm-8", "253:8")
    machine.stack(one, two)
    machine.stack(two, one)
    machine.loop(0, "/dev/loop0")
    machine.mount("/self.img", "/self", "0:90", fstype="fuse.x")
    machine.file("/self.img", on="0:90")
    machine.folder("/self", on="0:90")
    system = machine.system()
    assert usage.holders_of("/dev/dm-7", system=system) == ["/dev/dm-8"]
    assert usage.lies_on("/dev/dm-7", "/dev/dm-8", system=system)
    assert usage.mounts_of("/dev/loop0", system=system) == []
    assert usage.lies_on("/self/x", "/self.img", system=system)
    (machine.root / "sys/dev/block/66:6").symlink_to("66:6")
    machine.node("/dev/strange", "66:6")
    assert usage.mounts_of("/dev/strange", system=system) == []


# -- this machine ---------------------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("options", ["rw", "ro"])
def test_a_real_mount_is_seen_from_its_device_and_its_file(mounted_ext4: Mounted, options: str) -> None:
    device, backing, place = mounted_ext4(options)
    expected = MountUse(str(place), options == "ro", device)
    assert usage.mounts_of(device) == [expected]
    assert [(use.mountpoint, use.read_only) for use in usage.mounts_of(str(backing))] == [
        (str(place), options == "ro")
    ]
    if options == "rw":
        with pytest.raises(SourceError, match="read-write"):
            check_not_mounted_rw(str(backing))
    else:
        check_not_mounted_rw(str(backing))
        check_not_mounted_rw(device)
    assert usage.holders_of(str(backing)) == [device]


@root_only
def test_a_real_set_inside_a_mount_lies_on_the_image_file(mounted_ext4: Mounted, tmp_path: Path) -> None:
    device, backing, place = mounted_ext4("rw")
    link = tmp_path / "link"
    link.symlink_to(place)
    for folder in (place, place / "not yet" / "made", link / "lost+found"):
        assert usage.lies_on(str(folder), device)
        assert usage.lies_on(str(folder), str(backing))
    assert not usage.lies_on(str(tmp_path), device)
    assert not usage.lies_on(str(tmp_path), str(backing))


@root_only
def test_a_loop_over_a_loop_is_seen_through(tmp_path: Path, make_loop: MakeLoop) -> None:
    backing = tmp_path / "disk.raw"
    backing.write_bytes(bytes(1 << 20))
    lower = make_loop(backing)
    upper = make_loop(Path(lower), "--offset=4096")
    assert usage.holders_of(lower) == [upper]
    assert usage.holders_of(str(backing)) == sorted([lower, upper])
    assert usage.overlaps(upper, str(backing))


@root_only
def test_an_idle_real_device_is_free(tmp_path: Path, make_loop: MakeLoop) -> None:
    backing = tmp_path / "disk.raw"
    backing.write_bytes(bytes(1 << 20))
    device = make_loop(backing)
    check_target_free(device)
    check_not_mounted_rw(device)
    assert usage.partitions_of(device) == []
    with pytest.raises(TargetError, match="is built on it"):
        check_target_free(str(backing))


@root_only
def test_real_swap_is_seen(tmp_path: Path, make_loop: MakeLoop) -> None:
    backing = tmp_path / "swap.raw"
    backing.write_bytes(bytes(1 << 20))
    device = make_loop(backing)
    run_tool(["mkswap", device])
    run_tool(["swapon", device])
    try:
        for path in (device, str(backing)):
            assert usage.swaps_of(path) == [device]
            with pytest.raises(TargetError, match="is swap space"):
                check_target_free(path)
    finally:
        run_tool(["swapoff", device])
