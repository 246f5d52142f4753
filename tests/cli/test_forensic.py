"""Forensic capture from the command line: digests, case data, report, verification."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.images import noise, write_disk
from tests.support.oracles import loop_device, need_tool, root_only, tool_text

CASE = (
    "--case",
    "2026-17",
    "--evidence",
    "E3",
    "--examiner",
    "A. Müller",
    "--description",
    "laptop",
    "--notes",
    "x",
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_disk(tmp_path / "disk.raw", noise(300_000) + bytes(2_000_000) + noise(70_001, 2))


def test_case_data_make_it_forensic(cli: Cli, raw: Path, tmp_path: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--json", *CASE)
    assert made.code == 0, made.err
    plain = raw.read_bytes()
    digests = {name: hashlib.new(name, plain).hexdigest() for name in ("md5", "sha1", "sha256")}
    assert made.document["digests"] == digests
    assert made.document["verification"] == dict.fromkeys(digests, "MATCH")
    assert made.document["mode"] == "all"
    told = cli("info", "set", "--json").document
    assert told["case"] == {
        "case": "2026-17",
        "evidence": "E3",
        "examiner": "A. Müller",
        "description": "laptop",
        "notes": "x",
    }
    assert told["digests"] == digests
    assert told["consistency"] == "offline"
    text = (tmp_path / (made.document["path"] + ".txt")).read_text()
    order = ["Case Number: 2026-17", "Examiner: A. Müller", "Source: disk.raw", "Bytes per Sector: 512"]
    order += ["Sector Count:", "Host:", "Command Line: imagefs capture disk.raw", "Read Errors: none"]
    order += [f"MD5: {digests['md5']}", f"SHA256: {digests['sha256']}", "MD5: MATCH", "SHA256: MATCH"]
    places = [text.index(words) for words in order]
    assert places == sorted(places), text
    shown = cli("info", "set").text
    assert "A. Müller" in shown
    assert digests["sha1"] in shown


def test_sha256sum_accepts_what_info_prints(cli: Cli, raw: Path, tmp_path: Path) -> None:
    need_tool("sha256sum")
    assert cli("capture", "disk.raw", "set", "--forensic").code == 0
    (tmp_path / "sums").write_bytes(cli("info", "set", "--hashes").out)
    assert tool_text("sh", "-c", f"cd {tmp_path} && sha256sum --strict -c sums") == "disk.raw: OK\n"
    assert cli("info", "set", "--hashes", "--json").document["digests"]["md5"]


@root_only
def test_disk_raw_of_the_mount_has_the_recorded_digest(cli: Cli, raw: Path, tmp_path: Path) -> None:
    """The source is a real block device, read-only as an examiner has it."""
    need_tool("sha256sum", "fusermount3")
    raw.write_bytes(raw.read_bytes()[: 4096 * 512])
    with loop_device(raw) as device:
        made = cli("capture", device, "set", "--json", "--forensic", "--verify")
        assert made.code == 0, made.err
    (tmp_path / "mnt").mkdir()
    assert cli("mount", "set", "mnt").code == 0
    try:
        said = tool_text("sha256sum", tmp_path / "mnt/disk.raw").split()[0]
    finally:
        assert cli("umount", "mnt").code == 0
    assert said == made.document["digests"]["sha256"]
    assert "Source Read-Only: yes" in (tmp_path / (made.document["path"] + ".txt")).read_text()


def test_digests_without_a_case(cli: Cli, raw: Path, tmp_path: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--json", "--hash", "SHA-256,md5,md5")
    assert set(made.document["digests"]) == {"sha256", "md5"}
    assert "verification" not in made.document
    assert list((tmp_path / "set").glob("*.txt")) == []
    assert cli("info", "set", "--hashes").text == f"{made.document['digests']['sha256']}  disk.raw\n"


def test_wrong_words(cli: Cli, raw: Path) -> None:
    bad = cli("capture", "disk.raw", "set", "--hash", "crc32")
    assert (bad.code, "there are md5, sha1, sha256, sha512" in bad.err) == (2, True)
    long = cli("capture", "disk.raw", "set", "--examiner", "x" * 257)
    assert (long.code, "longer than 256 bytes" in long.err) == (2, True)
    assert cli("capture", "disk.raw", "set", "--no-verify", "--case", "1").code == 0
    assert cli("capture", "disk.raw", "set", "--kind", "full").code == 0
    none = cli("info", "set", "--hashes")
    assert (none.code, "no digest of the whole device" in none.err) == (2, True)


def test_a_deleted_image_takes_its_report_along(cli: Cli, raw: Path, tmp_path: Path) -> None:
    assert cli("capture", "disk.raw", "set", "--forensic").code == 0
    assert len(list((tmp_path / "set").glob("*.txt"))) == 1
    assert cli("delete", "set").code == 0
    assert list((tmp_path / "set").iterdir()) == [tmp_path / "set" / ".lock"]


def test_rate_and_nice(cli: Cli, raw: Path) -> None:
    made = cli("capture", "disk.raw", "set", "--rate", "50M/s", "--nice", "--json")
    assert (made.code, made.document["read_bytes"] > 0) == (0, True)
    assert cli("capture", "disk.raw", "set", "--rate", "fast").code == 2
