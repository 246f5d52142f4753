"""Work off the screen's thread: it may wait for a disk, and tells the screen what it found.

A screen has one job of each group; a new one takes the place of the old. What a job that was put aside still
tells is not heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from textual.message import Message
from textual.screen import Screen

from imagefs.errors import ImagefsError
from imagefs.tui.names import text_pieces


class GivenUp(Exception):
    """Nobody waits for this job any more."""


class Job:
    """One piece of work, as seen from its own thread."""

    def __init__(self, screen: JobScreen) -> None:
        self._screen = screen
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def give_up(self) -> None:
        self._over.set()

    def heed(self) -> None:
        """Raises GivenUp when nobody waits any more; to be called often."""
        if self._over.is_set():
            raise GivenUp

    def tell(self, action: Callable[..., object], *facts: Any) -> None:
        """Have the screen do something with what was found, unless this is given up first."""
        self.heed()
        self._screen.post_message(Told(self, action, facts))


class Told(Message, bubble=False):
    """What a job has to say."""

    def __init__(self, job: Job, action: Callable[..., object], facts: tuple[Any, ...]) -> None:
        super().__init__()
        self.job, self.action, self.facts = job, action, facts


class JobScreen(Screen[Any]):
    """A screen with jobs; ``busy`` tells whether any is under way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._jobs: dict[str, Job] = {}

    def start(self, group: str, work: Callable[[Job], None]) -> Job:
        """Run ``work`` in a thread, in the place of what was under way in ``group``."""
        self.stop(group)
        job = self._jobs[group] = Job(self)

        def run() -> None:
            try:
                work(job)
            except GivenUp:
                pass
            except ImagefsError as error:
                self.post_message(Told(job, self.job_failed, (group, error)))
            except Exception as error:
                bug = ImagefsError(f"this is a bug in imagefs: {type(error).__name__}: {error}")
                self.post_message(Told(job, self.job_failed, (group, bug)))
            finally:
                self.post_message(Told(job, self._ended, (group, job)))

        self.run_worker(run, name=group, thread=True, exit_on_error=False)
        return job

    def stop(self, *groups: str) -> None:
        """Give up the jobs of these groups, or of all."""
        for group in groups or list(self._jobs):
            job = self._jobs.pop(group, None)
            if job is not None:
                job.give_up()

    def busy(self, *groups: str) -> bool:
        return any(group in self._jobs for group in groups) if groups else bool(self._jobs)

    def on_told(self, message: Told) -> None:
        if not message.job.over:
            message.action(*message.facts)

    def _ended(self, group: str, job: Job) -> None:
        if self._jobs.get(group) is job:
            del self._jobs[group]
            self.job_ended(group)

    def job_ended(self, group: str) -> None:
        """For screens that show what is under way."""

    def job_failed(self, group: str, error: ImagefsError) -> None:
        """A notice; for screens that have a better place for it, too."""
        self.complain(error)

    def complain(self, error: ImagefsError) -> None:
        """One plain sentence, as the command line would say it."""
        self.say(f"{error.message}; {error.hint}" if error.hint else error.message, severity="error")

    def say(self, text: str, *, severity: Any = "information") -> None:
        shown = "".join(part for part, _ in text_pieces(text))
        self.app.notify(shown, severity=severity, markup=False, timeout=10 if severity == "error" else 5)

    def on_unmount(self) -> None:
        self.stop()
