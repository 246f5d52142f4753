"""Manifests: the digests of what was written, in lines that ``sha256sum -c`` and its family take.

One algorithm gives ``digest  name``, several give the tagged lines ``SHA256 (name) = digest``, which md5sum,
sha1sum, sha256sum and cksum all accept with ``-c``. Names are escaped as coreutils 9 does it: a line that
begins with a backslash has ``\\\\``, ``\\n`` and ``\\r`` in its name. The manifest is kept as ``FILE.partial`` while
it grows, and is what a resumed run believes of the one before it. Knows no file system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Self

from imagefs.browse.names import printable
from imagefs.errors import TargetError

#: Hex digits of each algorithm.
ALGORITHMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
_PLAIN = re.compile(rb"(\\?)([0-9a-f]+) [ *](.+)", re.DOTALL)
_TAGGED = re.compile(rb"(\\?)([A-Z0-9]+) \((.+)\) = ([0-9a-f]+)", re.DOTALL)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_ESCAPED = re.compile(rb"[\\\n\r]")
_MAX_LINE = 64 << 10
#: Bytes of an older manifest that are read.
_MAX_SIZE = 1 << 30


def line_of(name: bytes, algorithm: str, digest: str, *, tagged: bool) -> bytes:
    """One line, with its end."""
    shown = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], _written(name))
    lead = b"\\" if _ESCAPED.search(name) else b""
    if tagged:
        return lead + b"%s (%s) = %s\n" % (algorithm.upper().encode(), shown, digest.encode())
    return lead + digest.encode() + b"  " + shown + b"\n"


def parse_line(line: bytes) -> tuple[bytes, str, str] | None:
    """(name as it is written, algorithm, digest) of a line without its end; None for what is none."""
    if found := _TAGGED.fullmatch(line):
        algorithm, name, digest = found[2].decode().lower(), found[3], found[4].decode()
    elif found := _PLAIN.fullmatch(line):
        name, digest = found[3], found[2].decode()
        algorithm = next((each for each, digits in ALGORITHMS.items() if digits == len(digest)), "")
    else:
        return None
    if ALGORITHMS.get(algorithm) != len(digest):
        return None
    if found[1]:
        back = {escape: plain for plain, escape in _ESCAPES.items()}
        name = re.sub(rb"\\.", lambda escape: back.get(escape[0], escape[0]), name, flags=re.DOTALL)
    return name, algorithm, digest


def _written(name: bytes) -> bytes:
    """A name as lines have it: ``-`` would mean standard input."""
    return b"./-" if name == b"-" else name


class Manifest:
    """A manifest being written; ``commit`` or ``keep`` ends it, as does ``with``."""

    def __init__(
        self, path: bytes, algorithms: Sequence[str] = ("sha256",), *, overwrite: bool, resume: bool
    ) -> None:
        self.algorithms = tuple(algorithms)
        self.path = path
        self._partial = path + b".partial"
        self._known: dict[bytes, dict[str, str]] = {}
        if os.path.lexists(path) and not (overwrite or resume):
            raise TargetError(
                f"'{printable(path)}' exists already", hint="name another manifest, or add --overwrite"
            )
        try:
            if resume:
                self._known = _read(path) | _read(self._partial)
            mode = os.O_APPEND if resume else os.O_TRUNC
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | mode, 0o666)
            self._start = os.lseek(self._fd, 0, os.SEEK_END)
            if self._start and os.pread(self._fd, 1, self._start - 1) != b"\n":  # cut off when it was killed
                self._start += os.write(self._fd, b"\n")
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.keep()

    def known(self, name: bytes) -> list[str] | None:
        """The digests an earlier run wrote for ``name``, in the order of the algorithms; None unless all."""
        found = self._known.get(_written(name), {})
        digests = [found.get(each, "") for each in self.algorithms]
        return digests if all(digests) else None

    def add(self, name: bytes, digests: Sequence[str]) -> None:
        tagged = len(self.algorithms) > 1
        lines = [
            line_of(name, algorithm, digest, tagged=tagged)
            for algorithm, digest in zip(self.algorithms, digests, strict=True)
        ]
        try:
            _write(self._fd, b"".join(lines))
        except OSError as error:
            raise self._error(error) from error

    def commit(self) -> None:
        """Put what this run wrote in place under its name."""
        try:
            if self._start:
                self._drop_older()
            os.fsync(self._fd)
            os.rename(self._partial, self.path)
        except OSError as error:
            raise self._error(error) from error
        finally:
            os.close(self._fd)

    def keep(self) -> None:
        """Leave what there is for a run that goes on."""
        empty = os.lseek(self._fd, 0, os.SEEK_END) == 0
        os.close(self._fd)
        if empty:
            os.unlink(self._partial)

    def _drop_older(self) -> None:
        """The lines of earlier runs go: this run has written again all that still holds."""
        offset, other = self._start, self._partial + b".new"
        fd = os.open(other, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            while data := os.pread(self._fd, 1 << 20, offset):
                _write(fd, data)
                offset += len(data)
            os.rename(other, self._partial)
        except OSError:
            os.close(fd)
            os.unlink(other)
            raise
        os.close(self._fd)
        self._fd = fd

    def _error(self, error: OSError) -> TargetError:
        return TargetError(f"the manifest '{printable(self.path)}' cannot be written: {error.strerror}")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(path: bytes) -> dict[bytes, dict[str, str]]:
    """What an earlier run wrote; a last line that was cut off is left aside."""
    known: dict[bytes, dict[str, str]] = {}
    for line in _lines(path):
        parsed = parse_line(line)
        if parsed is not None:
            known.setdefault(parsed[0], {})[parsed[1]] = parsed[2]
    return known


def _lines(path: bytes) -> Iterator[bytes]:
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with stream:
        left = _MAX_SIZE
        while left > 0 and (line := stream.readline(_MAX_LINE)):
            left -= len(line)
            if line.endswith(b"\n"):
                yield line[:-1]
