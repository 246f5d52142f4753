"""``imagefs``: the group of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from imagefs.block.linux import keep_freed_memory
from imagefs.cli.command import Terminated, catch_signals, say_exit
from imagefs.cli.console import Console
from imagefs.errors import ImagefsError, UsageError
from imagefs.version import VERSION

WELCOME = """\
imagefs: disk images that form chains; looked into, verified and restored.

  imagefs capture SOURCE SET        make an image of a disk in a folder of images
  imagefs list SET                  what is there, and what needs what
  imagefs mount SET DIR             show the newest image as disk.raw, p1.raw and file trees
  imagefs get SET@latest~1 /p2/etc/fstab .   one file, as it was
  imagefs verify SET                be sure of it before a restore

Help: imagefs --help, imagefs COMMAND --help"""

EPILOG = (
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 incomplete, 4 verify found damage or a difference, "
    "boot-test no loader, 10 source, 11 target, 20 not an image, 21 integrity, 22 chain, 30 store, "
    "40 browse, 50 mount, nbd, qemu."
)


#: How long a thread may keep the interpreter's lock while another waits for it. With Python's 5 ms,
#: workers that come back from the codec wait longer than their work took (a capture a fifth slower).
SWITCH_SECONDS = 0.0005

#: Where each command lives. They are imported when they are called: half of what a short command
#: would take is the import of the others.
COMMANDS = {
    "capture": ("imagefs.cli.capture", "capture"),
    "list": ("imagefs.cli.listing", "list_command"),
    "info": ("imagefs.cli.info", "info"),
    "verify": ("imagefs.cli.sets", "verify"),
    "delete": ("imagefs.cli.sets", "delete"),
    "restore": ("imagefs.cli.transfer", "restore"),
    "clone": ("imagefs.cli.transfer", "clone"),
    "mount": ("imagefs.cli.mount", "mount"),
    "umount": ("imagefs.cli.mount", "umount"),
    "nbd": ("imagefs.cli.nbd", "nbd"),
    "boot-test": ("imagefs.cli.boottest", "boot_test"),
    "browse": ("imagefs.cli.browser", "browse"),
    "ls": ("imagefs.cli.browse", "ls"),
    "cat": ("imagefs.cli.browse", "cat"),
    "stat": ("imagefs.cli.browse", "stat"),
    "find": ("imagefs.cli.find", "find"),
    "timeline": ("imagefs.cli.timeline", "timeline"),
    "history": ("imagefs.cli.history", "history"),
    "diff": ("imagefs.cli.diff", "diff"),
    "get": ("imagefs.cli.get", "get"),
}


class Commands(click.Group):
    """The group of COMMANDS, in their order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION, prog_name="imagefs")
@click.pass_context
def main(context: click.Context) -> None:
    """Disk images that form chains: capture, mount read-only, browse, verify, restore, clone."""
    if context.invoked_subcommand is None:
        click.echo(WELCOME)


def run(arguments: Sequence[str] | None = None) -> None:
    """The console script: run one command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    catch_signals()
    sys.setswitchinterval(SWITCH_SECONDS)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nobody needs
    keep_freed_memory()
    context = click.Context(main)
    try:
        code = execute(context, words)
    except BrokenPipeError:
        _close_stdout()
        code = 128 + signal.SIGPIPE
    gc.freeze()  # Python would look for cycles in all that was loaded before it ends: 0.03 s of each command
    sys.exit(code)


def execute(context: click.Context, words: list[str]) -> int:
    """Run the words; every failure becomes one sentence and an exit code."""
    failure: ImagefsError | None = None
    code: int | None = None
    try:
        with main.make_context("imagefs", list(words)) as context:
            main.invoke(context)
    except ImagefsError as error:
        if error.data.get("errno") == errno.EPIPE:
            raise BrokenPipeError from error
        failure = error
        _trace(context)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        failure = UsageError(_click_message(error), hint=_click_hint(error))
    except (KeyboardInterrupt, click.Abort):
        code = _interrupted(context, words, signal.SIGINT)
    except Terminated as stop:
        code = _interrupted(context, words, stop.number)
    except BrokenPipeError:
        raise
    except Exception as error:
        failure = ImagefsError(
            f"this is a bug in imagefs: {type(error).__name__}: {error}",
            hint="run it with --debug and report it",
        )
        _trace(context)
    console = _console(context, words)
    if failure is not None:
        console.fail(failure)
    elif code is not None:
        console.exit_code = code
    return say_exit(console, words)


def _console(context: click.Context, words: list[str]) -> Console:
    found = context.find_root().obj
    return found if isinstance(found, Console) else Console(json_mode="--json" in words)


def _interrupted(context: click.Context, words: list[str], number: int) -> int:
    console = _console(context, words)
    console.interrupted(number)
    return console.exit_code


def _trace(context: click.Context) -> None:
    if _console(context, sys.argv).debug or "--debug" in sys.argv:
        traceback.print_exc()


def _click_message(error: click.ClickException) -> str:
    return error.format_message().rstrip(".")


def _click_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else "see `imagefs --help`"


def _close_stdout() -> None:
    """The reader of our output is gone: keep Python from trying to flush to it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
