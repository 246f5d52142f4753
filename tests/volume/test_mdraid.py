"""Superblocks of Linux RAID, on a disk whose arrays a kernel made: against mdadm, damaged, and which member counts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import inner
from imagefs.block.views import BytesReader, SliceReader
from imagefs.volume import read_table
from imagefs.volume.facts import Window
from imagefs.volume.mdraid import Member, freshest, is_stale, read_member
from tests.support.oracles import need_tool, tool_text


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    raw = inner.unpack("raid", tmp_path_factory.mktemp("raid") / "raid.img").read_bytes()
    table = read_table(BytesReader(raw))
    return {each.id: raw[each.start : each.start + each.length] for each in table.volumes}


def member_of(part: bytes) -> Member | None:
    return read_member(Window(BytesReader(part)))


def test_every_member_is_as_mdadm_says(parts: dict[str, bytes], tmp_path: Path) -> None:
    need_tool("mdadm")
    versions = set()
    for name, part in parts.items():
        path = tmp_path / f"{name}.img"
        path.write_bytes(part)
        said = dict(re.findall(r"^ *([A-Z][\w ]+?) : (.*)$", tool_text("mdadm", "--examine", path), re.M))
        found = member_of(part)
        assert found is not None, name
        versions.add(found.version)
        assert said["Version"].startswith(found.version)
        assert said.get("Array UUID", said.get("UUID", "")).split(" ")[0].replace(
            ":", ""
        ) == found.array.replace("-", "")
        assert said["Raid Level"] == f"raid{found.level}"
        assert int(said["Raid Devices"]) == found.members
        assert said["Events"] in (str(found.events), f"{found.events >> 32}.{found.events & 0xFFFFFFFF}")
        offset = int(said.get("Data Offset", "0 sectors").split()[0]) * 512
        assert found.start == offset
        if found.level == 1:
            assert int(said["Array Size"].split()[0]) * 1024 == found.size
        role = said.get("Device Role", f"Active device {found.role}")
        assert role == f"Active device {found.role}"
    assert versions == {"0.90", "1.0", "1.1", "1.2"}


def test_no_byte_of_a_superblock_can_change_unnoticed(parts: dict[str, bytes]) -> None:
    """Flips are refused or, where no checksum reaches, change nothing that is told."""
    for name, at, length in (("p1", 4096, 4096), ("p5", 0, 4096), ("p3", len(parts["p3"]) - 65536, 4096)):
        sound = member_of(parts[name])
        assert sound is not None
        for place in range(at, at + length, 3):
            block = bytearray(parts[name])
            block[place] ^= 0x41
            found = member_of(bytes(block))
            assert found in (None, sound), (name, place)


def test_events_decide_which_member_is_read(parts: dict[str, bytes]) -> None:
    old, new = member_of(parts["p1"]), member_of(parts["p2"])
    assert old is not None
    assert new is not None
    assert old.array == new.array
    assert old.events < new.events
    assert freshest([old, new]) is new
    assert is_stale(old, new)
    assert not is_stale(new, new)
    assert not is_stale(replace(new, events=new.events - 1), new)


def test_a_member_that_is_not_whole_is_never_read(parts: dict[str, bytes]) -> None:
    sound = member_of(parts["p1"])
    assert sound is not None
    half = replace(sound, events=sound.events + 100, whole=False)
    assert freshest([half, sound]) is sound
    assert freshest([half]) is None


def test_bad_blocks_of_a_member_are_known(parts: dict[str, bytes]) -> None:
    """Made by hand: the feature bit, one run in the log, the checksum put right."""
    block = bytearray(parts["p2"][: 1 << 21])
    block[4096 + 8] |= 8
    assert block[4096 + 186 : 4096 + 188] == b"\x08\0", "the log has a page"
    where = 4096 + int.from_bytes(block[4096 + 188 : 4096 + 192], "little", signed=True) * 512
    first = 2048 + 100  # of the member, in sectors; the data begins at 2048
    block[where : where + 8] = (first << 10 | 8).to_bytes(8, "little")
    block[where + 8 : where + 16] = b"\xff" * 8
    count = int.from_bytes(block[4096 + 220 : 4096 + 224], "little")
    block[4096 + 216 : 4096 + 220] = bytes(4)
    head = block[4096 : 4096 + 256 + 2 * count]
    total = sum(int.from_bytes(head[i : i + 4], "little") for i in range(0, len(head), 4))
    total = (total & 0xFFFFFFFF) + (total >> 32)
    block[4096 + 216 : 4096 + 220] = (total & 0xFFFFFFFF).to_bytes(4, "little")
    found = member_of(bytes(block))
    assert found is not None
    assert found.bad == ((100 * 512, 108 * 512),)


def test_sizes_never_reach_past_the_member(parts: dict[str, bytes]) -> None:
    reader = SliceReader(BytesReader(parts["p5"]), 0, 1_200_000)
    found = read_member(Window(reader))
    assert found is not None
    assert found.start + found.size <= reader.size
