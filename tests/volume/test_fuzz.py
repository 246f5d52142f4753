"""Hostile content: whatever the bytes, no error, bounded work, and volumes that lie inside the disk."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imagefs.interfaces import Volume
from imagefs.volume import VolumeTable, probe, read_table
from imagefs.volume.facts import WINDOW
from imagefs.volume.layout import Sectors, Span, fit
from imagefs.volume.probe import KINDS
from tests.volume.disks import MIB, CountingReader, Gpt, disk_with, entry, row, table_sector

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GPT = bytes(Gpt((entry(64, 127, name="a"), b"", entry(128, 255), entry(200, 4000))).disk())
MBR = bytes(
    disk_with(
        {
            0: table_sector(row(0x83, 50, 40), row(0x0F, 100, 3000), row(0x07, 3200, 100)),
            100: table_sector(row(0x83, 10, 20), row(0x05, 200, 100)),
            300: table_sector(row(0x82, 10, 20), row(0x05, 400, 50)),
            500: table_sector(row(0x07, 10, 20)),
        }
    )
)


def check(disk: bytes, sector_size: int = 512) -> VolumeTable:
    """The promises of a VolumeTable, whatever the disk."""
    reader = CountingReader(disk)
    table = read_table(reader, sector_size=sector_size)
    assert table.scheme in ("gpt", "mbr", "none")
    assert table.sector_size in (sector_size, 512, 4096)
    numbers = [volume.number for volume in table.volumes]
    assert numbers == sorted(set(numbers))
    assert (numbers == [0]) == (table.scheme == "none")
    for volume in table.volumes:
        assert volume.start >= 0
        assert volume.start + volume.length <= len(disk)
        assert volume.length > 0 or table.scheme == "none"
    assert len(table.findings) < 400
    assert reader.calls < 3000
    assert reader.total < 40 * MIB + 4 * len(disk)
    return table


@st.composite
def mutated(draw: st.DrawFn, original: bytes, last: int) -> bytes:
    """``original`` with some bytes below ``last`` (or near the end) replaced."""
    disk = bytearray(original)
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.integers(0, last - 1) | st.integers(len(disk) - 17_000, len(disk) - 1))
        piece = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)]))
        disk[position : position + len(piece)] = piece[: len(disk) - position]
    return bytes(disk)


@FUZZ
@given(st.binary(max_size=4096), st.sampled_from([512, 2048, 4096]))
def test_random_bytes(data: bytes, sector_size: int) -> None:
    check(data, sector_size)


@FUZZ
@given(st.integers(0, 1 << 32), st.integers(512, 64 * 1024))
def test_random_bytes_with_a_signature(seed: int, size: int) -> None:
    data = bytearray(random.Random(seed).randbytes(size))
    data[510:512] = b"\x55\xaa"
    for slot in range(4):
        data[446 + 16 * slot] &= 0x80
    check(bytes(data))


@FUZZ
@given(mutated(GPT, 4096))
def test_mutated_gpt(disk: bytes) -> None:
    check(disk)


@FUZZ
@given(mutated(GPT, 4096))
def test_a_mutated_gpt_is_refused_or_unchanged(disk: bytes) -> None:
    """Behind a protective row no damage is ever taken for a partition that was not there."""
    disk = GPT[:512] + disk[512:]
    table = check(disk)
    if table.scheme == "gpt":
        assert table.volumes == read_table(CountingReader(GPT)).volumes
    else:
        assert [finding.severity for finding in table.findings] == ["error"]


@FUZZ
@given(mutated(MBR, 512) | mutated(MBR, 51200 + 512))
def test_mutated_mbr(disk: bytes) -> None:
    check(disk)


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    """Disks on which every early sector may be a table whose rows point at other early sectors."""
    small = st.integers(0, 40)
    rows = st.builds(row, st.sampled_from([0x05, 0x0F, 0x85, 0x83, 0xEE, 0]), small, small)
    tables = st.lists(rows, max_size=4).map(lambda four: table_sector(*four))
    return bytes(disk_with(draw(st.dictionaries(st.integers(0, 40), tables, max_size=30)), 64))


@FUZZ
@given(chains())
@example(bytes(disk_with({i: table_sector(*[row(0x05, i + 1, 9)] * 4) for i in range(63)}, 64)))
def test_tangled_chains(disk: bytes) -> None:
    check(disk)


@FUZZ
@given(
    st.lists(
        st.builds(
            Span,
            number=st.integers(1, 200),
            first=st.integers(0, 1 << 64),
            count=st.integers(-5, 1 << 64) | st.integers(-5, 50),
            type=st.just(""),
        )
        | st.builds(
            Span,
            number=st.integers(1, 200),
            first=st.integers(0, 30),
            count=st.integers(0, 30),
            type=st.just(""),
        ),
        max_size=12,
        unique_by=lambda span: span.number,
    )
)
def test_fitting_keeps_what_is_on_the_disk_and_says_what_is_not(spans: list[Span]) -> None:
    sectors = Sectors(CountingReader(bytes(20 * 512 + 7)), 512)
    volumes, findings = fit(spans, sectors)
    for span in spans:
        inside = set(range(max(0, span.first), min(21, span.first + max(0, min(span.count, 99)))))
        ours = [v for v in volumes if v.number == span.number]
        assert bool(inside) == bool(ours), span
        for volume in ours:
            assert volume.start == span.first * 512
            assert volume.start + volume.length == min((span.first + span.count) * 512, 20 * 512 + 7)
    pairs = [(a, b) for a in volumes for b in volumes if a.number < b.number and _overlap(a, b)]
    assert bool(pairs) == any(finding.code == "volume-overlap" for finding in findings)


def _overlap(a: Volume, b: Volume) -> bool:
    return max(a.start, b.start) < min(a.start + a.length, b.start + b.length)


# -- probes -----------------------------------------------------------------------------------------

#: A place and a magic number for every probe, so that random bytes get past the first check.
MAGICS = {
    "ntfs": [(3, b"NTFS    "), (11, b"\0\x02\x08"), (510, b"\x55\xaa")],
    "exfat": [(3, b"EXFAT   " + bytes(53)), (108, b"\x09\x03"), (510, b"\x55\xaa")],
    "fat": [(11, b"\0\x02\x01\x20\0\x02\0\0\0\0\xf8\0\0"), (510, b"\x55\xaa")],
    "ext": [(1080, b"\x53\xef"), (1024 + 24, bytes(4)), (1024 + 96, bytes(4))],
    "xfs": [(0, b"XFSB\0\0\x10\0")],
    "btrfs": [(65536 + 64, b"_BHRfS_M"), (65536 + 144, b"\0\x10\0\0")],
    "f2fs": [(1024, b"\x10\x20\xf5\xf2"), (1040, b"\x0c\0\0\0")],
    "hfs+": [(1024, b"H+"), (1024 + 40, b"\0\0\x02\0")],
    "hfs+ near": [
        (1024, b"H+"),
        (1024 + 40, b"\0\0\x02\0"),
        (1312, b"\0\0\0\x08\0\0\x10\0"),
        (4104, b"\x01"),
    ],
    "hfs": [(1024, b"BD"), (1044, b"\0\0\x02\0"), (1148, b"H+")],
    "apfs": [(32, b"NXSB\0\x10\0\0")],
    "iso": [(32768, b"\x01CD001"), (34816, b"\x02CD001"), (34904, b"%/E")],
    "udf": [(32769, b"BEA01"), (34817, b"NSR03"), (131072, b"\x02\0"), (131084, b"\0\x01\0\0\0\x01\0\0")],
    "lvm": [(512, b"LABELONE"), (536, b"LVM2 001")],
    "raid": [(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"), (4240, b"\x08\0\0\0\0\0\0\0")],
    "luks": [(0, b"LUKS\xba\xbe\0\x02")],
    "swap": [(4086, b"SWAPSPACE2"), (1024, b"\x01\0\0\0")],
    "squashfs": [(0, b"hsqs"), (12, b"\0\0\x02\0"), (28, b"\x04\0")],
    "erofs": [(1024, b"\xe2\xe1\xf5\xe0"), (1036, b"\x0c")],
}


@FUZZ
@given(
    st.sampled_from(sorted(MAGICS)), st.integers(0, 1 << 32), st.sampled_from([600, 5000, 140_000, 300_000])
)
def test_probes_of_random_content_behind_each_magic(name: str, seed: int, size: int) -> None:
    data = bytearray(random.Random(seed).randbytes(size))
    for offset, magic in MAGICS[name]:
        if offset + len(magic) <= size:
            data[offset : offset + len(magic)] = magic
    check_probe(bytes(data))


@FUZZ
@given(st.sampled_from(sorted(MAGICS)), st.binary(max_size=64), st.integers(0, 1600))
def test_probes_of_zeros_and_a_little_behind_each_magic(name: str, piece: bytes, place: int) -> None:
    data = bytearray(200_000)
    data[place : place + len(piece)] = piece
    for offset, magic in MAGICS[name]:
        data[offset : offset + len(magic)] = magic
    check_probe(bytes(data))


def check_probe(data: bytes) -> None:
    reader = CountingReader(data)
    facts = probe(reader)
    assert facts.kind in KINDS | {""}
    assert facts.size is None or facts.size >= 0
    assert facts.kind or facts.uuid == facts.label == ""
    assert reader.calls < 2000
    assert reader.total < 8 * WINDOW + 2 * MIB
