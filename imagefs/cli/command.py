"""What all commands share: the options every one has, the console, and how a run ends."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from types import FrameType
from typing import Any

import click

from imagefs.cli.console import Console, parse_zone
from imagefs.cli.unlock import read_unlocks

Body = Callable[..., None]


class Terminated(BaseException):
    """A signal asked this run to end; everything cleans up on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def catch_signals() -> None:
    """Hang-up and termination become an exception, as Ctrl-C is one already."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, stop)


def common(body: Body) -> Body:
    """Add ``--json --utc --tz --log --debug``; the body is called with the run's Console first."""

    @click.option("--json", "json_mode", is_flag=True, help="One JSON document on stdout.")
    @click.option("--utc", is_flag=True, help="Show times in UTC.")
    @click.option("--tz", metavar="ZONE", help="Show times in this zone, such as Europe/Berlin.")
    @click.option(
        "--log", type=click.Path(path_type=Path, dir_okay=False), help="Append what happened to a file."
    )
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(body)
    def run(
        json_mode: bool, utc: bool, tz: str | None, log: Path | None, debug: bool, **arguments: Any
    ) -> None:
        console = Console(json_mode=json_mode, debug=debug, log=log)
        click.get_current_context().find_root().obj = console
        console.zone = parse_zone(tz, utc)
        console.fat_zone = parse_zone(arguments.pop("fat_tz", None), utc=False) or UTC
        console.unlocks = read_unlocks(arguments.pop("unlock", ()))
        body(console, **arguments)

    return run


#: For commands that tell times of files; what it says is in ``Console.fat_zone``.
fat_zone_option = click.option(
    "--fat-tz",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Where FAT times were written; FAT and often exFAT keep local times and no zone.",
)

unreadable_option = click.option(
    "--unreadable",
    type=click.Choice(["zeros", "eio"]),
    default="zeros",
    show_default=True,
    help="What reads of bad sectors of the source give: zeros, or an I/O error.",
)


def say_exit(console: Console, arguments: list[str]) -> int:
    """Flush what was said, write the log, and give the exit code."""
    try:
        sys.stdout.flush()
    finally:
        console.write_log(arguments)
    return console.exit_code
