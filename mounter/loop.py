"""The request loop on libfuse 3, which mounts and agrees with the kernel on what both can do; then requests
are answered here.

libfuse's own loop hands each request through three layers of the binding, and with two threads in it that
costs several times the CPU (the table in ARCHITECTURE.md). So this loop reads requests from the session's
descriptor itself and writes the answers that mounter/requests.py gives. Gets the library handed in by
mounter/binding.py and imports no FUSE itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mounter.requests import DESTROY, INIT, INTERRUPT, Answer, Requests

_IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT_HEADER = struct.Struct("<IiQ")  # length, negative errno, unique
_PAGES_LIMIT = Path("/proc/sys/fs/fuse/max_pages_limit")
_DEFAULT_PAGES = 256
#: FUSE_NOTIFY_INVAL_ENTRY.
_FORGET_ENTRY = 3
#: What reading a request says when the mount is gone, and when it goes while a request is taken (``fuse_dev_do_read``
#: in Linux's ``fs/fuse/dev.c``).
_UNMOUNTED = (errno.ENODEV, errno.ECONNABORTED)
#: What libfuse's fuse_main answers when there is no session, and no mount.
_NO_SESSION, _NO_MOUNT = 3, 4
_NEEDED = [
    "fuse_new",
    "fuse_mount",
    "fuse_unmount",
    "fuse_destroy",
    "fuse_get_session",
    "fuse_session_fd",
    "fuse_session_exited",
    "fuse_session_process_buf",
]


class _Args(ctypes.Structure):
    """``struct fuse_args``."""

    _fields_ = (
        ("argc", ctypes.c_int),
        ("argv", ctypes.POINTER(ctypes.c_char_p)),
        ("allocated", ctypes.c_int),
    )


class _Buffer(ctypes.Structure):
    """``struct fuse_buf``, with room for the field that 3.17 added."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_int64),
        ("mem_size", ctypes.c_size_t),
    )


class RequestLoop:
    """Stands in for ``fuse_main_real`` of a binding on libfuse 3. For one mount.

    ``threads`` requests are worked on at once. ``stop`` ends it from any thread; so does unmounting.
    """

    def __init__(self, library: Any, requests: Requests, *, threads: int = 1) -> None:
        self._library = _declared(library)
        self._requests = requests
        self._threads = threads
        self._wake = os.eventfd(0)
        self._lock = threading.Lock()
        self._stopped = False
        self._forgetter = threading.Thread()

    def stop(self) -> None:
        """End the loop now, wherever it waits. Safe to call at any time."""
        self._stopped = True
        self._requests.crowded.set()
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def main(self, count: int, words: Any, callbacks: Any, size: int, data: Any) -> int:
        """Mount, answer until the end, unmount; takes the arguments of fuse_main and gives its codes."""
        argv = (ctypes.c_char_p * 3)(words[0], b"-o", words[count - 2])
        table = ctypes.cast(callbacks, ctypes.c_void_p)
        try:
            fuse = self._library.fuse_new(ctypes.byref(_Args(3, argv, 0)), table, size, data)
            return self._mount(fuse, words[count - 1]) if fuse else _NO_SESSION
        finally:
            with self._lock:
                wake, self._wake = self._wake, -1
            os.close(wake)

    def _mount(self, fuse: int, directory: bytes) -> int:
        library = self._library
        try:
            if library.fuse_mount(fuse, directory) != 0:
                return _NO_MOUNT
            try:
                self._serve(library.fuse_get_session(fuse))
            finally:
                library.fuse_unmount(fuse)
        finally:
            library.fuse_destroy(fuse)
        return 0

    def _serve(self, session: int) -> None:
        descriptor = self._library.fuse_session_fd(session)
        os.set_blocking(descriptor, False)
        names = [f"fuse-{number}" for number in range(1, self._threads)]
        others = [
            threading.Thread(target=self._answer, args=(session, descriptor), name=name) for name in names
        ]
        self._forgetter = threading.Thread(target=self._ask_to_forget, args=(descriptor,), name="fuse-forget")
        others.append(self._forgetter)
        for thread in reversed(others):
            thread.start()
        try:
            self._answer(session, descriptor)
        finally:
            self.stop()
            for thread in others:
                thread.join()

    def _answer(self, session: int, descriptor: int) -> None:
        """Requests one by one, until the mount is gone or the loop is stopped; then for as long as the kernel
        lets the forgetter wait for somebody who waits for an answer of ours."""
        memory = bytearray(_request_bytes())
        held = (ctypes.c_char * len(memory)).from_buffer(memory)
        request = _Buffer(mem=ctypes.addressof(held), fd=-1)
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        into: Sequence[bytearray] = [memory]
        shown = memoryview(memory)
        opcode_of, readv = _IN_HEADER.unpack_from, os.readv
        while not self._stopped or self._forgetter.is_alive():
            try:
                length = readv(descriptor, into)
            except BlockingIOError:
                waiting.poll()
                continue
            except OSError as error:
                if error.errno in _UNMOUNTED:
                    return
                if error.errno == errno.ENOENT:  # the request was taken back while it was read
                    continue
                raise
            opcode = opcode_of(memory)[1]
            if opcode in (INIT, DESTROY):
                request.size = length
                self._library.fuse_session_process_buf(session, ctypes.byref(request))
                if self._library.fuse_session_exited(session):
                    self.stop()
            elif opcode != INTERRUPT:  # which may be ignored; a request is over before it could matter
                self._reply(descriptor, shown[:length])

    def _ask_to_forget(self, descriptor: int) -> None:
        """In a thread of its own: the kernel may keep it waiting for a folder that is just being read."""
        crowded = self._requests.crowded
        while crowded.wait() and not self._stopped:
            crowded.clear()
            while not self._stopped and (body := self._requests.to_forget()) is not None:
                head = _OUT_HEADER.pack(_OUT_HEADER.size + len(body), _FORGET_ENTRY, 0)
                with contextlib.suppress(OSError):  # it has forgotten it already
                    os.writev(descriptor, (head, body))

    def _reply(self, descriptor: int, request: memoryview) -> None:
        _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(request)
        answer: Answer = b""
        code = 0
        try:
            answer = self._requests.answer(opcode, node, request[_IN_HEADER.size :])
        except OSError as error:
            code = error.errno or errno.EIO
        except Exception:  # a bug costs one request, not the mount
            code = errno.EIO
        if answer is None:
            return
        head = _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), -code, unique)
        try:
            os.writev(descriptor, (head, answer))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            self._requests.take_back(opcode, answer)  # nobody waits for it any more


def can_loop(library: Any) -> bool:
    """Whether this libfuse has what the loop needs; else its own loop serves, only slower."""
    return all(hasattr(library, name) for name in _NEEDED)


def _request_bytes() -> int:
    """What the largest request may take: as libfuse reckons it, pages the kernel allows and a header."""
    try:
        pages = int(_PAGES_LIMIT.read_text())
    except (OSError, ValueError):  # an older kernel
        pages = _DEFAULT_PAGES
    return (max(_DEFAULT_PAGES, min(pages, 65_535)) + 1) * os.sysconf("SC_PAGE_SIZE")


def _declared(library: Any) -> Any:
    handle, address = ctypes.c_void_p, ctypes.c_void_p
    library.fuse_new.restype = handle
    library.fuse_new.argtypes = [ctypes.POINTER(_Args), address, ctypes.c_size_t, address]
    library.fuse_mount.argtypes = [handle, ctypes.c_char_p]
    library.fuse_unmount.restype = library.fuse_destroy.restype = None
    library.fuse_get_session.restype = handle
    for name in (
        "fuse_unmount",
        "fuse_destroy",
        "fuse_get_session",
        "fuse_session_fd",
        "fuse_session_exited",
    ):
        getattr(library, name).argtypes = [handle]
    library.fuse_session_process_buf.argtypes = [handle, ctypes.POINTER(_Buffer)]
    library.fuse_session_process_buf.restype = None
    return library
