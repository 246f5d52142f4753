"""``imagefs boot-test`` on disks that boot and disks that do not: qemu's SeaBIOS, OVMF, syslinux, and a boot
sector of 512 bytes that tries to write to the disk it came from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imagefs.boot.machine import find_ovmf
from tests.mounter.conftest import need, wait_until
from tests.support.images import noise
from tests.support.oracles import need_tool, root_only, run_tool

pytestmark = pytest.mark.timeout(1200)

MIB = 2**20
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
EFI = Path("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi")
EFI_MODULE = Path("/usr/lib/syslinux/modules/efi64/ldlinux.e64")
CONFIG = "SERIAL 0 115200\nDEFAULT nothing\nPROMPT 0\nLABEL nothing\n  LINUX nothing\n"
#: KVM where it is may be broken (ARCHITECTURE.md), and TCG does the same everywhere.
SURE = ("--accel", "tcg", "--timeout", "200")


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_tool("qemu-system-x86_64")


@dataclass(frozen=True)
class Run:
    code: int
    document: dict[str, Any]


def words_of(room: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-P", "-m", "imagefs", *words], {**os.environ, "TMPDIR": str(room / "tmp")}


def imagefs(room: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    (room / "tmp").mkdir(exist_ok=True)
    command, env = words_of(room, *words)
    return subprocess.run(command, cwd=room, env=env, capture_output=True, timeout=1100, check=False)


def boot(room: Path, *words: str, source: str = "disk.raw") -> Run:
    """Capture the disk of a room and boot it; nothing may change in the set or stay behind."""
    made = imagefs(room, "capture", source, "set", "--mode", "all")
    assert made.returncode == 0, made.stderr
    before = traces(room / "set")
    done = imagefs(room, "boot-test", "set", "--json", *SURE, *words)
    assert b"Traceback" not in done.stderr
    assert traces(room / "set") == before
    assert list((room / "tmp").iterdir()) == []
    assert machines(room) == []
    return Run(done.returncode, json.loads(done.stdout))


def traces(folder: Path) -> list[tuple[str, int, str]]:
    """Name, time of change and content of everything in a set."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(f.name, f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def machines(room: Path) -> list[int]:
    """Processes of qemu that were started for this room."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            if os.fsencode(room) in words and b"qemu-system" in words:
                found.append(int(folder.name))
    return found


def sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"


def writer() -> bytes:
    """Writes itself over sector 1, reads that back, and says on serial port and screen how it went."""
    start = bytes.fromhex("fa31c08ed88ec08ed0bc007cfb")  # no interrupts, segments 0, stack below us
    write = bytes.fromhex("b80103b90200ba8000bb007ccd13")  # int 13h, write one sector
    read = bytes.fromhex("b80102b90200ba8000bb007ecd13")  # int 13h, read it to 7e00
    compare = bytes.fromhex("a0fe7f3c55")  # the 55 of its signature
    show = bytes.fromhex("ac08c0740dbaf803eeb40ebb0700cd10ebeef4ebfd")  # each byte to 3f8h and int 10h; hlt
    checked = [(write, 0x72), (read, 0x72), (compare, 0x75)]
    size = len(start) + sum(len(code) + 2 for code, _ in checked)
    good, bad = size + 3 + 2 + 3 + len(show), 0
    texts = b"\r\nwritten and read back\r\ndone\0"
    bad = good + len(texts)
    code = start
    for part, jump in checked:  # to where the bad text is chosen: behind the good choice
        code += part
        code += bytes([jump, size + 5 - (len(code) + 2)])
    code += b"\xbe" + struct.pack("<H", 0x7C00 + good) + b"\xeb\x03"
    code += b"\xbe" + struct.pack("<H", 0x7C00 + bad) + show
    return sector(code + texts + b"\r\ncould not write\r\n\0")


def fat_disk(path: Path, *, gpt: bool) -> Path:
    """A disk of 40 MiB with one FAT16 partition, an ESP on GPT, an active one on MBR."""
    need_tool("sfdisk", "mkfs.fat", "mcopy", "mmd")
    with path.open("wb") as out:
        out.truncate(40 * MIB)
    kind, type_ = ("gpt", "U") if gpt else ("dos", "c, bootable")
    table = f"label: {kind}\nstart=2048, size=65536, type={type_}\n"
    run_tool(["sfdisk", "-q", path], stdin=table.encode())
    run_tool(["mkfs.fat", "-F", "16", "--offset", "2048", "-h", "2048", path, "32768"])
    (path.parent / "syslinux.cfg").write_text(CONFIG)
    return path


def into(disk: Path, source: Path, target: str) -> None:
    run_tool(["mcopy", "-i", f"{disk}@@{MIB}", source, target], env={"MTOOLS_SKIP_CHECK": "1"})


def test_a_boot_sector_runs_and_what_it_writes_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(writer() + b"sector 1".ljust(512, b".") + bytes(3 * MIB))
    run = boot(tmp_path, "--until", "done", "--screenshot", "screen.png")
    told = run.document
    assert (run.code, told["loader_found"], told["firmware"]) == (0, True, "bios"), told
    assert told["accelerator"] == "tcg"
    assert "Booting from 0000:7c00" in told["evidence"]
    assert told["console"] == "written and read back\ndone"
    assert "written and read back" in told["screen"]
    picture = (tmp_path / "screen.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack_from(">II", picture, 16) == (720, 400)
    content = imagefs(tmp_path, "restore", "set", "-")
    assert content.stdout == (tmp_path / "disk.raw").read_bytes()


def test_syslinux_from_a_bios(tmp_path: Path) -> None:
    need_tool("syslinux")
    need(MBR.exists(), "syslinux-common")
    disk = fat_disk(tmp_path / "disk.raw", gpt=False)
    into(disk, tmp_path / "syslinux.cfg", "::/")
    run_tool(["syslinux", "-t", str(MIB), "-i", disk])
    with disk.open("r+b") as out:
        out.write(MBR.read_bytes()[:440])
    run = boot(tmp_path, "--until", "Loading nothing")
    assert (run.code, run.document["loader_found"]) == (0, True), run.document
    assert "SYSLINUX" in run.document["console"]


def test_syslinux_from_uefi(tmp_path: Path) -> None:
    need(find_ovmf(), "ovmf")
    need(EFI.exists() and EFI_MODULE.exists(), "syslinux-efi and syslinux-common")
    disk = fat_disk(tmp_path / "disk.raw", gpt=True)
    run_tool(["mmd", "-i", f"{disk}@@{MIB}", "::/EFI", "::/EFI/BOOT"])
    into(disk, EFI, "::/EFI/BOOT/BOOTX64.EFI")
    into(disk, EFI_MODULE, "::/EFI/BOOT/ldlinux.e64")
    into(disk, tmp_path / "syslinux.cfg", "::/EFI/BOOT/syslinux.cfg")
    run = boot(tmp_path, "--until", "Loading nothing")
    told = run.document
    assert (run.code, told["loader_found"], told["firmware"]) == (0, True, "uefi"), told
    assert any(line.startswith("BdsDxe: starting Boot") for line in told["evidence"])
    assert told["ended"] == "'Loading nothing' appeared"


def test_uefi_finds_no_loader_and_those_of_another_machine_are_named(tmp_path: Path) -> None:
    need(find_ovmf(), "ovmf")
    need(EFI.exists(), "syslinux-efi")
    disk = fat_disk(tmp_path / "disk.raw", gpt=True)
    run_tool(["mmd", "-i", f"{disk}@@{MIB}", "::/EFI", "::/EFI/debian"])
    into(disk, EFI, "::/EFI/debian/grubx64.efi")
    run = boot(tmp_path)
    assert (run.code, run.document["loader_found"]) == (4, False), run.document
    assert "Not Found" in run.document["reason"]
    assert run.document["other_loaders"] == ["/p1/EFI/debian/grubx64.efi"]


@root_only
def test_a_disk_of_4096_byte_sectors_boots_from_uefi_alone(tmp_path: Path) -> None:
    need(find_ovmf(), "ovmf")
    need(EFI.exists(), "syslinux-efi")
    need_tool("sfdisk", "mkfs.fat", "mmd", "losetup")
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as out:
        out.truncate(100 * MIB)
    device = run_tool(["losetup", "--sector-size", "4096", "--find", "--show", disk]).stdout.decode().strip()
    try:
        run_tool(
            ["sfdisk", "-q", "--no-reread", device], stdin=b"label: gpt\nstart=256, size=24000, type=U\n"
        )
        run_tool(["mkfs.fat", "-S", "4096", "-F", "16", "--offset", "256", device, "96000"])
        run_tool(["mmd", "-i", f"{device}@@{MIB}", "::/EFI", "::/EFI/BOOT"])
        into(Path(device), EFI, "::/EFI/BOOT/BOOTX64.EFI")
        run = boot(tmp_path, "--until", "BdsDxe: starting", source=device)
    finally:
        run_tool(["losetup", "--detach", device])
    assert (run.code, run.document["loader_found"]) == (0, True), run.document
    assert "NVMe" in run.document["reason"]
    refused = imagefs(tmp_path, "boot-test", "set", "--firmware", "bios")
    assert (refused.returncode, "4096" in refused.stderr.decode()) == (2, True)


def blank(room: Path) -> None:
    (room / "disk.raw").write_bytes(bytes(MIB))


def data_only(room: Path) -> None:
    """GPT with its protective MBR: a signature and no code."""
    fat_disk(room / "disk.raw", gpt=True)


def no_active_partition(room: Path) -> None:
    need(MBR.exists(), "syslinux-common")
    (room / "disk.raw").write_bytes(sector(MBR.read_bytes()[:440]) + bytes(MIB))


def gives_back(room: Path) -> None:
    (room / "disk.raw").write_bytes(sector(bytes.fromhex("cd18")) + bytes(MIB))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (blank, "not a bootable disk"),
        (data_only, "no code in it"),
        (no_active_partition, "Missing operating system"),
        (gives_back, "gave back"),
    ],
)
def test_a_bios_finds_no_loader(tmp_path: Path, build: Callable[[Path], None], reason: str) -> None:
    build(tmp_path)
    run = boot(tmp_path, "--firmware", "bios")
    assert (run.code, run.document["loader_found"]) == (4, False), run.document
    assert reason in run.document["reason"]


def test_a_machine_that_resets_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(sector(bytes.fromhex("eaf0ff00f0")) + bytes(MIB))
    run = boot(tmp_path)
    assert (run.code, run.document["ended"]) == (0, "the machine stopped (guest-reset)")


def test_text_and_refusals(tmp_path: Path) -> None:
    blank(tmp_path)
    assert imagefs(tmp_path, "capture", "disk.raw", "set").returncode == 0
    (tmp_path / "mine.png").write_bytes(b"mine")
    for words, code, message in (
        (("--screenshot", "mine.png"), 11, "exists already"),
        (("--firmware", "coreboot"), 2, "--firmware"),
        (("--timeout", "0"), 2, "--timeout"),
    ):
        refused = imagefs(tmp_path, "boot-test", "set", *words)
        assert (refused.returncode, refused.stdout) == (code, b"")
        assert message in refused.stderr.decode()
    done = imagefs(tmp_path, "boot-test", "set", *SURE, "--screenshot", "mine.png", "--overwrite")
    text = done.stdout.decode()
    assert done.returncode == 4
    assert text.startswith("NO LOADER: the BIOS found nothing to boot: not a bootable disk\n")
    assert "  serial console: nothing\n" in text
    assert "    No bootable device." in text
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_machine_outlives_its_command(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "disk.raw").write_bytes(writer() + bytes(MIB))
    assert imagefs(tmp_path, "capture", "disk.raw", "set").returncode == 0
    command, env = words_of(tmp_path, "boot-test", "set", *SURE)
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: bool(machines(tmp_path)) or process.poll() is not None, 60)
            assert machines(tmp_path)
            process.send_signal(number)
            process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not machines(tmp_path), 30)
    if number != signal.SIGKILL:
        assert list((tmp_path / "tmp").iterdir()) == []


@root_only
def test_a_machine_boots_from_a_writable_mount(tmp_path: Path) -> None:
    """qemu itself on ``disk.raw`` of ``mount --overlay``: what it writes is in the overlay and nowhere else."""
    (tmp_path / "disk.raw").write_bytes(writer() + noise(MIB - 512))
    assert imagefs(tmp_path, "capture", "disk.raw", "set", "--mode", "all").returncode == 0
    before = traces(tmp_path / "set")
    mounted = imagefs(tmp_path, "mount", "set", "mnt", "--overlay", "changes")
    assert mounted.returncode == 0, mounted.stderr
    try:
        said = tmp_path / "serial"
        drive = f"file={tmp_path / 'mnt/disk.raw'},format=raw,if=ide"
        words = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", "-no-reboot"]
        machine = subprocess.Popen([*words, "-drive", drive, "-serial", f"file:{said}"])
        try:
            wait_until(lambda: said.exists() and b"done" in said.read_bytes(), seconds=200)
        finally:
            machine.kill()
            machine.wait()
        assert b"written and read back" in said.read_bytes()
        with (tmp_path / "mnt/disk.raw").open("rb") as shown:
            shown.seek(512)
            assert shown.read(512) == writer(), "it copied its first sector to the second"
    finally:
        assert imagefs(tmp_path, "umount", "mnt").returncode == 0
    assert traces(tmp_path / "set") == before
    assert imagefs(tmp_path, "restore", "set", "again.raw").returncode == 0
    assert (tmp_path / "again.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()
