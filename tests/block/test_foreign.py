"""Images of other programs are named, with a way to get at their disk that really works."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.block.devices import open_source
from imagefs.block.foreign import IMAGEFS_MAGIC, ForeignImage, identify
from imagefs.block.views import BytesReader
from imagefs.errors import SourceError
from tests.support.oracles import (
    corpus_file,
    corpus_folder,
    need_tool,
    root_only,
    run_tool,
    unpack,
    unpacked_corpus_file,
)

NOISE = random.Random(5).randbytes(200_000)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small raw disk with something on it."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096) + NOISE + bytes((1 << 20) - 4096 - len(NOISE)))
    return path


def kind_of(path: Path) -> str:
    found = look(path)
    return found.kind if found else ""


def look(path: Path) -> ForeignImage | None:
    reader = open_source(str(path))
    try:
        return identify(reader)
    finally:
        reader.close()


def follow(advice: str, source: Path, folder: Path) -> Path:
    """Do what the advice says: run its command in ``folder``, which makes ``disk.raw``."""
    command = advice.partition(": ")[2].replace("SOURCE", shlex.quote(str(source)))
    command = command.replace("| imagefs capture - SET", "> disk.raw")
    subprocess.run(command, shell=True, cwd=folder, check=True, timeout=600, capture_output=True)
    return folder / "disk.raw"


# -- made here with other people's tools ----------------------------------------------------------

FORMATS = [
    ("qcow2", "qcow2", ""),
    ("qcow2", "qcow2", "compat=0.10"),
    ("qcow", "qcow", ""),
    ("qed", "qed", ""),
    ("vdi", "vdi", ""),
    ("vdi", "vdi", "static=on"),
    ("vmdk", "vmdk", ""),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vmdk", "vmdk", "subformat=monolithicFlat"),
    ("vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vhdx", "vhdx", ""),
    ("vhd", "vpc", "subformat=dynamic"),
    ("vhd", "vpc", "subformat=fixed"),
    ("vhd", "vpc", "subformat=fixed,force_size=on"),
    ("parallels", "parallels", ""),
]


@pytest.mark.parametrize(("kind", "form", "options"), FORMATS)
def test_what_qemu_img_makes_is_named_and_its_advice_works(
    raw: Path, tmp_path: Path, kind: str, form: str, options: str
) -> None:
    need_tool("qemu-img")
    made, back = tmp_path / "made by qemu", tmp_path / "back"
    words = ["-o", options] if options else []
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", form, *words, raw, made])
    found = look(made)
    assert found is not None
    assert (found.kind, found.refuse) == (kind, True)
    assert shlex.quote(str(made)) in found.hint(str(made))
    back.mkdir()
    again = follow(found.advice, made, back).read_bytes()
    assert again[: 1 << 20] == raw.read_bytes()
    assert not any(again[1 << 20 :])  # some formats round up


PACKERS = [
    ("gzip", ["gzip", "-c"]),
    ("xz", ["xz", "-c"]),
    ("zstd", ["zstd", "-q", "-c"]),
    ("bzip2", ["bzip2", "-c"]),
    ("lz4", ["lz4", "-q", "-c"]),
]


@pytest.mark.parametrize(("kind", "command"), PACKERS)
def test_compressed_disks_are_named_and_their_advice_works(
    raw: Path, tmp_path: Path, kind: str, command: list[str]
) -> None:
    need_tool(command[0])
    packed = tmp_path / "packed disk"
    packed.write_bytes(run_tool([*command, raw]).stdout)
    found = look(packed)
    assert found is not None
    assert found.kind == kind
    before = raw.read_bytes()
    (tmp_path / "back").mkdir()
    assert follow(found.advice, packed, tmp_path / "back").read_bytes() == before


def test_nothing_compressed_is_named_too() -> None:
    assert identify(BytesReader(bz2.compress(b"")))
    assert identify(BytesReader(b"BZh9 is how this text begins")) is None
    assert identify(BytesReader(b"\x1f\x8b\x08\xff text")) is None


def test_a_zip_archive(raw: Path, tmp_path: Path) -> None:
    need_tool("unzip")
    packed = tmp_path / "disk.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(raw, "disk.raw")
    found = look(packed)
    assert found is not None
    (tmp_path / "back").mkdir()
    assert follow(found.advice, packed, tmp_path / "back").read_bytes() == raw.read_bytes()


def test_aff4_is_told_from_other_zip_files() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("container.description", "aff4://1234")
    found = identify(BytesReader(packed.getvalue()))
    assert found is not None
    assert found.kind == "aff4"


def test_partclone(tmp_path: Path) -> None:
    need_tool("partclone.extfs", "partclone.restore", "mke2fs")
    file_system, image = tmp_path / "ext4", tmp_path / "image"
    file_system.write_bytes(bytes(4 << 20))
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", file_system])
    run_tool(["partclone.extfs", "-c", "-s", file_system, "-o", image, "-L", tmp_path / "log"])
    found = look(image)
    assert found is not None
    assert found.kind == "partclone"
    (tmp_path / "back").mkdir()
    back = follow(found.advice + f" -L {tmp_path}/log", image, tmp_path / "back")
    assert back.read_bytes() == file_system.read_bytes()


def test_ntfsclone(tmp_path: Path) -> None:
    need_tool("mkntfs", "ntfsclone", "ntfscp", "ntfscat")
    file_system, image = tmp_path / "ntfs", tmp_path / "image"
    file_system.write_bytes(bytes(4 << 20))
    run_tool(["mkntfs", "-q", "-F", "-f", file_system])
    (tmp_path / "noise").write_bytes(NOISE)
    run_tool(["ntfscp", file_system, tmp_path / "noise", "noise"])
    run_tool(["ntfsclone", "--save-image", "-o", image, file_system])
    found = look(image)
    assert found is not None
    assert found.kind == "ntfsclone"
    (tmp_path / "back").mkdir()
    back = follow(found.advice, image, tmp_path / "back")
    assert run_tool(["ntfscat", back, "noise"]).stdout == NOISE


def test_ewf(raw: Path, tmp_path: Path) -> None:
    need_tool("ewfacquire")
    run_tool(["ewfacquire", "-u", "-q", "-t", tmp_path / "case", "-C", "1", raw])
    assert kind_of(tmp_path / "case.E01") == "ewf"


@root_only
def test_the_advice_for_ewf_works(raw: Path, tmp_path: Path) -> None:
    need_tool("ewfacquire", "ewfmount", "fusermount")
    run_tool(["ewfacquire", "-u", "-q", "-t", tmp_path / "case", raw])
    found = look(tmp_path / "case.E01")
    assert found is not None
    assert "ewfmount SOURCE DIR" in found.advice
    place = tmp_path / "mnt"
    place.mkdir()
    run_tool(["ewfmount", tmp_path / "case.E01", place])
    try:
        assert (place / "ewf1").read_bytes() == raw.read_bytes()
    finally:
        run_tool(["fusermount", "-u", place])


# -- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"COWD\x01\0\0\0", "vmdk"),
        (b"\n# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"# disk descriptorfile\r\n", "vmdk"),
        (b"EVF2\r\n\x81\0", "ewf2"),
        (b"LVF\t\r\n\xff\0", "lef"),
        (b"LEF2\r\n\x81\0", "lef2"),
        (b"AFF10\r\n\0", "aff"),
        (b"MSWIM\0\0\0", "wim"),
        (b"\x3a\xff\x26\xed\x01\0\0\0", "sparse"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (IMAGEFS_MAGIC, "imagefs"),
    ],
)
@pytest.mark.parametrize("size", [0, 100, 70_000])
def test_magic_at_the_start(start: bytes, kind: str, size: int) -> None:
    found = identify(BytesReader(start + bytes(size)))
    assert found is not None
    assert found.kind == kind
    assert found.name.split()[0] in ("a", "an", "the")
    assert "SOURCE" not in found.hint("disk")


def test_an_image_is_known_by_the_magic_handed_in() -> None:
    ours = BytesReader(b"other magic" + bytes(100))
    found = identify(ours, magic=b"other magic")
    assert found is not None
    assert (found.kind, "imagefs restore" in found.advice) == ("imagefs", True)
    assert identify(ours) is None
    assert identify(BytesReader(b"abc"), magic=b"") is None


def test_a_hint_can_be_pasted_whatever_the_name() -> None:
    found = identify(BytesReader(b"QFI\xfb\0\0\0\x03"))
    assert found is not None
    words = shlex.split(found.hint("it's a; rm -rf ~").partition(": ")[2])
    assert words == ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "it's a; rm -rf ~", "disk.raw"]


# -- raw disks stay raw ---------------------------------------------------------------------------


def vhd_footer(disk_type: int, size: int, *, header: int = 0xFFFFFFFFFFFFFFFF) -> bytes:
    footer = bytearray(512)
    footer[:8] = b"conectix"
    footer[16:24] = header.to_bytes(8, "big")
    footer[48:56] = size.to_bytes(8, "big")
    footer[60:64] = disk_type.to_bytes(4, "big")
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(footer)


def test_a_raw_disk_that_ends_in_somebody_elses_vhd_footer_is_raw() -> None:
    assert identify(BytesReader(bytes(8192) + vhd_footer(2, 4096))) is None
    assert identify(BytesReader(bytes(8192) + vhd_footer(2, 8192))) is not None
    assert identify(BytesReader(bytes(8192) + vhd_footer(3, 8192))) is None
    assert identify(BytesReader(bytes(8192) + vhd_footer(9, 8192))) is None


def test_a_growing_vhd_that_lost_its_first_footer_is_known_by_its_last() -> None:
    body = bytearray(8192)
    body[512:520] = b"cxsparse"
    assert identify(BytesReader(bytes(body) + vhd_footer(3, 1 << 30, header=512))) is not None
    assert identify(BytesReader(bytes(body) + vhd_footer(4, 1 << 30, header=512))) is not None
    assert identify(BytesReader(bytes(body) + vhd_footer(3, 1 << 30, header=1024))) is None


def test_a_fixed_vhd_footer_with_a_wrong_sum_is_none() -> None:
    footer = bytearray(vhd_footer(2, 8192))
    footer[100] ^= 1
    assert identify(BytesReader(bytes(8192) + bytes(footer))) is None
    assert identify(BytesReader(b"conectix" + bytes(504))) is None
    growing = bytearray(vhd_footer(3, 8192, header=512) + b"cxsparse")
    growing[100] ^= 1
    assert identify(BytesReader(bytes(growing))) is not None, "with its second header it is one all the same"


@given(st.binary(max_size=1200))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    found = identify(BytesReader(data))
    assert found is None or found.refuse


@given(
    st.binary(max_size=600), st.sampled_from(["QFI\xfb", "conectix", "koly", "PK\x03\x04", "\x1f\x8b\x08"])
)
def test_a_magic_followed_by_anything_gets_an_answer(data: bytes, magic: str) -> None:
    start = magic.encode("latin-1")
    for whole in (start + data, data + start + bytes(504), bytes(64) + start + data):
        identify(BytesReader(whole))


def test_an_unreadable_start_does_not_stop_a_capture() -> None:
    class Broken:
        size = 1 << 20

        def read_at(self, offset: int, length: int, /) -> bytes:
            raise SourceError("bad sector")

        def close(self) -> None:
            pass

    assert identify(Broken()) is None


@pytest.mark.parametrize(
    "command",
    [
        ["mke2fs", "-q", "-F", "-t", "ext4"],
        ["mkfs.fat"],
        ["mkntfs", "-q", "-F", "-f"],
        ["mkfs.exfat"],
        ["sgdisk", "-n1:0:0"],
        ["mkswap"],
    ],
    ids=lambda command: command[0],
)
def test_file_systems_and_partition_tables_are_raw_disks(tmp_path: Path, command: list[str]) -> None:
    need_tool(command[0])
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4 << 20))
    run_tool([*command, path])
    assert any(path.read_bytes())
    assert look(path) is None


# -- the corpus -----------------------------------------------------------------------------------

CORPUS = {
    "dfvfs/test_data/ext2.E01": "ewf",
    "dfvfs/test_data/ext2.split.E01": "ewf",
    "dfvfs/test_data/ext2.split.E02": "ewf",
    "dfvfs/test_data/ext2.qcow2": "qcow2",
    "dfvfs/test_data/ext2.vhd": "vhd",
    "dfvfs/test_data/ext2.vmdk": "vmdk",
    "dfvfs/test_data/image.vhd": "vhd",
    "dfvfs/test_data/image-differential.vhd": "vhd",
    "dfvfs/test_data/windows_volume.qcow2": "qcow2",
    "dfvfs/test_data/hfsplus_zlib.dmg": "dmg",
    "dfvfs/test_data/hfsplus.raw": "",
    "dfvfs/test_data/iso9660.raw": "",
    "dfvfs/test_data/ext2.splitraw.000": "",
    "plaso/test_data/vsstest.qcow2": "qcow2",
    "plaso/test_data/image-split.E01": "ewf",
    "plaso/test_data/tsk_volume_system.raw": "",
    "bulk_extractor/src/tests/nps-2010-emails.E01": "ewf",
    "bulk_extractor/src/tests/nps-2010-emails.100k.raw": "",
    "dissect.evidence/tests/data/ewf.E01": "ewf",
    "go-exfat/test/assets/test.exfat": "",
    "go-ext4/assets/hierarchy_64.ext4": "",
    "rust-fatfs/resources/fat12.img": "",
    "dfir_ntfs/test_data/gpt-512-3p.raw.gz": "gzip",
    "debian-forensics-samples/fs.multiple.xz": "xz",
    "sleuthkit_test_data/from_brian/7-undel-ntfs.zip": "zip",
}

UNPACKED = {
    "qemu-iotests/hyperv2012r2-dynamic.vhd.bz2": "vhd",
    "qemu-iotests/virtualpc-dynamic.vhd.bz2": "vhd",
    "qemu-iotests/d2v-zerofilled.vhd.bz2": "vhd",
    "qemu-iotests/iotest-version3.vmdk.bz2": "vmdk",
    "qemu-iotests/afl9.vmdk.bz2": "vmdk",
    "qemu-iotests/iotest-dynamic-1G.vhdx.bz2": "vhdx",
    "qemu-iotests/test-disk2vhd.vhdx.bz2": "vhdx",
    "qemu-iotests/iotest-dirtylog-10G-4M.vhdx.bz2": "vhdx",
    "qemu-iotests/parallels-v1.bz2": "parallels",
    "qemu-iotests/parallels-v2.bz2": "parallels",
    "qemu-iotests/parallels-with-bitmap.bz2": "parallels",
    "qemu-iotests/simple-dmg.dmg.bz2": "dmg",
    "qemu-iotests/empty.bochs.bz2": "bochs",
    "qemu-iotests/simple-pattern.cloop.bz2": "cloop",
    "qemu-iotests/grub_mbr.raw.bz2": "",
    "dfir_ntfs/test_data/gpt-512-3p.raw.gz": "",
}


@pytest.mark.parametrize("name", CORPUS)
def test_disks_that_nobody_here_made(name: str) -> None:
    assert kind_of(corpus_file(name)) == CORPUS[name]


@pytest.mark.parametrize("name", UNPACKED)
def test_packed_disks_that_nobody_here_made(name: str, tmp_path: Path) -> None:
    assert kind_of(unpacked_corpus_file(name, tmp_path)) == UNPACKED[name]


def test_the_vhdx_chain_inside_an_archive(tmp_path: Path) -> None:
    folder = unpack(corpus_file("docker-explorer/test_data/vhdx_files.tgz"), tmp_path)
    found = [path for path in folder.rglob("*") if path.suffix == ".vhdx"]
    assert found
    assert {kind_of(path) for path in found} == {"vhdx"}


def test_every_signature_of_blkid_stays_a_raw_disk() -> None:
    """Over a hundred real beginnings of file systems and partition tables, none of them a container."""
    openers = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
    folder = corpus_folder() / "util-linux/tests/ts/blkid"
    packed = sorted(path for path in folder.rglob("*") if path.suffix in openers)
    assert len(packed) > 100
    taken = {}
    for path in packed:
        with openers[path.suffix](path) as file:
            found = identify(BytesReader(file.read(1 << 16)))
        if found is not None:
            taken[path.name] = found.kind
    assert taken == {}
