"""The parts of a machine that need none: what is missing, what qemu says over QMP, what is kept of a flood."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from imagefs.boot import machine
from imagefs.boot.machine import Firmware, check
from imagefs.boot.qmp import Qmp
from imagefs.errors import ServeError, UsageError
from tests.mounter.conftest import wait_until


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: "/usr/bin/qemu")
    monkeypatch.setattr(machine, "OVMF", (("/nowhere/code", "/nowhere/vars"),))
    check(Firmware.BIOS, 512)
    with pytest.raises(ServeError) as ovmf:
        check(Firmware.UEFI, 512)
    assert "apt install ovmf" in ovmf.value.hint
    monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServeError, match="not installed") as qemu:
        check(Firmware.BIOS, 512)
    assert "apt install qemu-system-x86" in qemu.value.hint
    assert qemu.value.exit_code == 50


def test_a_bios_and_big_sectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: "/usr/bin/qemu")
    with pytest.raises(UsageError, match="4096"):
        check(Firmware.BIOS, 4096)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_qmp(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    qmp = Qmp(ours)
    said: list[dict[str, object]] = []

    def qemu() -> None:
        stream = theirs.makefile("rwb")
        answers = [
            [{"return": {}}],
            [{"event": "RESUME"}, {"return": {"status": "running"}}],
            [{"error": {"class": "GenericError", "desc": "no screen"}}],
        ]
        stream.write(b'{"QMP": {}}\n')
        stream.flush()
        for answer in answers:
            said.append(json.loads(stream.readline()))
            for each in answer:
                stream.write(json.dumps(each).encode() + b"\n")
            stream.flush()

    thread = threading.Thread(target=qemu, daemon=True)
    thread.start()
    qmp.greet()
    assert qmp.command("query-status") == {"status": "running"}
    with pytest.raises(ServeError, match="no screen"):
        qmp.command("screendump", filename="x", format="png")
    assert qmp.event(0) == {"event": "RESUME"}
    assert qmp.event(0.01) is None
    thread.join(300)
    assert [each["execute"] for each in said] == ["qmp_capabilities", "query-status", "screendump"]
    theirs.close()
    with pytest.raises(ServeError, match="ended"):
        qmp.event(5)


def test_qmp_that_never_ends_a_line(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(b"x" * 65_536)

    threading.Thread(target=flood, daemon=True).start()
    with pytest.raises(ServeError, match="more than"):
        Qmp(ours).greet()
    ours.close()


def test_of_a_flood_the_beginning_and_the_end_are_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    transcript = machine._Transcript(ours, "test")
    lines = [f"line {number} of the console" for number in range(40_000)]
    theirs.sendall("\r\n".join([*lines, "the end"]).encode())
    wait_until(lambda: transcript.text().endswith("the end"))
    text = transcript.text()
    assert text.startswith("line 0 of the console\nline 1 of")
    assert "[...]" in text
    assert len(text) < 300_000
    transcript.end()
