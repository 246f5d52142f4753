"""``imagefs nbd`` as a process of its own, ready to be asked, and gone afterwards whatever the test does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Served:
    """A server that answers: what it said of itself, and its process."""

    document: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def uri(self) -> str:
        return str(self.document["uri"])

    def of(self, name: str) -> str:
        """The URI of an export."""
        (found,) = [row["uris"][0] for row in self.document["exports"] if row["name"] == name]
        return str(found)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(300)


@contextmanager
def nbd_server(room: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """``imagefs nbd WORDS --json`` in ``room``, from when it is ready."""
    log = room / "nbd.log"
    with log.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "imagefs", "nbd", *words, "--json"],
            cwd=room,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            env={**os.environ, "TMPDIR": str(room), **(env or {})},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Served(json.loads(line), process, log)
    finally:
        process.terminate()
        try:
            process.wait(300)
        finally:
            process.kill()
            process.communicate()
    assert "Traceback" not in log.read_text()
    assert "bug in imagefs" not in log.read_text()
