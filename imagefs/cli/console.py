"""Where the command line speaks: stdout, stderr, JSON, progress, the log, and how a run ends."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timezone, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from imagefs.cli.text import duration_text, one_line, size_text
from imagefs.errors import ImagefsError, UsageError
from imagefs.interfaces import Finding, NoProgress, Progress
from imagefs.version import VERSION

if TYPE_CHECKING:
    from imagefs.cli.unlock import Unlock

#: A job shorter than this shows no progress.
QUIET_SECONDS = 1.0
BEAT_SECONDS = 0.5
#: Labels of phases whose progress is a number of these, not of bytes.
COUNTED = ("images", "entries")
#: The states that progress tells of, and their words there.
STATE_WORDS = (("stored", "stored"), ("zero", "zero"), ("absent", "unchanged"), ("skipped", "skipped"))


class Interrupted(ImagefsError):
    """A signal, in the words of a failure."""

    code = "interrupted"


class Console:
    """One run's voice. ``zone`` None means local time."""

    def __init__(self, *, json_mode: bool = False, debug: bool = False, log: Path | None = None) -> None:
        self.json_mode = json_mode
        self.debug = debug
        self.zone: tzinfo | None = None
        self.fat_zone: tzinfo = UTC
        self.unlocks: tuple[Unlock, ...] = ()
        self.exit_code = 0
        #: What of this run is there all the same, and the command that goes on with it.
        self.kept = ""
        self.resume = ""
        self._log = log
        self._findings: list[str] = []
        self._stream_open = False
        self._shown: TerminalProgress | None = None

    def speak_to_log(self) -> None:
        """From now on in the words of a log: no JSON, and the run is another process's to write down."""
        self.json_mode, self._log = False, None

    # -- stdout -----------------------------------------------------------------------------------

    @property
    def on_terminal(self) -> bool:
        return sys.stdout.isatty()

    @property
    def shows_progress(self) -> bool:
        return self.json_mode or sys.stderr.isatty()

    def line(self, text: str = "") -> None:
        """A line of text for people; nothing with ``--json``."""
        if not self.json_mode:
            self._make_room()
            print(text.encode("utf-8", "replace").decode())

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        sys.stdout.buffer.write(data)

    def document(self, value: dict[str, Any]) -> None:
        """The one JSON document of this run; nothing without ``--json``."""
        if self.json_mode:
            print(json.dumps(value, ensure_ascii=False))

    def stream(self, name: str, rows: Iterable[dict[str, Any]], *, flush: bool = False) -> int:
        """A document whose list ``name`` is written as it comes, ``"complete": true`` last. ``flush``: each
        row is seen at once, for who waits long for the next."""
        self._stream_open = True
        print(f'{{"{name}": [', end="")
        count = 0
        for row in rows:
            print((",\n" if count else "\n") + json.dumps(row, ensure_ascii=False), end="", flush=flush)
            count += 1
        self._stream_open = False
        print('\n], "complete": true}')
        return count

    def findings(self, found: Iterable[Finding], dropped: int) -> None:
        """A line for each finding, and how many more there were; nothing with ``--json``."""
        for each in found:
            place = ""
            if each.chunk is not None and each.offset is not None and each.length is not None:
                last = each.offset + each.length - 1
                place = f" (chunk {each.chunk}, bytes {each.offset} to {last})"
            self.line(f"{each.severity}: {one_line(each.message)}{place}")
            for name in each.files:
                self.line(f"  in {name}")
        if dropped:
            self.line(f"and {dropped} more findings")

    # -- stderr -----------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing that is not the answer."""
        if not self.json_mode:
            self._make_room()
            print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)

    def warn(self, text: str) -> None:
        self._findings.append(text)
        if self.json_mode:
            print(json.dumps({"warning": text}), file=sys.stderr)
        else:
            self.note(f"imagefs: warning: {text}")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Rate and ETA on a terminal, JSON lines with ``--json``, else nothing."""
        if self.json_mode:
            yield JsonProgress()
        elif sys.stderr.isatty():
            shown = self._shown = TerminalProgress()
            try:
                yield shown
            finally:
                self._shown = None
                shown.clear()
        else:
            yield PlainProgress(self)

    @contextlib.contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Progress of what cannot tell how far it is: after a second ``label`` is shown with the time it takes, by a
        thread of its own."""
        if not self.shows_progress:
            yield
            return
        shown = JsonProgress() if self.json_mode else WaitingProgress()
        shown.start(label, None)
        done = threading.Event()

        def beat() -> None:
            wait = QUIET_SECONDS
            while not done.wait(wait):
                wait = BEAT_SECONDS
                shown.beat(time.monotonic() - shown.started)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            shown.clear()

    def _make_room(self) -> None:
        """Take the line of progress away before something is written where it stands."""
        if self._shown is not None:
            self._shown.clear()

    # -- the end ----------------------------------------------------------------------------------

    def fail(self, error: ImagefsError) -> None:
        """Say what went wrong, and remember the exit code."""
        self.exit_code = error.exit_code
        self._findings.append(error.message)
        if self.json_mode:
            self._fail_json(error)
            return
        hint = f"; {error.hint}" if error.hint else ""
        self.note(f"imagefs: {error.message}{hint}")
        self._say_kept()

    def interrupted(self, number: int) -> None:
        """The signal ``number`` ended this run: say what became of it."""
        self.exit_code = 128 + number
        if self.json_mode:
            self._fail_json(Interrupted("interrupted"))
            return
        self.note("imagefs: interrupted" + ("" if self.kept else "; nothing half-done was left behind"))
        self._say_kept()

    def _say_kept(self) -> None:
        if self.kept:
            self.note(f"imagefs: {self.kept}" + (f"; go on with: {self.resume}" if self.resume else ""))

    def _fail_json(self, error: ImagefsError) -> None:
        body: dict[str, object] = {
            "code": error.code,
            "exit": self.exit_code,
            "message": error.message,
            "hint": error.hint,
        }
        body |= {key: value for key, value in (("kept", self.kept), ("resume", self.resume)) if value}
        extra = {key: value for key, value in error.data.items() if key not in body}
        text = json.dumps(body | extra, default=str)
        if self._stream_open:
            print(f'\n], "complete": false, "error": {text}}}')
        else:
            print(f'{{"error": {text}}}')

    def write_log(self, arguments: list[str]) -> None:
        """Append this run to the file of ``--log``."""
        if self._log is None:
            return
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        words = " ".join(arguments).encode("utf-8", "backslashreplace").decode()
        lines = [f"{when} imagefs {VERSION} {words}"]
        lines += [f"{when}   {finding}" for finding in self._findings]
        lines.append(f"{when}   exit {self.exit_code}")
        try:
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as out:
                out.write("\n".join(lines) + "\n")
        except OSError as error:
            self.note(f"imagefs: the log {self._log} cannot be written: {error.strerror}")


def parse_zone(name: str | None, utc: bool) -> tzinfo | None:
    """The zone of ``--tz`` and ``--utc``; UsageError for one nobody knows."""
    if utc:
        return timezone.utc  # noqa: UP017 (typed as tzinfo)
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"time zone {name!r} is unknown", hint="write Europe/Berlin or UTC") from error


def default_set() -> str:
    """What ``IMAGEFS_SET`` says; UsageError when a set is needed and it says nothing."""
    found = os.environ.get("IMAGEFS_SET", "")
    if not found:
        raise UsageError("no set was named", hint="name it, or set IMAGEFS_SET")
    return found


def terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def state_folder() -> Path:
    """Where mounts are remembered; disposable."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "imagefs"


class PlainProgress(NoProgress):
    """Where nobody watches, only what is worth knowing is told."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str, /) -> None:
        self._console.note(f"imagefs: {message}")


def cache_folder() -> Path:
    """Where derived things are kept (``$XDG_CACHE_HOME/imagefs``); disposable."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as its specification wants
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "imagefs"


def log_line(line: str) -> None:
    """One line on standard error with its time, for what serves until it is ended."""
    text = line.encode("utf-8", "backslashreplace").decode()
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", file=sys.stderr, flush=True)


class Meter:
    """Counts a phase; beats at most twice a second, and not in its first second."""

    def __init__(self) -> None:
        self.counts: Mapping[str, int] = {}
        self.label, self.total, self.done = "", None, 0
        self.started = self._last = time.monotonic()

    def start(self, label: str, total: int | None, /) -> None:
        self.label, self.total, self.done = label, total, 0  # type: ignore[assignment]
        self.counts = {}
        self.started = time.monotonic()
        self._last = self.started + QUIET_SECONDS - BEAT_SECONDS

    def tell(self, counts: Mapping[str, int], /) -> None:
        self.counts = counts

    def advance(self, count: int, /) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._last >= BEAT_SECONDS:
            self._last = now
            self.beat(now - self.started)

    def beat(self, seconds: float) -> None:
        raise NotImplementedError

    def rate_and_eta(self, seconds: float) -> tuple[float, float | None]:
        rate = self.done / seconds if seconds > 0 else 0.0
        if not self.total or rate <= 0:
            return rate, None
        return rate, max(0, self.total - self.done) / rate


class TerminalProgress(Meter):
    """One line on stderr that is rewritten: a bar, percent, rate, time left, errors, states.

    It never fills the terminal's width, or it would wrap and stay: the bar takes what is left over.
    """

    width = 24

    def beat(self, seconds: float) -> None:
        rate, eta = self.rate_and_eta(seconds)
        share = min(1.0, self.done / self.total) if self.total else 0.0
        amount = str if self.label.startswith(COUNTED) else size_text
        text = f"{share:4.0%} of {amount(self.total)}" if self.total else amount(self.done)
        text += f"  {amount(int(rate))}/s"
        text += f"  {duration_text(eta)} left" if eta is not None else ""
        text += self._counts_text()
        room = terminal_columns() - 1
        width = min(self.width, room - len(self.label) - len(text) - 5) if self.total else 0
        bar = f"[{'#' * int(share * width):<{width}}] " if width > 3 else ""
        print(f"\r\x1b[K{f'{self.label}: {bar}{text}'[:room]}", end="", file=sys.stderr, flush=True)

    def _counts_text(self) -> str:
        errors = self.counts.get("errors", 0)
        told = f"  {errors} bad sector{'s' if errors > 1 else ''}" if errors else ""
        hits = self.counts.get("hits")
        told += f"  {hits} hit{'s' if hits != 1 else ''}" if hits is not None else ""
        states = [
            f"{words} {size_text(self.counts[name])}" for name, words in STATE_WORDS if self.counts.get(name)
        ]
        return told + ("  " + ", ".join(states) if states else "")

    def note(self, message: str, /) -> None:
        print(f"\r\x1b[K{message}", file=sys.stderr)

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class WaitingProgress(TerminalProgress):
    """What is waited for, and how long."""

    _beaten = False

    def beat(self, seconds: float) -> None:
        self._beaten = True
        text = f"{self.label}: {duration_text(seconds)}"[: terminal_columns() - 1]
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._beaten:
            super().clear()


class JsonProgress(Meter):
    """A JSON line on stderr at every beat."""

    def beat(self, seconds: float) -> None:
        rate, eta = self.rate_and_eta(seconds)
        value = {"phase": self.label, "done": self.done, "total": self.total, "rate": round(rate), "eta": eta}
        value |= self.counts
        print(json.dumps({"progress": value}), file=sys.stderr, flush=True)

    def note(self, message: str, /) -> None:
        print(json.dumps({"note": message}), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Lines stay."""
