"""Running the programs of the system that are asked for help: LVM, partclone, hdparm. Never a shell."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagefs.errors import SourceError

#: The environment of commands: their English words are read, and sbin is not on every user's path.
ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}
#: Seconds. A snapshot waits until the file system is written out, which may be gigabytes on a slow disk.
TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Output:
    """What a command left: its exit code and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def reason(self) -> str:
        """The last line on stderr that is not advice, without a full stop."""
        lines = [line.strip().rstrip(".") for line in self.stderr.splitlines()]
        said = [line for line in lines if line and not line.startswith("Run `")]
        return said[-1] if said else f"exit code {self.code}"


Runner = Callable[[Sequence[str]], Output]


def run_command(argv: Sequence[str], *, timeout: float | None = TIMEOUT) -> Output:
    """Run a command to its end, without a shell or input; SourceError when it is missing or hangs.

    Ctrl-C does not reach it and an exception here waits for it: LVM, killed half-way, can leave a volume
    suspended, and everybody who writes to it with it.
    """
    process = _start(argv, stderr=subprocess.PIPE)
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise SourceError(f"{argv[0]} did not end within {timeout:.0f} seconds") from None
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=timeout)
            raise
    return Output(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def read_head(argv: Sequence[str], length: int) -> bytes:
    """The first ``length`` bytes that a command prints on stdout, which is stopped there."""
    with _start(argv, stderr=subprocess.DEVNULL) as process:
        try:
            return process.stdout.read(length) if process.stdout else b""
        finally:
            process.kill()


def _start(argv: Sequence[str], *, stderr: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise SourceError(
                f"{argv[0]} is not installed", hint=f"install the package that has {argv[0]}"
            ) from error
        reason = os.strerror(error.errno or 0)
        raise SourceError(f"{argv[0]} cannot be run: {reason}", errno=error.errno) from error
