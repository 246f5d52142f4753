"""Serving a mount from a process of its own, which outlives the terminal it was started from.

By forking, as daemons do: a second interpreter would take a third of the time of a mount. That is safe only
before anything that reads images is loaded, since some libraries under a Reader hang for ever after a fork. The
new process tells through a pipe when the mount is ready, or why there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from imagefs.errors import ImagefsError, MountError

_MAX_REPORT = 65_536
_MAX_LOG = 4 << 20


class Readiness:
    """The serving end of the pipe: exactly one report, then it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def ready(self, image: str, notes: Sequence[str] = ()) -> None:
        """``image`` is the file that is shown, ``notes`` what is to be said to who started it."""
        self._send({"pid": os.getpid(), "image": image, "notes": list(notes)})

    def failed(self, error: ImagefsError) -> None:
        """Hand an error over, so that it becomes the starting command's own."""
        report = {"message": error.message, "hint": error.hint, "code": error.code, "exit": error.exit_code}
        self._send({"error": report})

    def _send(self, report: dict[str, object]) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.write(descriptor, json.dumps(report).encode())
        except OSError:  # whoever started us is gone; the mount is served all the same
            return
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Started:
    """A mount that is ready: who serves it, the image's file, and what is to be said."""

    pid: int
    image: str
    notes: tuple[str, ...]


def mount_background(serve: Callable[[Readiness], int], *, log: Path) -> Started:
    """Have ``serve`` called in a process of its own, and wait until its mount is ready.

    That process is a session of its own, has no descriptor of ours, appends what it says to ``log``, and ends
    with the code ``serve`` returns, which must report through its ``Readiness``. To be called from the main
    thread, before there are others. Raises the error that is reported, with its exit code; MountError if it
    ends without a report.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        try:
            process = _fork(serve, writing, log)
        finally:
            os.close(writing)
        try:
            report = pipe.read(_MAX_REPORT)
        except BaseException:  # Ctrl-C while waiting: the mount is not wanted any more
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            os.waitpid(process, 0)
            raise
    if not report:
        raise _died(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), log)
    told = json.loads(report)
    failure = told.get("error")
    if failure is None:
        return Started(process, told["image"], tuple(told["notes"]))
    os.waitpid(process, 0)
    error = MountError(failure["message"], hint=failure["hint"])
    error.exit_code, error.code = failure["exit"], failure["code"]
    raise error


def _fork(serve: Callable[[Readiness], int], descriptor: int, log: Path) -> int:
    sys.stdout.flush()
    try:
        if log.exists() and log.stat().st_size > _MAX_LOG:
            log.replace(log.with_suffix(".log.1"))
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            process = os.fork()
            if process == 0:
                _live(serve, descriptor, output.fileno())
    except OSError as error:
        raise MountError(f"cannot start the mount in the background: {error}") from error
    return process


def _live(serve: Callable[[Readiness], int], descriptor: int, output: int) -> NoReturn:
    """The whole life of the new process; nothing of who started it goes on here."""
    code = 1
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
        code = serve(Readiness(descriptor))
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        with contextlib.suppress(OSError):  # a full disk under the log
            sys.stdout.flush()
        os._exit(code)


def _died(code: int, log: Path) -> MountError:
    try:
        last = log.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
    except OSError:
        last = []
    said = f": {last[0]}" if last else ""
    return MountError(f"the mount ended with exit code {code} before it was ready{said}", hint=f"see {log}")
