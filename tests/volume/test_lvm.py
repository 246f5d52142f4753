"""LVM2 on a disk that LVM's own tools and a kernel made: what the kernel read, damaged metadata, what is refused."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from contextlib import suppress

import pytest

from fixtures import inner
from imagefs.block.joined import JoinedReader, StripedReader
from imagefs.block.views import BytesReader
from imagefs.errors import BrowseError
from imagefs.volume import lvm, read_table
from imagefs.volume.lvm import PhysicalVolume, logical_volumes, read_physical
from imagefs.volume.lvmtext import parse
from tests.support.reader_contract import check_reader


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The three physical volumes of the group."""
    raw = inner.unpack("lvm", tmp_path_factory.mktemp("lvm") / "lvm.img").read_bytes()
    return [raw[each.start : each.start + each.length] for each in read_table(BytesReader(raw)).volumes[:3]]


def opened(parts: Sequence[bytes]) -> list[PhysicalVolume]:
    found = [read_physical(BytesReader(part)) for part in parts]
    return [each for each in found if each is not None]


def test_volumes_hold_what_the_kernel_read(parts: list[bytes]) -> None:
    expected = inner.answers("lvm")["volumes"]
    found = list(logical_volumes(opened(parts)))
    assert [each.name for each in found] == ["root", "gap", "striped", "mirror", "raid1", "thin", "snap"]
    for number, each in enumerate(found[:5], 1):
        assert each.reader is not None
        assert each.reader.size == each.size
        digest = hashlib.sha256(each.reader.read_at(0, each.size)).hexdigest()
        assert digest == expected[f"p1.{number}"]["sha256"], each.name


def test_what_cannot_be_read_is_named(parts: list[bytes]) -> None:
    refused = {each.name: each.refused for each in logical_volumes(opened(parts)) if each.reader is None}
    assert refused["thin"] == "thin is a thin volume of LVM, which cannot be read here"
    assert refused["snap"] == "snap is a snapshot of LVM, which cannot be read here"


def test_a_missing_disk_costs_what_lies_on_it(parts: list[bytes]) -> None:
    found = {each.name: each for each in logical_volumes(opened(parts[:1]))}
    assert found["gap"].reader is not None
    assert "lies on another disk of its volume group (pv1" in found["root"].refused
    assert found["striped"].reader is None
    assert found["raid1"].reader is not None, "the leg that is here is enough"


def test_the_newest_metadata_counts(parts: list[bytes]) -> None:
    """A copy with a lower seqno, as a disk has that was away for a while."""
    members = opened(parts)
    assert members[0].group is not None
    old = {**members[0].group, "seqno": 1, "logical_volumes": {}}
    stale = PhysicalVolume(members[0].id, members[0].reader, old, "office")
    assert len(list(logical_volumes([stale, *members[1:]]))) == 7


def test_raid1_reads_a_leg_that_nobody_calls_failed(parts: list[bytes]) -> None:
    """The other leg's superblock says that the first one failed, with more events."""
    members = opened(parts)
    group = lvm._Group(members[0].group or {}, {each.id: each.reader for each in members})
    both = [bytes(group.reader(f"raid1_rimage_{leg}").read_at(0, 1 << 20)) for leg in (0, 1)]
    assert both[0] == both[1]
    disk = bytearray(parts[1])
    at = _place_of(disk, b"DmRd")
    disk[at + 16 : at + 24] = (1 << 40).to_bytes(8, "little")  # events
    disk[at + 24] = 1  # the first leg failed
    leg = disk.find(both[1][1024:2048])
    disk[leg + 100] ^= 0xFF
    found = {each.name: each for each in logical_volumes(opened([parts[0], bytes(disk), parts[2]]))}
    reader = found["raid1"].reader
    assert reader is not None
    assert reader.read_at(0, 1 << 20) != both[0]


def test_flips_give_the_same_or_nothing(parts: list[bytes]) -> None:
    """Label, headers and text all have a checksum."""
    sound = read_physical(BytesReader(parts[0]))
    assert sound is not None
    places = [*range(512, 1024, 7), *range(4096, 4608, 7), *range(4608, 12000, 61)]
    for place in places:
        disk = bytearray(parts[0][: 1 << 20])
        disk[place] ^= 0x20
        found = read_physical(BytesReader(bytes(disk)))
        assert found is None or found.group in (None, sound.group), place


@pytest.mark.parametrize(
    "text",
    [
        "a {" * 30,
        "a = [1, 2",
        "a = ",
        '"x',
        "}",
        "a = [ [1] ]",
        "a { b = 1",
        "a \xff",
        "= 1",
    ],
)
def test_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_text_as_lvm_writes_it() -> None:
    found = parse(
        '# c\nvg {\n\tid = "a-b"\n\tseqno = 7\n\tstatus = ["READ", "WRITE"] # x\n'
        '\tq = "a\\"b\\\\"\n\ttags = []\n}\nv = 1.5\n'
    )
    assert found == {
        "vg": {"id": "a-b", "seqno": 7, "status": ["READ", "WRITE"], "q": 'a"b\\', "tags": []},
        "v": 1.5,
    }


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"start_extent": 1}, "leaves a gap"),
        ({"extent_count": 1 << 50}, "past the end"),
        ({"stripes": []}, "lacks stripe_size"),
        ({"stripes": ["pv0", -1]}, "does not add up"),
        ({"stripes": ["pv0", 0, "pv0", 1], "stripe_size": 0}, "stripes that do not add up"),
        ({"type": "raid1", "raids": ["a", "a"]}, "no leg"),
        ({"type": "mirror", "mirrors": ["a", 0]}, "does not add up"),
        ({"type": "vdo"}, "a vdo volume of LVM"),
        ({"type": 7}, "a 7 volume"),
    ],
)
def test_segments_that_make_no_sense(words: dict[str, object], why: str) -> None:
    segment = {
        "start_extent": 0,
        "extent_count": 1,
        "type": "striped",
        "stripe_count": 1,
        "stripes": ["pv0", 0],
    }
    group = {
        "seqno": 1,
        "extent_size": 8,
        "physical_volumes": {"pv0": {"id": "x", "pe_start": 8, "pe_count": 4}},
        "logical_volumes": {"a": {"status": ["VISIBLE"], "segment1": {**segment, **words}}},
    }
    (found,) = logical_volumes([PhysicalVolume("x", BytesReader(bytes(1 << 16)), group, "vg")])
    assert found.reader is None
    assert why in found.refused


def test_metadata_changed_at_random_never_raises_what_is_not_ours(parts: list[bytes]) -> None:
    """The text behind a right checksum: bits, words swapped, left out or put in."""
    head = parts[0][4096:4608]
    offset, length = (int.from_bytes(head[at : at + 8], "little") for at in (40, 48))
    text = parts[0][4096 + offset : 4096 + offset + length]
    words = list(re.finditer(rb'"[^"]*"|\b\d+\b', text))
    disks = [(each.id, each.reader) for each in opened(parts)]
    dice, opened_volumes = random.Random(5), 0
    for _ in range(400):
        changed = bytearray(text)
        for word in sorted(dice.sample(words, dice.randrange(1, 4)), key=lambda each: -each.start()):
            other = dice.choice([dice.choice(words)[0], b"[1]", b'""', b"-1", b"9" * 25, b"{", b"}"])
            changed[word.start() : word.end()] = other
        found = lvm._group(bytes(changed))
        if found is not None:
            with suppress(BrowseError):
                for each in logical_volumes([PhysicalVolume(*disk, found[1], found[0]) for disk in disks]):
                    if each.reader is not None:
                        each.reader.read_at(max(0, each.size - 10), 100)
                        opened_volumes += 1
    assert opened_volumes > 400


def test_joined_and_striped_readers_keep_the_contract() -> None:
    data = bytes(range(256)) * 48
    parts = [
        BytesReader(data[:5000]),
        BytesReader(b""),
        BytesReader(data[5000:5001]),
        BytesReader(data[5001:]),
    ]
    check_reader(JoinedReader(parts), data)
    stripes = [b"".join(data[at : at + 512] for at in range(leg * 512, len(data), 1536)) for leg in range(3)]
    check_reader(StripedReader([BytesReader(each) for each in stripes], 512), data)


def _place_of(disk: bytearray, magic: bytes) -> int:
    at = disk.find(magic)
    assert at > 0
    return at
