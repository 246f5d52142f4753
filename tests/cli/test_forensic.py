"""Forensic capture from the command line: digests, case data, report, verification."""

from __future__ import annotations

import hashlib
import subprocess
import sys
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
    order = [
        "Case Number: 2026-17",
        "Evidence Number: E3",
        "Unique Description: laptop",
        "Examiner: A. Müller",
    ]
    order += ["Notes: x", "Source: disk.raw", "Bytes per Sector: 512", "Bytes per Physical Sector: unknown"]
    order += ["Sector Count: 4628", "Hidden by HPA", "Source Read-Only (blockdev --getro): not a device"]
    order += [
        "Host:",
        "Operating System:",
        "User:",
        "Command Line: imagefs capture disk.raw",
        "Tool: imagefs ",
    ]
    order += ["Started: ", "Finished: ", "In the Image: 4628", "Unreadable: 0", "Computed Hashes:"]
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
    report = (tmp_path / (made.document["path"] + ".txt")).read_text()
    assert "Source Read-Only (blockdev --getro): yes\n" in report
    assert "Bytes per Physical Sector: 512\n" in report


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


def patched(tmp_path: Path, patch: str, *words: str) -> tuple[int, str, str]:
    """The command line in a process in which ``patch`` was run first."""
    code = f"{patch}\nfrom imagefs.cli.main import run\nrun({list(words)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=600, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_digest_that_does_not_come_out_again_is_a_mismatch(cli: Cli, raw: Path, tmp_path: Path) -> None:
    """As if memory had failed while MD5 was fed: the others match, and nothing says it went well."""
    patch = """
from imagefs.ops import capture
class Broken(capture.LinearDigests):
    def finish(self):
        return super().finish() | {"md5": "00" * 16}
capture.LinearDigests = Broken
"""
    code, out, err = patched(tmp_path, patch, "capture", "disk.raw", "set", "--case", "1")
    assert code == 4
    assert "md5     " + "00" * 16 + "  MISMATCH" in out
    assert "verified" not in out
    assert "does not read back" in err
    (report,) = (tmp_path / "set").glob("*.txt")
    told = report.read_text().partition("Image Verification:")[2]
    assert [line.strip() for line in told.splitlines()[2:]] == [
        "MD5: MISMATCH",
        "SHA1: MATCH",
        "SHA256: MATCH",
    ]


def test_a_verification_that_was_stopped_is_told_of(cli: Cli, raw: Path, tmp_path: Path) -> None:
    """The image is sealed by then: it stays, with a report that says how far it came."""
    patch = """
from imagefs.cli import capture
def stopped(*_, **__):
    raise KeyboardInterrupt
capture.verify_image = stopped
"""
    code, out, err = patched(tmp_path, patch, "capture", "disk.raw", "set", "--case", "1")
    (image,) = (tmp_path / "set").glob("*.imagefs")
    assert (code, out) == (130, "")
    assert f"set/{image.name} is finished, but not verified" in err
    assert "nothing half-done" not in err
    assert "Result: not finished\n" in Path(f"{image}.txt").read_text()
    assert cli("verify", "set").code == 0


def test_what_sha256sum_takes_comes_first(cli: Cli, raw: Path, tmp_path: Path) -> None:
    need_tool("sha256sum")
    assert cli("capture", "disk.raw", "set", "--hash", "sha512,sha256,md5").code == 0
    (tmp_path / "sums").write_bytes(cli("info", "set", "--hashes").out)
    assert tool_text("sh", "-c", f"cd {tmp_path} && sha256sum --strict -c sums") == "disk.raw: OK\n"
