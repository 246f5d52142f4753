"""The request loop against a kernel played by a socket pair: one message is one request, as with /dev/fuse."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mounter.loop import RequestLoop, can_loop
from mounter.requests import Answer, Requests

FORGET, READ, INIT, INTERRUPT, DESTROY = 2, 15, 26, 36, 38


class Pattern(Requests):
    """Answers reads of handle 7 from a pattern; other handles fail in their own ways."""

    data = bytes(range(256)) * 4096

    def __init__(self) -> None:
        self.taken_back: list[tuple[int, Answer]] = []
        self.opcodes: list[int] = []
        self.crowded = threading.Event()

    def take_back(self, opcode: int, answer: Answer) -> None:
        self.taken_back.append((opcode, answer))

    def answer(self, opcode: int, node: int, body: memoryview) -> Answer:
        self.opcodes.append(opcode)
        if opcode != READ:
            return None
        fh, offset, size = struct.unpack_from("<QQI", body)
        if fh == 1:
            raise OSError(errno.ESTALE, "gone")
        if fh == 2:
            raise RuntimeError("a bug")
        return self.data[offset : offset + size]


class Kernel:
    """A libfuse whose session is a socket, and the kernel's end of it."""

    def __init__(self, threads: int) -> None:
        # SEQPACKET keeps messages apart
        self.kernel, self.session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.session):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.kernel.settimeout(600)
        self.processed: list[bytes] = []
        self.calls: list[str] = []
        self.exited = False
        self.requests = Pattern()
        self.loop = RequestLoop(self.library(), self.requests, threads=threads)
        self.codes: list[int] = []
        self.thread = threading.Thread(target=self._run)

    def library(self) -> SimpleNamespace:
        def note(name: str, answer: int) -> object:
            return lambda *arguments: self.calls.append(name) or answer  # type: ignore[func-returns-value]

        def process(session: int, buffer: ctypes._Pointer[ctypes.Structure]) -> None:
            held = buffer._obj  # type: ignore[attr-defined]
            self.processed.append(ctypes.string_at(held.mem, held.size))

        return SimpleNamespace(
            fuse_new=note("new", 1),
            fuse_mount=note("mount", 0),
            fuse_unmount=note("unmount", 0),
            fuse_destroy=note("destroy", 0),
            fuse_get_session=lambda fuse: 1,
            fuse_session_fd=lambda session: self.session.fileno(),
            fuse_session_exited=lambda session: self.exited,
            fuse_session_process_buf=process,
        )

    def _run(self) -> None:
        words = (ctypes.c_char_p * 4)(b"fuse", b"-o", b"ro", b"/somewhere")
        self.codes.append(self.loop.main(4, words, ctypes.c_void_p(), 0, None))

    def send(self, opcode: int, unique: int, body: bytes = b"") -> bytes:
        message = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 0, 0, 0) + body
        self.kernel.send(message)
        return message

    def read(self, unique: int, handle: int, offset: int, size: int) -> None:
        self.send(READ, unique, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))

    def answer(self) -> tuple[int, int, bytes]:
        """(unique, errno, bytes) of the next reply."""
        reply = self.kernel.recv(2 << 20)
        length, code, unique = struct.unpack_from("<IiQ", reply)
        assert length == len(reply)
        return unique, -code, reply[16:]


@pytest.fixture(params=[1, 3])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    made = Kernel(request.param)
    made.thread.start()
    yield made
    made.loop.stop()
    made.thread.join(300)
    assert not made.thread.is_alive()
    assert made.codes == [0]
    assert made.calls == ["new", "mount", "unmount", "destroy"]
    made.kernel.close()
    made.session.close()


def test_reads_are_answered_with_their_bytes(kernel: Kernel) -> None:
    for unique, (offset, size) in enumerate([(0, 4096), (100, 1), (5000, 128 << 10), (0, 0)], 1):
        kernel.read(unique, 7, offset, size)
        assert kernel.answer() == (unique, 0, Pattern.data[offset : offset + size])


def test_errors_reach_the_one_who_asked(kernel: Kernel) -> None:
    kernel.read(5, 1, 0, 4096)
    assert kernel.answer() == (5, errno.ESTALE, b"")
    kernel.read(6, 2, 0, 4096)
    assert kernel.answer() == (6, errno.EIO, b"")
    kernel.read(7, 7, 0, 16)
    assert kernel.answer() == (7, 0, Pattern.data[:16])


def test_what_begins_and_ends_a_mount_is_libfuses(kernel: Kernel) -> None:
    kernel.send(INTERRUPT, 8, bytes(8))
    sent = [kernel.send(INIT, 9, b"x" * 70_000), kernel.send(DESTROY, 10)]
    kernel.read(11, 7, 0, 1)
    kernel.answer()
    for _ in range(200):
        if len(kernel.processed) == 2:
            break
        threading.Event().wait(0.05)
    assert sorted(kernel.processed) == sorted(sent)
    assert kernel.requests.opcodes == [READ], "an interrupt comes too late for us, and wants no answer"


def test_a_request_without_an_answer_gets_none(kernel: Kernel) -> None:
    kernel.send(FORGET, 8, bytes(8))
    kernel.read(9, 7, 0, 1)
    assert kernel.answer()[0] == 9


def test_an_answer_nobody_waits_for_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Kernel(1)

    def nobody(descriptor: int, parts: object) -> int:
        raise OSError(errno.ENOENT, "interrupted")

    monkeypatch.setattr("mounter.loop.os.writev", nobody)
    made.thread.start()
    made.read(3, 7, 0, 4)
    for _ in range(6000):
        if made.requests.taken_back:
            break
        threading.Event().wait(0.05)
    made.loop.stop()
    made.thread.join(300)
    assert made.requests.taken_back == [(READ, Pattern.data[:4])]


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
def test_a_mount_that_is_gone_is_an_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes while a request is taken: seen once."""
    made = Kernel(2)

    def gone(descriptor: int, parts: object) -> int:
        raise OSError(number, "gone")

    monkeypatch.setattr("mounter.loop.os.readv", gone)
    made.thread.start()
    made.thread.join(300)
    assert made.codes == [0]
    assert made.calls == ["new", "mount", "unmount", "destroy"]


def test_who_waits_for_us_is_answered_as_long_as_the_forgetter_waits_for_them() -> None:
    made = Kernel(2)
    reached, held = threading.Event(), threading.Event()

    def to_forget() -> bytes | None:
        reached.set()
        held.wait(300)
        return None

    made.requests.to_forget = to_forget  # type: ignore[method-assign]
    made.thread.start()
    made.requests.crowded.set()
    assert reached.wait(300)
    made.loop.stop()
    made.read(3, 7, 0, 4)
    assert made.answer() == (3, 0, Pattern.data[:4])
    held.set()
    made.thread.join(300)
    assert made.codes == [0]


def test_libfuse_can_end_it(kernel: Kernel) -> None:
    kernel.exited = True
    kernel.send(INIT, 11)
    kernel.thread.join(300)
    assert kernel.codes == [0]


def test_what_is_no_libfuse_3_is_not_taken() -> None:
    assert not can_loop(SimpleNamespace(fuse_new=1))
    assert can_loop(Kernel(1).library())


def test_a_session_that_cannot_be_had() -> None:
    made = Kernel(1)
    library = made.library()
    library.fuse_mount = lambda fuse, directory: -1
    loop = RequestLoop(library, Pattern())
    words = (ctypes.c_char_p * 4)(b"fuse", b"-o", b"ro", b"/somewhere")
    assert loop.main(4, words, ctypes.c_void_p(), 0, None) == 4
    library.fuse_new = lambda *arguments: None
    assert RequestLoop(library, Pattern()).main(4, words, ctypes.c_void_p(), 0, None) == 3
    loop.stop()  # long over: harmless
