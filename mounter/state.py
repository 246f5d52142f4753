"""What is remembered of each mount: one small JSON file in a folder that the caller names.

Disposable: a mount works without it, and a file whose mount is gone is swept away when seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from imagefs.errors import MountError


@dataclass(frozen=True, slots=True)
class NativeMount:
    """``volume`` (``p2``) of a mount on a loop ``device``, mounted on ``directory``; ``made`` as for a mount."""

    volume: str
    directory: str
    device: str
    made: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount: where, of what, by which process (``started`` is its start in clock ticks, against a
    pid that came round again), since when (ns since 1970), its log and its failed requests.

    ``made`` is (device, inode) of the directory where the mount made it, None where it was there;
    ``overlay`` the file that takes what is written, empty for a read-only mount.
    """

    directory: str
    image: str
    pid: int
    started: int
    since_ns: int
    log: str
    errors: int = 0
    made: tuple[int, int] | None = None
    overlay: str = ""
    natives: tuple[NativeMount, ...] = ()

    def alive(self) -> bool:
        return process_start(self.pid) == self.started


def process_start(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 when there is none (or it is a zombie)."""
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return -1
    if len(fields_after_name) < 20 or fields_after_name[0] in (b"Z", b"X"):
        return -1
    return int(fields_after_name[19])


class MountStates:
    """The records in ``folder``, by directory. Nothing here fails because the folder is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, directory: str, suffix: str) -> Path:
        digest = hashlib.sha256(os.fsencode(directory)).hexdigest()
        return self.folder / f"{digest[:16]}{suffix}"

    def log_path(self, directory: str) -> Path:
        """Where the log of a mount on ``directory`` goes; makes the folder."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MountError(f"cannot make the state folder {self.folder}: {error.strerror}") from error
        return self._path(directory, ".log")

    def write(self, record: MountRecord) -> None:
        """Publish a record whole; OSError if the folder cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(record.directory, ".json")
        fresh = path.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps(asdict(record)), "ascii")
        fresh.replace(path)

    def read(self, directory: str) -> MountRecord | None:
        return _load(self._path(directory, ".json"))

    def all(self) -> Iterator[MountRecord]:
        for path in sorted(self.folder.glob("*.json")):
            record = _load(path)
            if record is not None:
                yield record

    def remove(self, directory: str) -> None:
        try:
            self._path(directory, ".json").unlink(missing_ok=True)
        except OSError:  # a folder that became read-only; the record is swept another time
            return

    def remove_own(self, record: MountRecord) -> None:
        """Remove the record unless another process has since taken over the directory."""
        current = self.read(record.directory)
        if current is not None and (current.pid, current.started) == (record.pid, record.started):
            self.remove(record.directory)


def _load(path: Path) -> MountRecord | None:
    """A record, None for a file that is missing, or that is not one."""
    try:
        values = json.loads(path.read_bytes())
        known = {field.name for field in fields(MountRecord)}
        record = MountRecord(**{name: value for name, value in values.items() if name in known})
        texts = (record.directory, record.image, record.log, record.overlay)
        numbers = (record.pid, record.started, record.since_ns, record.errors, *(record.made or (0, 0)))
        whole = all(isinstance(text, str) for text in texts)
        if not whole or not all(isinstance(number, int) for number in numbers):
            return None
        natives = tuple(_native(row) for row in record.natives)
        return replace(record, made=_pair(record.made), natives=natives)
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return None


def _native(row: Any) -> NativeMount:
    texts = (row["volume"], row["directory"], row["device"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a native mount is told in words")
    return NativeMount(*texts, made=_pair(row["made"]))


def _pair(made: Any) -> tuple[int, int] | None:
    return (int(made[0]), int(made[1])) if made else None
