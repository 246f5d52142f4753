"""LUKS made by cryptsetup and qemu-img: keys, contents, wrong secrets, damaged and hostile headers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyluksde
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from imagefs.block.joined import LostReader, lost_in
from imagefs.block.sectorcipher import DecryptedReader, SectorCipher
from imagefs.block.views import BytesReader, MarkedReader, SliceReader
from imagefs.errors import BrowseError, Locked
from imagefs.interfaces import State
from imagefs.volume.luks import read_header
from imagefs.volume.luksunlock import unlock
from tests.support.images import noise
from tests.support.oracles import need_tool, qemu_img, run_tool
from tests.support.reader_contract import check_reader

SECRET = b"secret"
SMALL = ["--pbkdf-memory", "2048", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4"]
VERSION_2 = ["--type", "luks2", "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k"]
QUICK = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
KINDS = {
    "luks1 xts": ["--type", "luks1", "--pbkdf-force-iterations", "1000"],
    "luks1 essiv": [
        "--type",
        "luks1",
        "--pbkdf-force-iterations",
        "1000",
        "-c",
        "aes-cbc-essiv:sha256",
        "-s",
        "256",
    ],
    "luks2 argon2id": [*VERSION_2, "--pbkdf", "argon2id", *SMALL, "--sector-size", "4096"],
    "luks2 argon2i": [*VERSION_2, "--pbkdf", "argon2i", *SMALL, "-s", "256"],
    "luks2 pbkdf2": [*VERSION_2, *QUICK, "--hash", "sha512", "--sector-size", "512"],
    "luks2 cbc": [*VERSION_2, *QUICK, "-c", "aes-cbc-plain64", "-s", "128"],
}


def made(path: Path, words: list[str], secret: bytes = SECRET) -> bytes:
    need_tool("cryptsetup")
    with path.open("wb") as file:
        file.truncate(4 << 20)
    run_tool(["cryptsetup", "luksFormat", "-q", *words, path, "-"], stdin=secret)
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_cryptsetups(kind: str, tmp_path: Path) -> None:
    """Of every kind the key that cryptsetup itself dumps; and a wrong passphrase is said to be wrong."""
    reader = BytesReader(made(tmp_path / "disk", KINDS[kind]))
    header = read_header(reader)
    words = ["luksDump", "--dump-volume-key", "--volume-key-file", tmp_path / "key", "-q", tmp_path / "disk"]
    run_tool(["cryptsetup", *words, "--key-file", "-"], stdin=SECRET)
    assert unlock(reader, header, SECRET) == (tmp_path / "key").read_bytes()
    with pytest.raises(Locked, match="is wrong"):
        unlock(reader, header, b"another")


def test_any_keyslot_opens_it(tmp_path: Path) -> None:
    """A second one, with a key file of bytes that are no text."""
    made(tmp_path / "disk", KINDS["luks2 pbkdf2"])
    (tmp_path / "file").write_bytes(noise(300, seed=9))
    words = ["luksAddKey", "-q", *QUICK, tmp_path / "disk", tmp_path / "file", "--key-file", "-"]
    run_tool(["cryptsetup", *words], stdin=SECRET)
    reader = BytesReader((tmp_path / "disk").read_bytes())
    header = read_header(reader)
    assert len(header.slots) == 2
    assert unlock(reader, header, noise(300, seed=9)) == unlock(reader, header, SECRET)


def test_contents_that_qemu_wrote(tmp_path: Path) -> None:
    """An independent writer of data; libluksde is a second opinion, on whole sectors: on others it is wrong."""
    plain = noise(3 << 19) + bytes(1 << 19)
    (tmp_path / "plain").write_bytes(plain)
    options = ["-O", "luks", "-o", "key-secret=k,iter-time=10"]
    words = ["convert", "--object", "secret,id=k,data=secret", "-f", "raw", *options, "plain", "disk"]
    qemu_img(*words, cwd=tmp_path)
    reader = BytesReader((tmp_path / "disk").read_bytes())
    content = opened(reader)
    check_reader(content, plain, rounds=60)
    other = pyluksde.volume()
    other.set_password("secret")
    other.open(str(tmp_path / "disk"))
    assert other.read_buffer_at_offset(1 << 20, 0) == plain[: 1 << 20]


def opened(reader: BytesReader) -> DecryptedReader:
    header = read_header(reader)
    cipher = SectorCipher(header.cipher, unlock(reader, header, SECRET))
    size = reader.size if header.size is None else header.size
    return DecryptedReader(
        reader, cipher, start=header.start, size=size, sector=header.sector, sector_size=header.sector_size
    )


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("key_size", [32, 64])
def test_many_sectors_at_once_are_as_one_by_one(sector_size: int, key_size: int) -> None:
    """XTS against the mode of the library itself, at the border of its use and with a carry into the upper word."""
    key, count = noise(key_size), 70
    data = noise(sector_size * count, seed=3)
    first = (1 << 33) - 5 * sector_size // 512
    cipher = SectorCipher("aes-xts-plain64", key)
    expected = b""
    for number in range(count):
        tweak = (first + number * sector_size // 512).to_bytes(16, "little")
        each = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
        expected += each.update(data[number * sector_size : (number + 1) * sector_size])
    assert cipher.decrypt(data, first, sector_size) == expected
    assert cipher.decrypt(data[:sector_size], first, sector_size) == expected[:sector_size]


@pytest.mark.parametrize("iv", ["plain", "plain64", "plain64be", "essiv:sha256"])
def test_cbc_against_the_library(iv: str) -> None:
    key, first = noise(32), (1 << 32) + 7
    data = noise(512 * 9, seed=4)
    expected = b""
    for number in range(first, first + 9):
        start = number.to_bytes(16, "little")
        if iv == "plain":
            start = (number & 0xFFFFFFFF).to_bytes(16, "little")
        elif iv == "plain64be":
            start = number.to_bytes(16, "big")
        elif iv.startswith("essiv"):
            salt = hashlib.sha256(key).digest()
            start = Cipher(algorithms.AES(salt), modes.ECB()).encryptor().update(start)
        at = (number - first) * 512
        expected += Cipher(algorithms.AES(key), modes.CBC(start)).decryptor().update(data[at : at + 512])
    assert SectorCipher(f"aes-cbc-{iv}", key).decrypt(data, first, 512) == expected


@pytest.mark.parametrize(
    "spec", ["serpent-xts-plain64", "aes-lrw-benbi", "aes-xts-random", "aes", "aes-cbc-essiv:no"]
)
def test_ciphers_that_are_not_known_are_named(spec: str) -> None:
    with pytest.raises(BrowseError, match=spec.split(":")[0]):
        SectorCipher(spec, bytes(32))


def test_what_nobody_has_is_not_decrypted() -> None:
    """A sector that the source could not read is zeros with a mark, not noise."""
    key, data = noise(64), noise(1 << 16)
    damaged = MarkedReader(BytesReader(data), [1000], [1600], State.UNREADABLE)
    cipher = SectorCipher("aes-xts-plain64", key)
    plain = DecryptedReader(damaged, cipher, start=512, size=1 << 16, sector=0, sector_size=512)
    reader = LostReader(plain, lambda: lost_in(SliceReader(damaged, 512, plain.size), 512))
    whole = cipher.decrypt(data[512:], 0, 512)
    expected = bytes(1536) + whole[1536:]
    assert [(each.state, each.offset, each.length) for each in reader.extents(0, reader.size)] == [
        (State.UNREADABLE, 0, 1536),
        (State.STORED, 1536, reader.size - 1536),
    ]
    check_reader(reader, expected, rounds=40)


# -- hostile headers ------------------------------------------------------------------------------


def test_flips_in_a_header_of_version_2_are_noticed(tmp_path: Path) -> None:
    """With one copy damaged the other counts; with both, nothing does."""
    disk = made(tmp_path / "disk", KINDS["luks2 pbkdf2"])
    sound = read_header(BytesReader(disk))
    for place in [*range(0, 512, 5), *range(4096, 6000, 97)]:
        one = bytearray(disk[: 1 << 20])
        one[place] ^= 0x10
        assert read_header(BytesReader(bytes(one))) == sound, place
        one[(1 << 14) + place] ^= 0x10
        with suppress(BrowseError):
            assert read_header(BytesReader(bytes(one))) == sound


def test_flips_in_a_header_of_version_1_never_raise_what_is_not_ours(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", KINDS["luks1 xts"])
    for place in range(0, 592, 3):
        one = bytearray(disk)
        one[place] ^= 0x01
        reader = BytesReader(bytes(one))
        try:
            header = read_header(reader)
            if all(slot.kdf.rounds < 1 << 17 for slot in header.slots) and header.checks[0].rounds < 1 << 17:
                assert len(unlock(reader, header, SECRET)) == 64
        except BrowseError:
            pass


def forged(disk: bytes, change: Callable[[dict[str, Any]], object]) -> BytesReader:
    """The first header of version 2 with other JSON and the right checksum; no second one."""
    facts = json.loads(disk[4096 : 1 << 14].split(b"\0", 1)[0])
    changed = change(facts)
    text = changed if isinstance(changed, bytes) else json.dumps(facts).encode()
    area = text.ljust((1 << 14) - 4096, b"\0")[: (1 << 14) - 4096]
    head = bytearray(disk[:4096])
    head[448:512] = bytes(64)
    head[448:480] = hashlib.sha256(bytes(head) + area).digest()
    return BytesReader(bytes(head) + area + bytes(1 << 14) + disk[1 << 15 :])


@pytest.fixture(scope="module")
def version_2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("luks") / "disk", KINDS["luks2 argon2id"])


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["keyslots"]["0"]["kdf"].update(memory=1 << 40),
        lambda facts: facts["keyslots"]["0"]["kdf"].update(time=1 << 40),
        lambda facts: facts["keyslots"]["0"]["kdf"].update(type="scrypt"),
        lambda facts: facts["keyslots"]["0"]["af"].update(stripes=1 << 30),
        lambda facts: facts["keyslots"]["0"].update(key_size=-1),
        lambda facts: facts["segments"]["0"].update(sector_size=7),
        lambda facts: facts["segments"]["0"].update(offset="-512"),
        lambda facts: facts["segments"]["0"].update(size="many"),
        lambda facts: facts["digests"]["0"].update(salt="%"),
        lambda facts: facts.pop("segments"),
        lambda facts: b"[" * 6000,
        lambda facts: b'{"segments": 5}',
    ],
)
def test_headers_that_make_no_sense_are_damaged(
    change: Callable[[dict[str, Any]], object], version_2: bytes
) -> None:
    with pytest.raises(BrowseError, match="LUKS header is damaged"):
        read_header(forged(version_2, change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda facts: facts["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}), "anew"),
        (lambda facts: facts["config"].update(requirements={"mandatory": ["new"]}), "needs new"),
        (lambda facts: facts["segments"].update({"1": facts["segments"]["0"]}), "one encrypted segment"),
        (lambda facts: facts["segments"]["0"].update(integrity={"type": "hmac"}), "checksums"),
    ],
)
def test_what_cannot_be_read_yet_is_told(
    change: Callable[[dict[str, Any]], object], why: str, version_2: bytes
) -> None:
    assert why in read_header(forged(version_2, change)).refused
