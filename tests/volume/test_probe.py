"""The signature probe: against blkid on the disks of its own tests, and on what mkfs tools make."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from fixtures.tools import run_tool
from imagefs.block.views import BytesReader
from imagefs.volume import FileSystemFacts, probe
from imagefs.volume.probe import KINDS
from tests.support.oracles import corpus_file, need_tool, tool_text, unpacked_corpus_file
from tests.volume.disks import MIB, CountingReader, FileReader, empty_disk

BLKID = "util-linux/tests/ts/blkid/images-fs"
#: blkid's word for each of ours, where they differ.
WORDS = {
    "fat12": "vfat",
    "fat16": "vfat",
    "fat32": "vfat",
    "hfs+": "hfsplus",
    "bitlocker": "BitLocker",
    "luks": "crypto_LUKS",
    "lvm2": "LVM2_member",
    "raid": "linux_raid_member",
    "refs": "ReFS",
    "ufs1": "ufs",
    "ufs2": "ufs",
}
#: All that blkid may say and we must know; its other words are for what we do not claim to know.
KNOWN = frozenset(WORDS.get(kind, kind) for kind in KINDS)
#: Where we differ from blkid, and why.
DIFFERENT = {
    "erofs-minix-magic": "EROFS whose data looks like minix, so that blkid is not sure",
    "swap-luks": "swap was made over LUKS, of which blkid finds the second header; the later one wins here",
    "tuxonice": "a hibernated swap space is swap",
}


def by_blkid(path: Path) -> dict[str, str]:
    """What ``blkid -p -o export`` prints, unescaped; empty where it knows nothing or is not sure."""
    need_tool("blkid")
    said = run_tool(["blkid", "-p", "-o", "full", "-s", "TYPE", "-s", "UUID", path], ok=(0, 2, 8)).stdout
    facts = dict(word.split("=", 1) for word in said.decode().rpartition(": ")[2].split())
    # One tag alone with "value" is what blkid prints without any escaping.
    label = run_tool(["blkid", "-p", "-o", "value", "-s", "LABEL", path], ok=(0, 2, 8)).stdout
    return {key: value.strip('"') for key, value in facts.items()} | {
        "LABEL": from_caret(label.rstrip(b"\n"))
    }


def from_caret(raw: bytes) -> str:
    """Undo blkid's ``M-^X`` notation for bytes beyond ASCII; what is not UTF-8 then is code page 850."""
    out, position = bytearray(), 0
    while position < len(raw):
        rest = raw[position:]
        high = 0x80 if rest[:2] == b"M-" and len(rest) > 2 else 0
        rest = rest[2:] if high else rest
        if rest[:1] == b"^" and len(rest) > 1:
            out.append(high | (rest[1] ^ 0x40))
            used = 2
        else:
            out.append(high | rest[0])
            used = 1
        position += used + (2 if high else 0)
    try:
        return out.decode()
    except UnicodeDecodeError:
        return out.decode("cp850")


def probed(path: Path) -> FileSystemFacts:
    reader = FileReader(path)
    facts = probe(reader)
    reader.close()
    return facts


def check_like_blkid(path: Path) -> FileSystemFacts:
    ours, theirs = probed(path), by_blkid(path)
    assert WORDS.get(ours.kind, ours.kind) == theirs.get("TYPE", "")
    assert ours.uuid == theirs.get("UUID", "")
    assert ours.label.strip(" ") == theirs["LABEL"].strip(" ")
    return ours


# -- the disks of blkid's own tests -----------------------------------------------------------------


def head_of(packed: Path, target: Path) -> Path:
    """The first megabytes: all that counts here, of files that are up to 160 MB of zeros."""
    length = {"fat": 2, "bit": 40}.get(packed.name[:3], 11)
    with lzma.open(packed) as stream:
        target.write_bytes(stream.read(length * MIB))
    return target


def test_every_disk_of_the_blkid_tests(tmp_path: Path) -> None:
    folder = corpus_file(f"{BLKID}/fat.img.xz").parent
    kinds = set()
    for packed in sorted(folder.glob("*.img.xz")):
        name = packed.name.removesuffix(".img.xz")
        path = head_of(packed, tmp_path / "disk.img")
        theirs = by_blkid(path)
        if name in DIFFERENT:
            continue
        if theirs.get("TYPE") not in KNOWN:
            assert probed(path) == FileSystemFacts(), name
            continue
        try:
            kinds.add(check_like_blkid(path).kind)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert kinds == KINDS - {"refs", "ufs1"}


@pytest.mark.parametrize(("name", "kind"), [("swap-luks", "swap"), ("tuxonice", "swap")])
def test_where_blkid_says_something_else(tmp_path: Path, name: str, kind: str) -> None:
    path = head_of(corpus_file(f"{BLKID}/{name}.img.xz"), tmp_path / "disk.img")
    assert name in DIFFERENT
    assert probed(path).kind == kind != by_blkid(path)["TYPE"]


@pytest.mark.parametrize(
    "name",
    [
        "fat16_moved",
        "fat32_small",
        "fat64",
        "fat_dir",
        "fat_noloop",
        "fat_unusual_cluster",
        "fat_unusual_label",
    ],
)
def test_the_odd_fats_of_dfir_ntfs(tmp_path: Path, name: str) -> None:
    check_like_blkid(unpacked_corpus_file(f"dfir_ntfs/test_data/{name}.raw.gz", tmp_path))


@pytest.mark.parametrize("name", ["9-fat-label", "7-undel-ntfs", "2-kwsrch-fat"])
def test_the_disks_of_dftt(tmp_path: Path, name: str) -> None:
    path = unpacked_corpus_file(f"sleuthkit_test_data/from_brian/{name}.zip", tmp_path, member="*.dd")
    assert check_like_blkid(path).size is not None


# -- what mkfs tools make: sizes and blocks as well -------------------------------------------------

UNIQUE = "6b7c9f10-3c1e-4d5a-9b77-0f9e8d7c6b5a"


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("block", [1024, 4096])
def test_ext(tmp_path: Path, kind: str, block: int) -> None:
    path = empty_disk(tmp_path, 16 * MIB)
    tool_text("mke2fs", "-q", "-t", kind, "-b", str(block), "-L", "Wurzel ☃", "-U", UNIQUE, path)
    facts = check_like_blkid(path)
    assert facts == FileSystemFacts(kind, "Wurzel ☃", UNIQUE, 16 * MIB, block)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["le", "be"])
def test_ufs(tmp_path: Path, version: int, order: str) -> None:
    path, folder = tmp_path / "ufs.img", tmp_path / "files"
    folder.mkdir()
    tool_text("makefs", "-t", "ffs", "-B", order, "-o", f"version={version}", "-s", "8m", path, folder)
    facts = check_like_blkid(path)
    assert (facts.kind, facts.size, facts.block_size) == (f"ufs{version}", 8 * MIB, 1024)


def test_ext4_of_more_than_16_tib(tmp_path: Path) -> None:
    path = empty_disk(tmp_path, 1 * MIB)
    tool_text("mke2fs", "-q", "-t", "ext4", "-O", "64bit", path)
    data = bytearray(path.read_bytes())
    data[1024 + 336] = 1
    blocks = int.from_bytes(data[1028:1032], "little")
    assert probe(BytesReader(bytes(data))).size == (blocks + (1 << 32)) * 1024


@pytest.mark.parametrize(("bits", "per_cluster", "size"), [(12, 4, 4), (16, 8, 64), (32, 1, 40)])
def test_fat(tmp_path: Path, bits: int, per_cluster: int, size: int) -> None:
    path = empty_disk(tmp_path, size * MIB)
    words = ["-F", str(bits), "-s", str(per_cluster), "-n", "MY STICK", "-i", "1234abcd"]
    tool_text("mkfs.fat", *words, path)
    facts = check_like_blkid(path)
    assert facts == FileSystemFacts(f"fat{bits}", "MY STICK", "1234-ABCD", size * MIB, per_cluster * 512)


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 1 << 20])
def test_ntfs(tmp_path: Path, cluster: int) -> None:
    path = empty_disk(tmp_path, 64 * MIB)
    words = ["-q", "-F", "-Q", "-c", str(cluster), "-L", "Платте ☃"]
    tool_text("mkntfs", *words, "-s", "512", "-p", "0", "-H", "255", "-S", "63", path)
    facts = check_like_blkid(path)
    assert (facts.kind, facts.label, facts.block_size) == ("ntfs", "Платте ☃", cluster)
    assert facts.size is not None
    assert 64 * MIB - cluster - 512 <= facts.size <= 64 * MIB


@pytest.mark.parametrize("cluster", [4096, 32768])
def test_exfat(tmp_path: Path, cluster: int) -> None:
    path = empty_disk(tmp_path, 16 * MIB)
    tool_text("mkfs.exfat", "-c", str(cluster), "-L", "My stick", path)
    facts = check_like_blkid(path)
    assert (facts.kind, facts.label, facts.size) == ("exfat", "My stick", 16 * MIB)
    assert facts.block_size == cluster


def test_xfs(tmp_path: Path) -> None:
    path = empty_disk(tmp_path, 320 * MIB)
    tool_text("mkfs.xfs", "-q", "-L", "daten", "-m", f"uuid={UNIQUE}", "-b", "size=4096", path)
    assert check_like_blkid(path) == FileSystemFacts("xfs", "daten", UNIQUE, 320 * MIB, 4096)


def test_btrfs(tmp_path: Path) -> None:
    path = empty_disk(tmp_path, 128 * MIB)
    tool_text("mkfs.btrfs", "-q", "-L", "wald", "-U", UNIQUE, path)
    assert check_like_blkid(path) == FileSystemFacts("btrfs", "wald", UNIQUE, 128 * MIB, 4096)


@pytest.mark.parametrize("page", [4096, 65536])
def test_swap(tmp_path: Path, page: int) -> None:
    path = empty_disk(tmp_path, 8 * MIB)
    tool_text("mkswap", "-q", "-p", str(page), "-L", "swp", "-U", UNIQUE, path)
    assert check_like_blkid(path) == FileSystemFacts("swap", "swp", UNIQUE, 8 * MIB, page)


# -- order and edges --------------------------------------------------------------------------------


def test_nothing_at_all() -> None:
    for data in (b"", b"\0", bytes(4097), bytes(3 * MIB)):
        assert probe(BytesReader(data)) == FileSystemFacts()


def test_what_was_made_last_wins(tmp_path: Path) -> None:
    """mke2fs leaves the boot sector before it, mkfs.fat overwrites the superblock behind it."""
    path = empty_disk(tmp_path, 64 * MIB)
    tool_text("mkfs.fat", "-F", "16", path)
    boot = path.read_bytes()[:1024]
    tool_text("mke2fs", "-q", "-F", "-t", "ext4", path)
    with path.open("r+b") as stream:
        stream.write(boot)
    assert probed(path).kind == "ext4"
    tool_text("mkfs.fat", "-F", "16", path)
    assert probed(path).kind == "fat16"


def test_refs_by_its_published_signature() -> None:
    assert probe(BytesReader(b"\0\0\0ReFS\0".ljust(MIB, b"\0"))).kind == "refs"


def test_a_file_system_that_is_cut_short_still_has_its_name(tmp_path: Path) -> None:
    path = empty_disk(tmp_path, 16 * MIB)
    tool_text("mke2fs", "-q", "-t", "ext4", "-L", "kurz", path)
    facts = probe(BytesReader(path.read_bytes()[:4096]))
    assert (facts.kind, facts.label, facts.size) == ("ext4", "kurz", 16 * MIB)


def test_an_endless_root_directory_is_not_followed_for_ever(tmp_path: Path) -> None:
    path = empty_disk(tmp_path, 40 * MIB)
    tool_text("mkfs.fat", "-F", "32", "-s", "1", path)
    data = bytearray(path.read_bytes())
    reserved, root = int.from_bytes(data[14:16], "little"), int.from_bytes(data[44:48], "little")
    per_fat = int.from_bytes(data[36:40], "little")
    fat, start = reserved * 512, (reserved + 2 * per_fat) * 512
    data[fat + root * 4 : fat + root * 4 + 4] = root.to_bytes(4, "little")  # the next cluster is itself
    data[start + (root - 2) * 512 : start + (root - 1) * 512] = (b"FILE    TXT\x20" + bytes(20)) * 16
    reader = CountingReader(bytes(data))
    assert (probe(reader).kind, probe(reader).label) == ("fat32", "")
    assert reader.calls < 4000
    assert reader.total < 4 * MIB
