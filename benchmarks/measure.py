"""Running one thing and knowing what it took: wall time, peak memory, and that it worked.

Knows processes and clocks; nothing of disks, images or peers.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NOBODY = 65534

#: GNU time tells the peak memory. ``wait4`` alone would not do: a child counts the pages of the
#: process it was forked from, and ours holds whole compressed disks at times.
_MEMORY = ("time", "--quiet", "-f", "%M", "-o")
_BLOCK = 4 << 20


class BenchError(Exception):
    """Something to be measured failed; the text says what, with the last of what it printed."""


@dataclass(frozen=True, slots=True)
class Run:
    """Wall time in seconds, peak memory of the process (and of its largest child) in bytes, its stdout."""

    seconds: float
    peak: int = 0
    output: str = ""


def run_timed(
    argv: Sequence[str | os.PathLike[str]],
    *,
    sync: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    timeout: float = 3600,
) -> Run:
    """Run a command to its end; the fsync of all files in ``sync`` afterwards is part of its time."""
    words = [os.fspath(word) for word in argv]
    with _scratch() as peak, _scratch() as out, _scratch() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*_MEMORY, peak.name, "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        code = _wait(process, timeout)
        for path in sync:
            fsync_tree(path)
        seconds = time.perf_counter() - begin
        if code:
            errors.seek(0)
            said = errors.read()[-800:].decode("utf-8", "replace").strip()
            raise BenchError(f"{' '.join(words)} failed with code {code}: {said}")
        out.seek(0)
        return Run(seconds, int(peak.read().split()[-1]) * 1024, out.read().decode("utf-8", "replace"))


def _scratch() -> IO[bytes]:
    return tempfile.NamedTemporaryFile()


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int:
    """The exit code of a child; it is killed with all its own when its time is over. Not by ``wait(timeout)``, which
    looks every 50 ms only."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], timeout)[0]:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Bring a file, or every file below a folder, to the disk."""
    for each in [path] if path.is_file() else sorted(path.rglob("*")):
        if each.is_file():
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def warm(*paths: Path) -> None:
    """Read files once, so that they lie in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.read(_BLOCK):
                pass


def evict(*paths: Path) -> None:
    """Put files out of the page cache, so that the next reads of them come from the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def peak_of(pid: int) -> int:
    """Peak memory of a running process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} tells no peak memory")


def as_nobody(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The same command as an ordinary user.

    The one right it keeps is to read, because the interpreter may lie below root's home.
    """
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    keep = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return [*drop, *keep, *(os.fspath(word) for word in argv)]


def interleave(count: int, **sides: Callable[[], float]) -> dict[str, list[float]]:
    """Measure the sides in turn, A B A B, so that a slow moment of the machine meets all of them."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(count):
        for name, measure in sides.items():
            values[name].append(measure())
            say(f"  {name}: {values[name][-1]:.2f}")
    return values


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
