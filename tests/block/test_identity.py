"""Model, serial and WWN out of laid-out machines: SCSI, NVMe, virtio, USB, mapper, and liars."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.identity import SourceIdentity, clean, identify_source
from imagefs.block.sysfs import HOST
from tests.block.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def page80(serial: bytes) -> bytes:
    return struct.pack(">BBH", 0, 0x80, len(serial)) + serial


def test_a_scsi_disk_and_its_partition(machine: Machine) -> None:
    machine.disk(
        "sda",
        "8:0",
        attributes={
            "device/model": "Samsung SSD 860 \n",
            "device/vpd_pg80": page80(b"     S3Z9NB0K123456"),
            "device/wwid": "naa.5002538e40a1b2c3\n",
        },
    )
    machine.partition("sda", 3, "8:3")
    system = machine.system()
    disk = identify_source("/dev/sda", 1000, system=system)
    assert disk == SourceIdentity(
        path="/dev/sda",
        size=1000,
        model="Samsung SSD 860",
        serial="S3Z9NB0K123456",
        wwn="naa.5002538e40a1b2c3",
    )
    part = identify_source("/dev/sda3", 10, system=system)
    assert (part.serial, part.partition, part.size) == (disk.serial, 3, 10)


def test_nvme_virtio_and_mapper(machine: Machine) -> None:
    nvme = {"device/model": "WD_BLACK SN850  ", "device/serial": "21 ABC ", "wwid": "eui.e8238fa6bf530001"}
    machine.disk("nvme0n1", "259:0", attributes=nvme)
    machine.disk("vda", "254:0", attributes={"serial": "vol-0abc", "device/vendor": "0x1af4"})
    machine.disk("dm-0", "253:0", attributes={"dm/uuid": "LVM-abcDEF", "dm/name": "vg-root"})
    system = machine.system()
    found = identify_source("/dev/nvme0n1", 1, system=system)
    assert (found.model, found.serial, found.wwn) == ("WD_BLACK SN850", "21 ABC", "eui.e8238fa6bf530001")
    assert identify_source("/dev/vda", 1, system=system).serial == "vol-0abc"
    assert identify_source("/dev/dm-0", 1, system=system).serial == "LVM-abcDEF"


def test_udev_fills_the_gaps_but_the_kernel_comes_first(machine: Machine) -> None:
    machine.disk("sdb", "8:16", attributes={"device/model": "Flash Disk"})
    machine.udev("8:16", ID_MODEL="Other_Name", ID_SERIAL_SHORT="4C53=1", ID_WWN="0x5000c500a1b2c3d4")
    found = identify_source("/dev/sdb", 1, system=machine.system())
    assert (found.model, found.serial, found.wwn) == ("Flash Disk", "4C53=1", "0x5000c500a1b2c3d4")


@pytest.mark.parametrize("serial", ["0000000000000000", "", "   ", "00-00.0"])
def test_a_serial_number_of_zeros_is_none(machine: Machine, serial: str) -> None:
    machine.disk("sdb", "8:16", attributes={"serial": serial})
    assert identify_source("/dev/sdb", 1, system=machine.system()).serial == ""


@pytest.mark.parametrize(
    "page",
    [b"", b"\0\x80", b"\0\x83\0\x04abcd", b"\0\x80\0\0", b"\0\x80\xff\xff"],
    ids=["empty", "cut", "other page", "no length", "too long"],
)
def test_a_bad_vital_product_page_is_no_serial_number(machine: Machine, page: bytes) -> None:
    machine.disk("sda", "8:0", attributes={"device/vpd_pg80": page})
    assert identify_source("/dev/sda", 1, system=machine.system()).serial == ""


def test_what_a_device_says_is_cleaned_and_bounded(machine: Machine) -> None:
    machine.disk("sda", "8:0", attributes={"device/model": b"evil\x1b[31m\xff\n\tname\0" + b"x" * 100_000})
    model = identify_source("/dev/sda", 1, system=machine.system()).model
    assert model.startswith("evil [31m name xxx")
    assert len(model) == 128
    assert model.encode("utf-8")


@given(st.text(max_size=300), st.integers(1, 64))
def test_cleaned_text_is_one_printable_line(text: str, limit: int) -> None:
    shown = clean(text, limit)
    assert len(shown) <= limit
    assert shown == "" or shown.isprintable()
    assert "  " not in shown
    assert clean(shown, limit) == shown.strip()


def test_files_and_unknown_devices_have_only_path_and_size(machine: Machine, tmp_path: Path) -> None:
    machine.node("/dev/unlisted", "99:9")
    machine.file("/disk.raw")
    for path in ("/dev/unlisted", "/disk.raw", "/missing"):
        assert identify_source(path, 7, system=machine.system()) == SourceIdentity(path, 7)
    (tmp_path / "disk.raw").touch()
    assert identify_source(str(tmp_path / "disk.raw"), 0) == SourceIdentity(str(tmp_path / "disk.raw"), 0)


def test_the_devices_of_this_machine_can_be_told() -> None:
    """Whatever they are, nothing fails and partitions point to their disk."""
    for entry in sorted(Path("/sys/class/block").iterdir()):
        number = (entry / "dev").read_text().strip()
        assert HOST.directory(number) == entry.resolve()
        assert HOST.name(number).startswith("/dev/")
        path = HOST.name(number)
        found = identify_source(path, 1)
        if HOST.number(path) == number:
            assert found.partition == int(
                (entry / "partition").read_text() if (entry / "partition").exists() else 0
            )
