"""Serving a mount from a process of its own, which outlives the terminal it was started from.

By running the command again rather than by forking: some libraries under a Reader hang for ever
after a fork. The new process tells through a pipe when the mount is ready, or why there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def mount_background(
    command: Callable[[int], Sequence[str]], *, log: Path, descriptors: Sequence[int] = ()
) -> Started:
    """Run a command in a session of its own and wait until its mount is ready.

    ``command(descriptor)`` gives its words; it must report to that descriptor through ``Readiness``, and
    gets ``descriptors`` of ours too. Its output is appended to ``log``. Raises the error it reports, with its
    exit code; MountError if it ends without a report.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        try:
            process = _start(list(command(writing)), (writing, *descriptors), log)
        finally:
            os.close(writing)
        try:
            report = pipe.read(_MAX_REPORT)
        except BaseException:  # Ctrl-C while waiting: the mount is not wanted any more
            process.terminate()
            process.wait()
            raise
    if not report:
        raise _died(process.wait(), log)
    told = json.loads(report)
    failure = told.get("error")
    if failure is None:
        process.returncode = 0  # it is meant to go on without us; Popen would warn about it
        return Started(process.pid, told["image"], tuple(told["notes"]))
    process.wait()
    error = MountError(failure["message"], hint=failure["hint"])
    error.exit_code, error.code = failure["exit"], failure["code"]
    raise error


def _start(argv: list[str], descriptors: Sequence[int], log: Path) -> subprocess.Popen[bytes]:
    try:
        if log.exists() and log.stat().st_size > _MAX_LOG:
            log.replace(log.with_suffix(".log.1"))
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                start_new_session=True,
            )
    except OSError as error:
        raise MountError(f"cannot start the mount in the background: {error}") from error


def _died(code: int, log: Path) -> MountError:
    try:
        last = log.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()[-1:]
    except OSError:
        last = []
    said = f": {last[0]}" if last else ""
    return MountError(f"the mount ended with exit code {code} before it was ready{said}", hint=f"see {log}")
