"""Encrypted volumes of APFS: disks of macOS with published answers, secrets that are wrong, bags of keys that lie."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import hmac
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyfsapfs
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from imagefs.block.sectorcipher import SectorCipher, unwrapped
from imagefs.block.views import BytesReader, LibraryFile, MarkedReader
from imagefs.browse.apfs import ApfsFileSystem, open_apfs
from imagefs.browse.apfsdisk import Disk
from imagefs.browse.apfskeys import ApfsKeys, unlock
from imagefs.browse.content import Piece
from imagefs.browse.deciphered import CodedPiece, DecipheredReader
from imagefs.browse.walk import walk
from imagefs.errors import BrowseError, ImagefsError, IntegrityError, Locked
from imagefs.interfaces import Entry, EntryType, Extent, Reader, State, Stream
from tests.browse.apfsdisks import BLOCK, CONTAINER, VOLUME, changed, disk_of, sealed
from tests.browse.disks import BreakingReader, FileReader
from tests.support.images import noise
from tests.support.kernelview import fails
from tests.support.oracles import sdist_file
from tests.support.reader_contract import check_reader

#: What dissect.apfs publishes (its tests/test_apfs.py) of both disks, of which one was CoreStorage before.
SECRET = b"password"
_DISKS = ("encrypted", "jhfs_encrypted")
_PACKED = b"Compressed data in xattr " + b"a" * 90 + b"\n"
_TEXT = "\uf8ff File System\n".encode()
_FORK_SUM = "5f46d97f947137dcf974fc19914c547acd18fcdb25124c846c1100f8b3fbca5f"
_LARGE_SUM = "a11c957142c3fd8ebf2bee1ed0cf184a246033a3874d060acd28c319b323466e"
#: Of the first disk: where the bags of the container and of the volume are, and its UUID.
_BAG, _VOLUMES_BAG = 97, 95
_UUID = "00df510affe649699607efa24d864392"
_CONTAINERS_KIND, _VOLUMES_KIND = 0x6B657973, 0x72656373
_KEY, _UNLOCK, _HINT = 2, 3, 4


@pytest.fixture(scope="module", params=_DISKS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("apfs")
    packed = sdist_file("dissect_apfs", f"tests/_data/{request.param}.bin.gz", folder)
    reader = FileReader(_unzipped(packed))
    yield reader
    reader.close()


def _unzipped(packed: Path) -> Path:
    """Half a GiB, of which little is no zeros."""
    path = packed.with_suffix("")
    with gzip.open(packed) as source, path.open("wb") as target:
        while data := source.read(1 << 20):
            if data.count(0) == len(data):
                target.seek(len(data), 1)
            else:
                target.write(data)
        target.truncate()
    return path


def keys_of(reader: Reader, secret: bytes = SECRET) -> dict[str, bytes]:
    return dict(ApfsKeys(reader).key([secret]))  # type: ignore[arg-type]


def opened(reader: Reader) -> tuple[ApfsFileSystem, dict[str, Entry]]:
    fs = open_apfs(reader, keys=keys_of(reader))
    return fs, {entry.path.decode(): entry for entry in walk(fs, fs.root(), onerror=fails)}


def content(fs: ApfsFileSystem, entry: Entry) -> bytes:
    reader = fs.open(entry)
    return reader.read_at(0, reader.size)


def test_disks_of_macos_are_what_is_published_of_them(disk: Reader) -> None:
    fs, found = opened(disk)
    assert fs.label in ("Encrypted", "JHFS+ Encrypted Converted")
    check_reader(fs.open(found["/dir/file"]), _TEXT)
    assert content(fs, found["/hardlink"]) == _TEXT
    assert (found["/dir/file"].inode, found["/dir/file"].nlink) == (found["/hardlink"].inode, 2)
    assert content(fs, found["/empty"]) == b""
    assert fs.readlink(found["/symlink-file"]) == b"dir/file"
    assert fs.readlink(found["/symlink-dir"]) == b"dir"
    assert {"/nfd_te\u0301stfile\u0300", "/nfkd_3\u20444", "/case_folding_\u00b5"} <= found.keys()
    assert (found["/dir"].type, found["/dir/fifo"].type) == (EntryType.DIRECTORY, EntryType.FIFO)
    assert fs.lookup(b"/DIR/FILE").path == b"/dir/file"
    for method in ("zlib", "lzvn", "lzfse"):
        assert content(fs, found[f"/dir/compressed-{method}-xattr"]) == _PACKED
        packed = content(fs, found[f"/dir/compressed-{method}-fork"])
        assert hashlib.sha256(packed).hexdigest() == _FORK_SUM
    fork = found["/dir/resourcefork"]
    assert fs.streams(fork) == [Stream(b"rsrc", 19)]
    check_reader(fs.open_stream(fork, b"rsrc"), b"Resource fork data\n")
    assert fs.xattrs(found["/dir/xattr-small"]) == {b"user.xattr-small": b"Small xattr data"}
    assert fs.xattrs(found["/dir/xattr-dir"]) == {b"user.xattr-dir": b"xattr data on directory"}
    large = fs.xattrs(found["/dir/xattr-large"])[b"user.xattr-large"]
    assert hashlib.sha256(large).hexdigest() == _LARGE_SUM
    if fs.label == "Encrypted":
        assert sum(entry.type is EntryType.DEVICE for entry in found.values()) == 18


def test_a_place_is_where_the_bytes_lie_encrypted(disk: Reader) -> None:
    fs, found = opened(disk)
    (place,) = fs.places(found["/dir/file"])
    there = disk.read_at(place.first, place.end - place.first)
    assert len(there) == len(_TEXT)
    assert there != _TEXT
    reader = BreakingReader(disk, place.first, place.end)
    with pytest.raises(IntegrityError, match="chunk 17"):
        content(open_apfs(reader, keys=keys_of(disk)), found["/dir/file"])


def test_libfsapfs_says_the_same(disk: Reader) -> None:
    """But for LZFSE in a fork, which it cannot decode."""
    fs, found = opened(disk)
    container = pyfsapfs.container()
    container.open_file_object(LibraryFile(disk))
    volume = container.get_volume(0)
    volume.set_password(SECRET.decode())
    assert volume.unlock()
    files = [entry for entry in found.values() if entry.type is EntryType.FILE and entry.size]
    assert len(files) > 8
    for entry in files:
        if entry.path != b"/dir/compressed-lzfse-fork":
            theirs = volume.get_file_entry_by_identifier(int(entry.inode))
            assert (theirs.size, theirs.read_buffer(entry.size)) == (entry.size, content(fs, entry))


def test_a_wrong_secret_is_said_to_be_wrong(disk: Reader) -> None:
    keys = ApfsKeys(disk)
    for secret in (b"", b"Password", b"password\n", b"\xff" * 1000):
        with pytest.raises(Locked, match="the password or recovery key is wrong"):
            keys.key([secret])
    (uuid,) = keys.locked()
    ((name, key),) = keys.key([SECRET])
    assert (name, len(key)) == (uuid, 32)  # type: ignore[arg-type]
    keys.close()


def test_without_a_key_and_with_a_wrong_one_nothing_is_read(disk: Reader) -> None:
    ((uuid, key),) = keys_of(disk).items()
    for keys in ({}, {"00" * 16: key}):
        with pytest.raises(BrowseError, match="is encrypted"):
            open_apfs(disk, keys=keys).root()
    with pytest.raises(BrowseError, match=r"fails its checksum|not what it should be"):
        open_apfs(disk, keys={uuid: key[::-1]}).root()
    with pytest.raises(BrowseError, match="bits"):
        open_apfs(disk, keys={uuid: key[:-1]}).root()


# -- made by the test: nothing below uses what it tests ----------------------------------------------------


def xts(key: bytes, data: bytes, sector: int, *, encrypts: bool = True) -> bytes:
    """IEEE 1619 in sectors of 512 bytes, block by block. Of cryptography's own XTS the halves of a key must differ."""
    half = len(key) // 2
    coder = Cipher(algorithms.AES(key[:half]), modes.ECB())
    code = (coder.encryptor() if encrypts else coder.decryptor()).update
    tweaks = Cipher(algorithms.AES(key[half:]), modes.ECB()).encryptor().update
    out = []
    for at in range(0, len(data), 16):
        if at % 512 == 0:
            tweak = int.from_bytes(tweaks((sector + at // 512).to_bytes(16, "little")), "little")
        mixed = (int.from_bytes(data[at : at + 16], "little") ^ tweak).to_bytes(16, "little")
        out.append((int.from_bytes(code(mixed), "little") ^ tweak).to_bytes(16, "little"))
        tweak = tweak << 1 ^ (0x87 if tweak >> 127 else 0)
        tweak &= (1 << 128) - 1
    return b"".join(out)


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = (
        len(body).to_bytes()
        if len(body) < 128
        else b"\x81" + len(body).to_bytes()
        if len(body) < 256
        else (b"\x82" + len(body).to_bytes(2))
    )
    return tag.to_bytes() + size + body


def record(
    key: bytes, *, rounds: bytes = b"", salt: bytes = b"", digest: bytes = b"", facts: int = 0
) -> bytes:
    """A wrapped key in the shape of macOS'; ``digest`` instead of the right one."""
    uuid = bytes.fromhex(_UUID)
    fields = [der(0x80, b"\0"), der(0x81, uuid), der(0x82, facts.to_bytes(8, "little")), der(0x83, key)]
    inner = der(0xA3, *fields, *([der(0x84, rounds), der(0x85, salt)] if rounds else []))
    right = hmac.digest(hashlib.sha256(bytes.fromhex("011620171505") + b"8 bytes.").digest(), inner, "sha256")
    return der(0x30, der(0x80, b"\0"), der(0x81, digest or right), der(0x82, b"8 bytes."), inner)


def unlocking(
    secret: bytes, kek: bytes, *, rounds: int = 100, said: bytes = b"", digest: bytes = b""
) -> bytes:
    """The record of a secret."""
    wrapped = aes_key_wrap(hashlib.pbkdf2_hmac("sha256", secret, b"salt", rounds, 32), kek)
    return record(wrapped, rounds=said or rounds.to_bytes(3), salt=b"salt", digest=digest)


def bag(
    kind: int, entries: list[tuple[int, bytes]], *, count: int | None = None, length: int | None = None
) -> bytes:
    out = b""
    for tag, data in entries:
        head = struct.pack("<16sHH4x", bytes.fromhex(_UUID), tag, len(data) if length is None else length)
        out += (head + data).ljust(len(head + data) + 15 & ~15, b"\0")
    number = len(entries) if count is None else count
    raw = bytes(24) + struct.pack("<II", kind, 0) + struct.pack("<HHI8x", 2, number, 16 + len(out)) + out
    return sealed(raw.ljust(-(-len(raw) // BLOCK) * BLOCK, b"\0"))


def put(disk: bytes, block: int, raw: bytes) -> bytes:
    return disk[: block * BLOCK] + raw + disk[block * BLOCK + len(raw) :]


def with_bag(entries: list[tuple[int, bytes]], *, disk: bytes = b"", **lies: Any) -> bytes:
    """The first disk, with another bag of the volume."""
    raw = bag(_VOLUMES_KIND, entries, **lies)
    return put(
        disk or disk_of("encrypted"), _VOLUMES_BAG, xts(bytes.fromhex(_UUID) * 2, raw, _VOLUMES_BAG * 8)
    )


def with_outer_bag(entries: list[tuple[int, bytes]], *, disk: bytes = b"", **lies: Any) -> bytes:
    """The first disk, with another bag of the container."""
    disk = disk or disk_of("encrypted")
    return put(disk, _BAG, xts(disk[72:88] * 2, bag(_CONTAINERS_KIND, entries, **lies), _BAG * 8))


_KEK, _VEK = noise(32, seed=1), noise(32, seed=2)
_WHERE = struct.pack("<QQ", _VOLUMES_BAG, 1)


def made(records: list[bytes], *, key: bytes = b"", where: bytes = _WHERE) -> bytes:
    """The first disk, with keys that the test made."""
    entries = [(_UNLOCK, where), (_KEY, key or record(aes_key_wrap(_KEK, _VEK)))]
    return with_outer_bag(entries, disk=with_bag([(_UNLOCK, each) for each in records]))


def tried(disk: bytes, secret: bytes) -> bytes:
    found = Disk(BytesReader(disk))
    return unlock(found, found.volumes()[0], secret)


def test_the_bags_of_the_test_are_such_as_macos_makes() -> None:
    """Both bags of the disk again, byte for byte but for their heads: so what is changed below is what counts."""
    disk = disk_of("encrypted")
    outer = xts(disk[72:88] * 2, disk[_BAG * BLOCK : (_BAG + 1) * BLOCK], _BAG * 8, encrypts=False)
    inner = disk[_VOLUMES_BAG * BLOCK : (_VOLUMES_BAG + 1) * BLOCK]
    inner = xts(bytes.fromhex(_UUID) * 2, inner, _VOLUMES_BAG * 8, encrypts=False)
    key, unlocks, hint = outer[120:244], inner[72:220], inner[248:263]
    assert hint == b"It's 'password'"
    assert bag(_CONTAINERS_KIND, [(_UNLOCK, _WHERE), (_KEY, key)])[24:244] == outer[24:244]
    assert bag(_VOLUMES_KIND, [(_UNLOCK, unlocks), (_HINT, hint)])[24:263] == inner[24:263]
    again = with_bag([(_UNLOCK, unlocks), (_HINT, hint)])
    assert tried(again, SECRET) == keys_of(BytesReader(disk))[_UUID]


def test_any_record_takes_its_secret() -> None:
    """That of a user, of another, a recovery key's; and what is of no kind that takes a secret is passed over."""
    recovery = b"ABCD-EFGH-IJKL-MNOP-QRST-UVWX"
    others = [
        b"",
        b"\x30\x80\0",
        b"no DER",
        der(0x30, b"\x80\x7f"),
        record(bytes(40)),
        der(0x30, der(0x80, b"\0")),
    ]
    disk = made([*others, *(unlocking(each, _KEK) for each in (b"one", b"two", recovery))])
    for secret in (b"one", b"two", recovery):
        assert tried(disk, secret) == _VEK
    with pytest.raises(Locked):
        tried(disk, b"three")
    with pytest.raises(BrowseError, match="no record is for a password") as caught:
        tried(made(others), b"one")
    assert not isinstance(caught.value, Locked)


def test_a_volume_that_was_core_storage_has_half_a_key() -> None:
    """Wrapped with 16 bytes, what lies behind them is nothing; the other half is a digest."""
    half, uuid = noise(16, seed=3), bytes.fromhex(_UUID)
    opener = hashlib.pbkdf2_hmac("sha256", b"one", b"salt", 100, 32)[:16]
    unlocks = record(aes_key_wrap(opener, _KEK[:16]) + bytes(16), rounds=b"\x64", salt=b"salt", facts=2)
    key = record(aes_key_wrap(_KEK[:16], half) + bytes(16), facts=2)
    assert tried(made([unlocks], key=key), b"one") == half + hashlib.sha256(half + uuid).digest()[:16]


def test_a_damaged_record_keeps_no_other_from_opening() -> None:
    damaged = unlocking(b"one", _KEK, digest=bytes(32))
    disk = made([damaged, unlocking(b"two", _KEK)])
    assert tried(disk, b"two") == _VEK
    with pytest.raises(BrowseError, match="digest") as caught:
        tried(disk, b"one")
    assert not isinstance(caught.value, Locked)
    with pytest.raises(BrowseError, match="digest"):
        tried(made([unlocking(b"one", _KEK)], key=record(aes_key_wrap(_KEK, _VEK), digest=bytes(32))), b"one")
    with pytest.raises(BrowseError, match="digest"):
        tried(made([unlocking(b"one", _KEK)[:-1]]), b"one")
    with pytest.raises(BrowseError, match="does not fit"):
        tried(made([unlocking(b"one", noise(32, seed=4))]), b"one")
    with pytest.raises(BrowseError, match="kind that is not known"):
        tried(made([unlocking(b"one", _KEK)], key=b"no DER"), b"one")


@pytest.mark.parametrize("block", [_BAG, _VOLUMES_BAG])
def test_a_flipped_byte_in_a_bag_is_heard_of(block: int) -> None:
    for at in (0, 8, 24, 40, 100, 300, 4095):
        disk = bytearray(disk_of("encrypted"))
        disk[block * BLOCK + at] ^= 1
        with pytest.raises(BrowseError, match="fail their checksum") as caught:
            ApfsKeys(BytesReader(bytes(disk))).key([SECRET])
        assert not isinstance(caught.value, Locked)


def test_bags_that_lie_are_refused() -> None:
    record_ = unlocking(b"one", _KEK)
    lies: dict[str, Callable[[], bytes]] = {
        "fewer than it says": lambda: with_bag([(_UNLOCK, record_)], count=65535),
        "cut off": lambda: with_bag([(_UNLOCK, record_)], length=65535),
        "is not known": lambda: put(disk_of("encrypted"), _BAG, _other_kind()),
        "fill 1099511627776 blocks": lambda: made([record_], where=struct.pack("<QQ", _VOLUMES_BAG, 1 << 40)),
        "fill 0 blocks": lambda: made([record_], where=struct.pack("<QQ", _VOLUMES_BAG, 0)),
        "past the end": lambda: made([record_], where=struct.pack("<QQ", (1 << 64) - 1, 1)),
        "they are is cut": lambda: made([record_], where=bytes(15)),
        "fill 4294967296 blocks": lambda: _with_locker(_BAG, 1 << 32),
        "lies past": lambda: _with_locker(1 << 60, 1),
    }
    for said, lie in lies.items():
        with pytest.raises(BrowseError, match=said):
            tried(lie(), b"one")


def _other_kind() -> bytes:
    return xts(disk_of("encrypted")[72:88] * 2, bag(_VOLUMES_KIND, []), _BAG * 8)


def _with_locker(block: int, count: int) -> bytes:
    def change(raw: bytearray) -> None:
        struct.pack_into("<QQ", raw, 1296, block, count)

    return changed(disk_of("encrypted"), change, CONTAINER)


def test_a_bag_of_several_blocks() -> None:
    """Whose checksum is one, and whose sectors go on counting; behind the end of the disk, where there is room."""
    disk = disk_of("encrypted")
    records = [(_UNLOCK, unlocking(b"%d" % number, _KEK)) for number in range(40)]
    raw = bag(_VOLUMES_KIND, records)
    place, count = len(disk) // BLOCK, len(raw) // BLOCK
    assert count > 1
    disk = made([], where=struct.pack("<QQ", place, count)) + xts(bytes.fromhex(_UUID) * 2, raw, place * 8)
    assert tried(disk, b"39") == _VEK


def test_whatever_is_in_a_bag_the_answer_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed under a checksum that is right: the key of the volume, or an ImagefsError."""
    derive, dice, refused = hashlib.pbkdf2_hmac, random.Random(11), 0

    def quickly(digest: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
        return derive(digest, secret, salt, min(rounds, 1000), length)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", quickly)
    entries = [(_UNLOCK, _WHERE), (_KEY, record(aes_key_wrap(_KEK, _VEK)))]
    inner = bag(_VOLUMES_KIND, [(_UNLOCK, unlocking(b"one", _KEK))])
    bags = {_BAG: bag(_CONTAINERS_KIND, entries), _VOLUMES_BAG: inner}
    disk = made([unlocking(b"one", _KEK)])
    for number in range(150):
        block = dice.choice([_BAG, _VOLUMES_BAG])
        raw = bytearray(bags[block])
        for _ in range(dice.choice([1, 1, 5])):
            raw[dice.randrange(24, 250)] = dice.choice([0, 1, 0x7F, 0x80, 0x84, 0xFF, dice.randrange(256)])
        uuid = disk[72:88] if block == _BAG else bytes.fromhex(_UUID)
        try:
            assert tried(put(disk, block, xts(uuid * 2, sealed(raw), block * 8)), b"one") == _VEK, number
        except ImagefsError:
            refused += 1
    assert 50 < refused < 150


def test_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one record and for all of them: a disk may ask for 2^64, or for ten million often."""
    asked: list[int] = []

    def counted(digest: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
        asked.append(rounds)
        return bytes(length)

    def record_of(said: bytes) -> bytes:
        return record(bytes(40), rounds=said, salt=b"salt")

    honest = unlocking(b"one", _KEK)
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    for said in (b"\xff" * 8, b"\xff" * 2000, (10_000_001).to_bytes(4)):
        with pytest.raises(BrowseError, match="more than 10000000 rounds"):
            tried(made([record_of(said)]), b"one")
    assert asked == []
    disk = made([record_of((9_000_000).to_bytes(4))] * 12 + [honest])
    asked.clear()
    with pytest.raises(BrowseError, match="rounds"):
        tried(disk, b"one")
    assert asked == [9_000_000] * 3 + [100]


def test_a_key_that_is_elsewhere_is_said_to_be() -> None:
    """A Mac whose chip holds it has nothing in the container, or not of this volume."""
    for disk in (_with_locker(0, 0), with_outer_bag([]), with_outer_bag([(_KEY, b"")])):
        keys = ApfsKeys(BytesReader(disk))
        assert keys.locked() == []
        with pytest.raises(BrowseError, match="'Encrypted' is not in its container"):
            keys.key([SECRET])
    plain = ApfsKeys(BytesReader(disk_of("case_insensitive")))
    assert plain.locked() == []
    with pytest.raises(Locked):
        plain.key([SECRET])


def test_one_key_for_a_volume_that_is_there_twice() -> None:
    """Two folders with all that the one has, entered by the same key."""

    def twice(raw: bytearray) -> None:
        raw[192:200] = raw[184:192]

    reader = BytesReader(changed(disk_of("encrypted"), twice, CONTAINER))
    assert len(keys_of(reader)) == 1
    fs, found = opened(reader)
    tops = [entry for entry in fs.children(fs.root()) if entry.type is EntryType.DIRECTORY]
    assert (len(tops), {entry.flags for entry in tops}) == (2, {()})
    assert [content(fs, each) for path, each in found.items() if path.endswith("/dir/file")] == [_TEXT] * 2
    locked = open_apfs(reader)
    assert [entry.flags for entry in locked.children(locked.root())] == [("encrypted",)] * 2


def test_what_no_key_of_the_volume_decrypts_is_not_read() -> None:
    """Files with keys of their own; their names can be read all the same."""
    disk = disk_of("encrypted")
    keys = keys_of(BytesReader(disk))

    def change(raw: bytearray) -> None:
        struct.pack_into("<Q", raw, 264, 0x100)

    fs = open_apfs(BytesReader(changed(disk, change, VOLUME)), keys=keys)
    with pytest.raises(BrowseError, match="keys of their own"):
        fs.open(fs.lookup(b"/dir/file"))
    assert content(fs, fs.lookup(b"/dir/compressed-zlib-xattr")) == _PACKED


def test_a_volume_that_was_being_encrypted_is_not_decrypted() -> None:
    disk = disk_of("encrypted")
    keys = keys_of(BytesReader(disk))

    def change(raw: bytearray) -> None:
        struct.pack_into("<Q", raw, 976, 1)

    fs = open_apfs(BytesReader(changed(disk, change, VOLUME)), keys=keys)
    with pytest.raises(BrowseError, match="was being encrypted or decrypted"):
        fs.open(fs.lookup(b"/dir/file"))


def test_what_was_moved_is_decrypted_as_what_it_was() -> None:
    """The same bytes in another block, under the number of the old one (crypto_id); and a number without sense."""
    disk = disk_of("encrypted")
    ((uuid, key),) = keys_of(BytesReader(disk)).items()
    free = len(disk) // BLOCK - 1
    assert not any(disk[free * BLOCK :])
    moved = put(disk, free, disk[117 * BLOCK : 118 * BLOCK])
    for code in (117, 1 << 48):
        old, new = struct.pack("<QQ", 117, 117), struct.pack("<QQ", free, code)
        fs = open_apfs(BytesReader(_replaced(moved, key, old, new)), keys={uuid: key})
        file = fs.lookup(b"/dir/file")
        assert [place.first for place in fs.places(file)] == [free * BLOCK] if code == 117 else True
        if code == 117:
            assert content(fs, file) == _TEXT
        else:
            with pytest.raises(BrowseError, match="makes no sense"):
                fs.open(file)


def _replaced(disk: bytes, key: bytes, old: bytes, new: bytes) -> bytes:
    """``old`` for ``new`` in the nodes of the tree of files, encrypted again."""
    done = 0
    for block in (211, 212, 213, 214):
        raw = xts(key, disk[block * BLOCK : (block + 1) * BLOCK], block * 8, encrypts=False)
        if old in raw:
            disk = put(disk, block, xts(key, sealed(raw.replace(old, new)), block * 8))
            done += 1
    assert done == 1
    return disk


def test_a_flipped_byte_in_an_encrypted_node_is_heard_of() -> None:
    """Every node is held against its checksum after it was decrypted: nothing is told of it, and the rest is read."""
    disk = disk_of("encrypted")
    keys = keys_of(BytesReader(disk))
    whole = len(opened(BytesReader(disk))[1])
    for block in (211, 212, 213, 214):
        hurt = bytearray(disk)
        hurt[block * BLOCK + 2000] ^= 1
        fs = open_apfs(BytesReader(bytes(hurt)), keys=keys)
        errors = list[ImagefsError]()
        try:
            found = list(walk(fs, fs.root(), onerror=errors.append))
        except BrowseError as error:  # the root itself
            errors.append(error)
            found = []
        assert len(found) < whole or any("damaged" in entry.flags for entry in found)
        assert errors or any("damaged" in entry.flags for entry in found)


def test_without_cryptography_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest)

    reader = BytesReader(disk_of("encrypted"))
    keys = keys_of(reader)
    monkeypatch.setattr(builtins, "__import__", without)
    attempts: list[Callable[[], Any]] = [
        lambda: keys_of(reader),
        lambda: open_apfs(reader, keys=keys).root(),
        lambda: unwrapped(_KEK, bytes(40)),
    ]
    for attempt in attempts:
        with pytest.raises(BrowseError, match="the package cryptography, which is not installed") as caught:
            attempt()
        assert "pip install 'imagefs[inner]'" in caught.value.hint
    plain = open_apfs(BytesReader(disk_of("case_insensitive")))
    assert content(plain, plain.lookup(b"/dir/file")) == _TEXT


# -- contents -----------------------------------------------------------------------------------------------

_PLAIN = noise(48 * BLOCK, seed=5)
#: Pieces of a file: where in it, how many blocks, where on the disk, which block it was encrypted as.
_SHAPE = ((0, 1, 9, 700), (1, 3, 2, 2), (6, 30, 12, 1 << 40), (36, 12, 100, 50))


def _laid_out() -> tuple[bytes, list[Piece], bytes]:
    """A disk, the pieces of a file on it that has a hole and ends within a sector, and its content."""
    disk, size = bytearray(noise(112 * BLOCK, seed=6)), 47 * BLOCK + 700
    plain, pieces = bytearray(size), list[Piece]()
    for first, count, block, code in _SHAPE:
        part = _PLAIN[first * BLOCK : (first + count) * BLOCK]
        disk[block * BLOCK : (block + count) * BLOCK] = xts(_VEK, part, code * 8)
        length = min(count * BLOCK, size - first * BLOCK)
        plain[first * BLOCK : first * BLOCK + length] = part[:length]
        pieces.append(CodedPiece(first * BLOCK, length, block * BLOCK, code * 8))
    pieces.insert(2, CodedPiece(4 * BLOCK, 2 * BLOCK, None, 0))
    return bytes(disk), pieces, bytes(plain)


def _file(reader: Reader, pieces: list[Piece], size: int) -> DecipheredReader:
    return DecipheredReader(reader, size, pieces, SectorCipher("aes-xts-plain64", _VEK), label="/a")


def test_a_content_in_several_pieces_is_a_reader() -> None:
    disk, pieces, plain = _laid_out()
    check_reader(_file(BytesReader(disk), pieces, len(plain)), plain)
    hole = list(_file(BytesReader(disk), pieces, len(plain)).extents(0, len(plain)))
    assert hole == [
        Extent(State.STORED, 0, 4 * BLOCK),
        Extent(State.ZERO, 4 * BLOCK, 2 * BLOCK),
        Extent(State.STORED, 6 * BLOCK, len(plain) - 6 * BLOCK),
    ]
    missing = _file(BytesReader(disk[: 105 * BLOCK]), pieces, len(plain))
    assert missing.read_at(0, 41 * BLOCK) == plain[: 41 * BLOCK]
    with pytest.raises(BrowseError, match=f"byte {40 * BLOCK + 5}.*past the end of the volume"):
        missing.read_at(40 * BLOCK + 5, 2 * BLOCK)


def test_what_nobody_has_is_zeros_and_no_garbage() -> None:
    """Whole sectors of it; and zeros that were captured are none once they are decrypted."""
    disk, pieces, plain = _laid_out()
    first, end = 12 * BLOCK + 1000, 12 * BLOCK + 1030
    for state in (State.SKIPPED, State.UNREADABLE):
        content = _file(MarkedReader(BytesReader(disk), [first], [end], state), pieces, len(plain))
        at = 6 * BLOCK + 512
        holed = plain[:at] + bytes(1024) + plain[at + 1024 :]
        told = list(content.extents(at - 1, 1026))
        assert told == [
            Extent(State.STORED, at - 1, 1),
            Extent(state, at, 1024),
            Extent(State.STORED, at + 1024, 1),
        ]
        check_reader(content, holed)
    zeros = MarkedReader(BytesReader(disk), [first], [end], State.ZERO)
    for file in (_file(zeros, pieces, len(plain)), _file(zeros, pieces[3:4], len(plain))):
        assert {extent.state for extent in file.extents(6 * BLOCK, 4 * BLOCK)} == {State.STORED}
