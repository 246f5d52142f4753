"""One machine: qemu with a firmware, a disk over NBD, a serial console and a screen; started, watched, ended.

What the guest writes goes into an overlay that qemu throws away; the server refuses writes all the same.
The guest is hostile: it has no network, qemu no way to start programs, and what it prints is bounded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagefs.block.commands import ENVIRONMENT
from imagefs.boot.qmp import Qmp
from imagefs.boot.verdict import Firmware, Stage, plain, stage_of
from imagefs.errors import ServeError, UsageError

QEMU = "qemu-system-x86_64"
_INSTALL = "apt install qemu-system-x86 (Debian, Ubuntu) or dnf install qemu-system-x86 (Fedora)"
_INSTALL_OVMF = "apt install ovmf (Debian, Ubuntu) or dnf install edk2-ovmf (Fedora)"
#: (code, variables) of OVMF without Secure Boot: Debian and Ubuntu, Fedora, Arch.
OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)
#: Not every KVM that is there works (tried: one under which SeaBIOS stops before it boots): one that has
#: not come to booting after this many seconds is given up for TCG, which needs about five.
KVM_PATIENCE = 20.0
#: Seconds between two looks at what was printed, and at a BIOS' screen, which takes qemu some work.
_BEAT, _LOOK = 0.2, 1.0
#: Of what is printed, the beginning and the end are kept.
_HEAD, _TAIL = 64 * 1024, 192 * 1024
_SECTOR = 512
#: A guest that writes for a whole minute leaves 2 GB in the overlay.
_WRITE_RATE = 32 * 1024 * 1024
#: The screen in text mode, 80 × 25 characters: its size as a picture, where it lies, how long it is.
_TEXT_SCREEN = (720, 400)
_TEXT_MEMORY, _TEXT_SIZE, _TEXT_WIDTH = 0xB8000, 80 * 25 * 2, 80
_LOG = "qemu.log"
_MAX_PICTURE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What to boot and for how long. ``socket`` and ``export`` name the disk; ``until`` ends the run when it
    appears; ``folder`` takes what qemu writes, and belongs to the caller."""

    socket: str
    export: str
    firmware: Firmware
    sector_size: int
    boot_sector: bytes
    seconds: float
    until: str
    folder: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it. ``ended`` says why the run is over; ``picture`` is a PNG; ``screen`` the text on it, if
    it was in text mode."""

    accelerator: str
    ended: str
    seconds: float
    debug: str
    console: str
    screen: str
    picture: bytes


def check(firmware: Firmware, sector_size: int) -> None:
    """ServeError for what is not installed, UsageError for what cannot be."""
    if shutil.which(QEMU, path=ENVIRONMENT["PATH"]) is None:
        raise ServeError(f"{QEMU} is not installed", hint=_INSTALL)
    if firmware is Firmware.UEFI and find_ovmf() is None:
        raise ServeError("OVMF, the UEFI firmware for qemu, is not installed", hint=_INSTALL_OVMF)
    if firmware is Firmware.BIOS and sector_size != _SECTOR:
        raise UsageError(
            f"no BIOS boots a disk with sectors of {sector_size} bytes", hint="try --firmware uefi"
        )


def find_ovmf() -> tuple[str, str] | None:
    return next((pair for pair in OVMF if all(map(os.path.exists, pair))), None)


def boot(plan: Plan, accelerator: str = "auto") -> Seen:
    """Run the machine to its end: ``kvm``, ``tcg``, or ``auto`` for KVM where it is and works. Raises ServeError."""
    if accelerator == "auto" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        accelerator = "tcg"
    if accelerator != "auto":
        return _Run(plan, accelerator).run(plan.seconds)
    try:
        run = _Run(plan, "kvm")
        seen = run.run(plan.seconds, patience=KVM_PATIENCE)
        if run.stage is not Stage.WAITING:
            return seen
    except ServeError:  # a KVM that does not even start
        pass
    return _Run(plan, "tcg").run(plan.seconds)


class _Transcript:
    """What one of the guest's ports prints, collected on a thread of its own: the beginning and the end."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket = connection
        self._head, self._tail = bytearray(), bytearray()
        self._dropped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._collect, name=name, daemon=True)
        self._thread.start()

    def text(self) -> str:
        with self._lock:
            gap = b"\n[...]\n" if self._dropped else b""
            return plain(bytes(self._head) + gap + bytes(self._tail))

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _collect(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._socket.recv(65_536):
                with self._lock:
                    room = _HEAD - len(self._head)
                    self._head += piece[:room]
                    self._tail += piece[room:]
                    if len(self._tail) > _TAIL:
                        self._dropped = True
                        del self._tail[:-_TAIL]


class _Run:
    """One life of a machine."""

    def __init__(self, plan: Plan, accelerator: str) -> None:
        self._plan = plan
        self._accelerator = accelerator
        self.stage = Stage.WAITING

    def run(self, seconds: float, *, patience: float | None = None) -> Seen:
        """Until it ends, or for ``seconds``; only for ``patience`` if it has not come to booting by then."""
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
            for each in (*ours, *theirs):
                stack.callback(each.close)
            process = stack.enter_context(
                _started(self._words([each.fileno() for each in theirs]), theirs, self._plan)
            )
            for each in theirs:
                each.close()
            debug, console = _Transcript(ours[0], "debug"), _Transcript(ours[1], "console")
            stack.callback(debug.end)
            stack.callback(console.end)
            try:
                qmp = Qmp(ours[2])
                qmp.greet()
                ended = self._watch(qmp, debug, console, began + seconds, began + (patience or seconds))
                picture, screen = self._look(qmp)
            except ServeError as error:
                raise _died(process, self._plan, error) from error
            spent = time.monotonic() - began
            return Seen(self._accelerator, ended, spent, debug.text(), console.text(), screen, picture)

    def _watch(
        self, qmp: Qmp, debug: _Transcript, console: _Transcript, end: float, patient_until: float
    ) -> str:
        """Wait for whatever ends the run first, and say what it was."""
        plan, screen, next_look = self._plan, "", 0.0
        while True:
            event = qmp.event(_BEAT) or {}
            now = time.monotonic()
            if self.stage is Stage.STARTED and plan.firmware is Firmware.BIOS and now > next_look:
                screen, next_look = self._characters(qmp), now + _LOOK
            shown = f"{console.text()}\n{screen}"
            self.stage = stage_of(plan.firmware, debug.text(), shown, plan.boot_sector)
            if plan.until and plan.until in shown:
                return f"{plan.until!r} appeared"
            if self.stage is Stage.GAVE_UP:
                return "nothing more was to come"
            if event.get("event") == "SHUTDOWN":
                return f"the machine stopped ({event.get('data', {}).get('reason', 'unknown')})"
            if event.get("event") == "STOP":
                return "the machine was stopped by an error"
            if now > end or (now > patient_until and self.stage is Stage.WAITING):
                return "the time was up"

    def _look(self, qmp: Qmp) -> tuple[bytes, str]:
        """The screen as a picture, and its text where it is in text mode."""
        picture = os.path.join(self._plan.folder, "screen.png")
        qmp.command("screendump", filename=picture, format="png")
        data = _read(picture, _MAX_PICTURE)
        in_text = len(data) >= 24 and struct.unpack_from(">II", data, 16) == _TEXT_SCREEN
        return data, self._characters(qmp) if in_text else ""

    def _characters(self, qmp: Qmp) -> str:
        """What the screen's memory says in text mode; nonsense in any other."""
        memory = os.path.join(self._plan.folder, "screen.bin")
        qmp.command("pmemsave", val=_TEXT_MEMORY, size=_TEXT_SIZE, filename=memory)
        return _screen_text(_read(memory, _TEXT_SIZE))

    def _words(self, descriptors: Sequence[int]) -> list[str]:
        """The command line; the descriptors are those of debug port, console and monitor."""
        names = ("debug", "console", "monitor")
        ports = [
            word
            for name, number in zip(names, descriptors, strict=True)
            for word in ("-chardev", f"socket,id={name},fd={number}")
        ]
        return [
            *("setpriv", "--pdeathsig", "KILL", QEMU),  # it does not outlive us, whatever happens
            *("-no-user-config", "-nodefaults", "-no-reboot", "-no-shutdown"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-machine", "q35" if self._plan.firmware is Firmware.UEFI else "pc"),
            *("-accel", self._accelerator, "-cpu", "max", "-m", "1024", "-boot", "strict=on"),
            *("-vga", "std", "-display", "none", "-nic", "none"),
            *ports,
            *("-device", "isa-debugcon,iobase=0x402,chardev=debug"),
            *("-serial", "chardev:console", "-mon", "chardev=monitor,mode=control"),
            *self._firmware(),
            *self._disk(),
        ]

    def _firmware(self) -> list[str]:
        found = find_ovmf()
        if self._plan.firmware is Firmware.BIOS or found is None:
            return []  # SeaBIOS comes with qemu
        code, variables = found
        own = os.path.join(self._plan.folder, "variables.fd")
        shutil.copyfile(variables, own)
        flash = "if=pflash,format=raw"
        return [
            *("-drive", f"{flash},unit=0,readonly=on,file={_escaped(code)}"),
            *("-drive", f"{flash},unit=1,file={_escaped(own)}"),
        ]

    def _disk(self) -> list[str]:
        plan = self._plan
        server = f"file.driver=nbd,file.server.type=unix,file.server.path={_escaped(plan.socket)}"
        overlay = f"format=raw,snapshot=on,throttling.bps-write={_WRITE_RATE}"
        device = "ide-hd"
        if plan.sector_size != _SECTOR:  # IDE and SATA know no other
            size = plan.sector_size
            device = f"nvme,serial=imagefs,logical_block_size={size},physical_block_size={size}"
        return [
            *("-drive", f"if=none,id=disk,{server},file.export={_escaped(plan.export)},{overlay}"),
            *("-device", f"{device},drive=disk,bootindex=0"),
        ]


@contextlib.contextmanager
def _started(
    words: Sequence[str], descriptors: Sequence[socket.socket], plan: Plan
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, gone afterwards. Its temporary files, so the overlay too, lie in the plan's folder."""
    errors = Path(plan.folder, _LOG)
    with errors.open("wb") as log:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=ENVIRONMENT | {"TMPDIR": plan.folder},
                pass_fds=[each.fileno() for each in descriptors],
                start_new_session=True,
            )
        except OSError as error:
            raise ServeError(f"{QEMU} cannot be started: {error.strerror}", hint=_INSTALL) from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _died(process: subprocess.Popen[bytes], plan: Plan, error: ServeError) -> ServeError:
    """The error, with what qemu itself had to say if it has ended."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return error
    said = _read(os.path.join(plan.folder, _LOG), 65_536).decode("utf-8", "replace").strip().splitlines()
    return ServeError(f"{QEMU} ended: {said[-1] if said else f'exit code {process.returncode}'}")


def _escaped(value: str) -> str:
    """A comma ends a value for qemu, two are one."""
    return value.replace(",", ",,")


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(limit)
    except OSError:
        return b""


def _screen_text(memory: bytes) -> str:
    """Characters and their colours by turns → the lines of the screen."""
    characters = memory[::2].replace(b"\0", b" ").decode("cp437")
    lines = [characters[at : at + _TEXT_WIDTH] for at in range(0, len(characters), _TEXT_WIDTH)]
    return plain("\n".join(lines).encode())
