"""Volumes inside volumes: disks that other tools made, what a kernel read of them, what is locked, lost or hostile."""

from __future__ import annotations

import configparser
import hashlib
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pyfsapfs
import pytest

from fixtures import inner
from imagefs.block.devices import open_source
from imagefs.block.views import BytesReader, LibraryFile, MarkedReader, SliceReader
from imagefs.browse.apart import open_apart
from imagefs.browse.apfsdisk import Disk
from imagefs.errors import Locked, UsageError
from imagefs.interfaces import Reader, State, Volume
from imagefs.ops.innervolumes import InnerVolumes, Secret, check_secrets
from imagefs.ops.volumeparser import lost_of_shadow
from imagefs.volume import read_table
from tests.browse.apfsdisks import CONTAINER, changed, disk_of
from tests.support.images import noise
from tests.support.oracles import need_tool, run_tool, source_file, unpacked_corpus_file


@contextmanager
def looked_into(path: Path, secrets: Mapping[str, Secret] | None = None) -> Iterator[InnerVolumes]:
    with closing(open_source(str(path))) as disk:
        parts = [(each, SliceReader(disk, each.start, each.length)) for each in read_table(disk).volumes]
        with closing(InnerVolumes(parts, secrets or {})) as found:
            yield found


def everything(found: InnerVolumes, count: int = 20) -> dict[str, Reader | None]:
    return {each.volume.id: each.reader for number in range(count) for each in found.inside(f"p{number}")}


def digest(reader: Reader | None) -> str:
    assert reader is not None
    made = hashlib.sha256()
    for at in range(0, reader.size, 1 << 20):
        made.update(reader.read_at(at, 1 << 20))
    return made.hexdigest()


@pytest.mark.parametrize("name", ["lvm", "raid"])
def test_every_volume_holds_what_the_kernel_read(name: str, tmp_path: Path) -> None:
    """Logical volumes, mirrors, partitions in a mirror, a volume group in a mirror, and one in LUKS2."""
    disk = inner.unpack(name, tmp_path / "disk")
    with looked_into(disk, {"p4": Secret(inner.PASSPHRASE)} if name == "lvm" else None) as found:
        readers = everything(found)
        for volume, facts in inner.answers(name)["volumes"].items():
            assert digest(readers[volume]) == facts["sha256"], volume


def test_what_holds_others_says_so(tmp_path: Path) -> None:
    with looked_into(inner.unpack("raid", tmp_path / "disk")) as found:
        states = {name: each.state for name, each in found.containers.items()}
        said = {name: each.message for name, each in found.containers.items()}
    assert states["p1"] == "open"
    assert "out of date" in said["p1"]
    assert "read from p2" in said["p1"]
    assert states["p2"] == "member"
    assert states["p7"] == states["p11"] == "refused"
    assert "RAID 5" in said["p7"]
    assert "RAID 0" in said["p11"]


def test_a_locked_volume_says_what_it_needs(tmp_path: Path) -> None:
    disk = inner.unpack("lvm", tmp_path / "disk")
    with looked_into(disk) as found:
        locked = found.containers["p4"]
        assert (locked.state, locked.needs) == ("locked", ("passphrase", "key file"))
        assert "--unlock p4" in locked.message
    with (
        pytest.raises(Locked, match=r"p4 \(LUKS2\) cannot be unlocked.*wrong"),
        looked_into(disk, {"p4": Secret(b"x")}),
    ):
        pass
    secrets = {"p1": Secret(b"x"), "p4": Secret(inner.PASSPHRASE)}
    with looked_into(disk, secrets), pytest.raises(UsageError, match="no locked volume p1"):
        check_secrets(secrets)


def test_damage_in_a_container_costs_the_container(tmp_path: Path) -> None:
    """The label of one physical volume, the superblock of one member, both copies of the LUKS header."""
    for name, places in (
        ("lvm", (1048576 + 520, 38797312 + 3000, 38797312 + 16384 + 3000)),
        ("raid", (1048576 + 4100,)),
    ):
        disk = inner.unpack(name, tmp_path / name)
        with disk.open("r+b") as file:
            for place in places:
                file.seek(place)
                file.write(b"\xff" * 16)
        with looked_into(disk) as found:
            assert everything(found)
            if name == "lvm":
                assert found.containers["p4"].state == "refused"
                assert "LUKS header is damaged" in found.containers["p4"].message


# -- BitLocker ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bitlocker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disks of cryptsetup's tests."""
    folder = tmp_path_factory.mktemp("bitlocker")
    with tarfile.open(source_file("cryptsetup", "tests/bitlk-images.tar.xz", folder)) as archive:
        archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    return folder / "bitlk-images"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bitlk-aes-xts-128", "PW"),
        ("bitlk-aes-cbc-elephant-128", "RP"),
        ("bitlk-togo-aes-xts-128", "PW"),
        ("bitlk-aes-cbc-128-4k", "PW"),
    ],
)
def test_bitlocker_comes_to_the_published_digest(bitlocker: Path, name: str, word: str) -> None:
    """By password and recovery key, as cryptsetup's own list has them; BitLocker To Go too."""
    conf = configparser.ConfigParser()
    conf.read(bitlocker / "images.conf")
    with looked_into(bitlocker / f"{name}.img", {"p0": Secret(conf[name][word].encode())}) as found:
        assert digest(everything(found)["p0.1"]) == conf[name]["SHA256SUM"]


def test_bitlocker_by_a_startup_key(bitlocker: Path) -> None:
    disk = bitlocker / "bitlk-aes-xts-128-startup-key.img"
    key = bitlocker / "4381F759-C4F8-4DE0-BB61-FC33A831BDA5.BEK"
    other = bitlocker / "AA80A52B-9B66-47AE-B097-33F536FFBB07.BEK"
    with looked_into(disk, {"p0": Secret(key.read_bytes(), str(key))}) as found:
        content = everything(found)["p0.1"]
        assert content is not None
        assert content.read_at(3, 8) == b"NTFS    "
    with pytest.raises(Locked), looked_into(disk, {"p0": Secret(b"", str(other))}):
        pass


def test_bitlocker_that_is_locked_names_its_protectors(bitlocker: Path) -> None:
    disk = bitlocker / "bitlk-aes-xts-128.img"
    with looked_into(disk) as found:
        needs = found.containers["p0"].needs
    assert needs == ("password", "recovery key 64311DEA-4587-4029-924A-BA299647998E")
    for wrong in (b"nobody", b"000000-" * 7 + b"000000", b"\xff\xfe"):
        with (
            pytest.raises(Locked, match=r"p0 \(BitLocker\) cannot be unlocked"),
            looked_into(disk, {"p0": Secret(wrong)}),
        ):
            pass


def test_damaged_bitlocker_never_takes_us_down(bitlocker: Path, tmp_path: Path) -> None:
    disk = tmp_path / "damaged.img"
    shutil.copyfile(bitlocker / "bitlk-aes-xts-128.img", disk)
    with disk.open("r+b") as file:
        head = file.read(512)
        places = [int.from_bytes(head[at : at + 8], "little") for at in (176, 184, 192)]
        for place in places:
            file.seek(place + 8)
            file.write(noise(200, seed=place))
    with looked_into(disk) as found:
        assert found.containers["p0"].state == "refused"


# -- shadow copies --------------------------------------------------------------------------------


def test_shadow_copies_are_the_volume_as_it_was(tmp_path: Path) -> None:
    """plaso's disk: two points in time, at which other files were in the root folder."""
    need_tool("qemu-img")
    packed = unpacked_corpus_file("plaso/test_data/vsstest.qcow2", tmp_path)
    run_tool(["qemu-img", "convert", "-O", "raw", packed, tmp_path / "disk"])
    with looked_into(tmp_path / "disk") as found:
        readers = everything(found)
        assert list(readers) == ["p0@20131203T063509Z", "p0@20131203T063748Z"]
        assert [made_ns // 10**6 for made_ns in found.made.values() if made_ns] == [
            1386052509736,
            1386052668919,
        ]
        names = []
        for reader in readers.values():
            assert reader is not None
            with closing(open_apart(reader)) as fs:
                names.append({each.name for each in fs.children(fs.root()) if not each.name.startswith(b"$")})
    assert names == [
        {b"System Volume Information", b"syslog"},
        {b"System Volume Information", b"another_file", b"syslog.gz"},
    ]


def test_what_a_shadow_copy_lacks_is_what_the_volume_lost_and_no_store_keeps() -> None:
    unit = 16 << 10
    volume = MarkedReader(
        BytesReader(bytes(10 * unit)), [unit // 2, 6 * unit], [4 * unit, 7 * unit], State.SKIPPED
    )
    kept = b"".join((number * unit).to_bytes(8, "little") for number in (2, 2, 6, 9))
    lost = lost_of_shadow(volume, lambda: kept, volume.size)
    assert [(each.offset, each.length) for each in lost] == [
        (unit // 2, 2 * unit - unit // 2),
        (3 * unit, unit),
    ]
    assert lost_of_shadow(BytesReader(bytes(unit)), lambda: kept, unit) == []


# -- snapshots of APFS ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with 512 snapshots, in each of which a file says which one it is; it is not in the volume itself."""
    path = tmp_path_factory.mktemp("apfs") / "snapshots"
    path.write_bytes(disk_of("snapshot"))
    return path


def test_snapshots_are_the_volume_as_it_was(snapshots: Path) -> None:
    """By a worker of ours, and by libfsapfs, for which each is a container like any other."""
    with looked_into(snapshots) as found:
        inside = list(found.inside("p0"))
        assert [each.volume.name for each in inside] == [f"Snapshot {number}" for number in range(512)]
        assert {each.volume.role for each in inside} == {"snapshot"}
        times = [each.made_ns for each in inside]
        assert times == sorted(times, key=lambda time: time or 0)
        assert len({each.volume.id for each in inside}) == 512
        assert inside[0].volume.id == "p0@20251017T105535Z"
        for each in inside[::73]:
            assert each.reader is not None
            expected = f"{each.volume.name}\n".encode()
            with closing(open_apart(each.reader)) as fs:
                content = fs.open(fs.lookup(b"/file"))
                assert content.read_at(0, content.size) == expected
            container = pyfsapfs.container()
            container.open_file_object(LibraryFile(each.reader))
            theirs = container.get_volume(0).get_file_entry_by_path("/file")
            assert theirs.read_buffer(theirs.size) == expected
            located = found.located(each.volume.id)
            assert located.pieces[0][:2] == (0, 0)
            assert sum(piece.length for piece in located.pieces) == each.reader.size - 4096


def test_damage_of_a_snapshot_costs_that_one_and_is_told(snapshots: Path, tmp_path: Path) -> None:
    disk = bytearray(snapshots.read_bytes())
    known = Disk(BytesReader(bytes(disk)))
    (volume,) = known.volumes()
    second = known.snapshots(volume)[1]
    disk[second.block * 4096 + 200] ^= 1
    (tmp_path / "disk").write_bytes(disk)
    with looked_into(tmp_path / "disk") as found:
        names = [each.volume.name for each in found.inside("p0")]
        assert names == ["Snapshot 0", *(f"Snapshot {number}" for number in range(2, 512))]
        assert "snapshots that cannot be read (1)" in found.containers["p0"].message
    disk[volume.snapshots * 4096 + 200] ^= 1
    (tmp_path / "disk").write_bytes(disk)
    with looked_into(tmp_path / "disk") as found:
        assert list(found.inside("p0")) == []
        container = found.containers["p0"]
        assert (container.state, "snapshots that cannot be read" in container.message) == ("open", True)


def test_a_snapshot_is_of_one_volume(tmp_path: Path) -> None:
    """Nobody knows how others in the container were then, so they are not shown."""

    def one_more(raw: bytearray) -> None:
        raw[192:200] = (12345).to_bytes(8, "little")

    (tmp_path / "disk").write_bytes(changed(disk_of("snapshot"), one_more, CONTAINER))
    with looked_into(tmp_path / "disk") as found:
        each = list(found.inside("p0"))[100]
        assert (each.volume.name, each.reader is not None) == ("Snapshots: Snapshot 100", True)
        with closing(open_apart(each.reader)) as fs:  # type: ignore[arg-type]
            content = fs.open(fs.lookup(b"/file"))
            assert content.read_at(0, 99) == b"Snapshot 100\n"
            assert {entry.path for entry in fs.children(fs.root())} == {b"/file", b"/.fseventsd"}


def test_the_names_of_snapshots_stay_when_older_ones_are_deleted(snapshots: Path) -> None:
    """But for the next of the same second."""
    with looked_into(snapshots) as found:
        there = [each.volume.id for each in found.inside("p0")]
    assert there[1] == "p0@20251017T105535Z~8"  # by its transaction
    assert there[3] == "p0@20251017T105536Z"


def test_secrets_of_apfs(tmp_path: Path) -> None:
    """Also where its snapshots are damaged; and what is told where nothing opens it."""
    disk, path = disk_of("encrypted"), tmp_path / "disk"
    path.write_bytes(disk)
    with looked_into(path) as found:
        assert (found.containers["p0"].state, found.containers["p0"].is_file_system) == ("locked", True)
    with (
        pytest.raises(Locked, match=r"p0 \(APFS\) cannot be unlocked.*wrong"),
        looked_into(path, {"p0": Secret(b"x")}),
    ):
        pass
    (volume,) = Disk(BytesReader(disk)).volumes()
    hurt = bytearray(disk)
    hurt[volume.snapshots * 4096 + 200] ^= 1
    path.write_bytes(hurt)
    with looked_into(path) as found:
        message = found.containers["p0"].message
        assert "--unlock p0" in message
        assert "snapshots that cannot be read" in message
    with looked_into(path, {"p0": Secret(b"password")}) as found:
        assert "snapshots that cannot be read" in found.containers["p0"].message
        assert len(found.keys_of("p0")) == len(found.keys_of("p0@20251017T105535Z")) == 1

    def no_bag(raw: bytearray) -> None:
        raw[1296:1312] = bytes(16)

    path.write_bytes(changed(disk, no_bag, CONTAINER))
    secrets = {"p0": Secret(b"password")}
    with looked_into(path, secrets) as found:
        assert (found.containers["p0"].state, found.keys_of("p0")) == ("refused", {})
        with pytest.raises(Locked, match="the Mac's chip"):
            check_secrets(secrets)


# -- ids ------------------------------------------------------------------------------------------


def test_ids_tell_where_a_volume_lies() -> None:
    assert Volume(3, 512, 512).id == "p3"
    assert Volume(1, 0, 512, inside="p3").id == "p3.1"
    assert Volume(2, 0, 512, inside="p3.1").id == "p3.1.2"
    assert Volume(1, 0, 512, inside="p2", moment="20261117T020004Z").id == "p2@20261117T020004Z"
