"""What libfuse and fusermount3 write to standard error when they refuse to mount.

They say why nowhere else, and the user is owed one sentence rather than their lines.
"""

from __future__ import annotations

import os
import tempfile
import threading
from types import TracebackType

_MAX_TEXT = 2000


class CapturedStderr:
    """Holds file descriptor 2 from ``__enter__`` until ``restore`` or ``__exit__``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saved = -1
        self._text = b""

    def __enter__(self) -> CapturedStderr:
        self._file = tempfile.TemporaryFile()
        try:
            self._saved = os.dup(2)
        except OSError:  # standard error is closed: there is nothing to hold
            return self
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        self._file.close()

    def restore(self) -> None:
        """Give descriptor 2 back; safe to call twice."""
        with self._lock:
            if self._saved < 0:
                return
            os.dup2(self._saved, 2)
            os.close(self._saved)
            self._saved = -1
            self._file.seek(0)
            self._text = self._file.read(_MAX_TEXT)

    def text(self) -> str:
        """What was written, as one line without the programs' names."""
        lines = self._text.decode("utf-8", "replace").splitlines()
        parts = [line.removeprefix("fuse: ").removeprefix("fusermount3: ").strip() for line in lines]
        return "; ".join(part for part in parts if part)
