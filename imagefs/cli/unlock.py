"""``--unlock``: secrets for encrypted volumes, typed on the terminal, from a file descriptor or a key file. They are
never words of a command line or of the environment, so no list of processes and no log has them."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagefs.errors import UsageError

if TYPE_CHECKING:
    from imagefs.ops.innervolumes import Secret

_WORD = re.compile(r"(?P<volume>[^=]+)(?:=(?:fd:(?P<fd>\d{1,6})|file:(?P<file>.+)))?", re.DOTALL)
#: What a descriptor may give, so that it fits into a pipe; cryptsetup takes key files up to 8 MiB too.
MAX_SECRET, _MAX_FILE = 32 << 10, 8 << 20

unlock_option = click.option(
    "--unlock",
    "unlock",
    metavar="pN[=fd:N|=file:FILE]",
    multiple=True,
    help="Open the encrypted volume pN: ask for its password, passphrase or recovery key, read it from a file "
    "descriptor, or take a key file. Repeatable.",
)


@dataclass(frozen=True, slots=True)
class Unlock:
    """One volume and its secret; ``path`` of the key file it came from."""

    volume: str
    data: bytes
    path: str = ""


def read_unlocks(words: Sequence[str]) -> tuple[Unlock, ...]:
    """The secrets that ``--unlock`` names, asked for in order. Raises UsageError."""
    if not words:
        return ()
    from imagefs.cli.wiring import parse_volume  # which loads all that reads images

    found: dict[str, Unlock] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None:
            raise UsageError(f"--unlock {word} names no volume", hint="write p3, p3=fd:3 or p3=file:KEY")
        volume = parse_volume(match["volume"])
        if volume in found:
            raise UsageError(f"{volume} is to be unlocked twice")
        if match["fd"]:
            found[volume] = Unlock(volume, _from_descriptor(int(match["fd"])))
        elif match["file"]:
            found[volume] = _from_file(volume, Path(match["file"]))
        else:
            found[volume] = Unlock(volume, _from_terminal(volume))
    return tuple(found.values())


def secrets_of(unlocks: Sequence[Unlock]) -> Mapping[str, Secret]:
    if not unlocks:
        return {}
    from imagefs.ops.innervolumes import Secret

    return {each.volume: Secret(each.data, each.path) for each in unlocks}


def _from_terminal(volume: str) -> bytes:
    try:
        with open("/dev/tty", "r+b", buffering=0):
            pass
    except OSError as error:
        raise UsageError(
            f"there is no terminal to ask for the password of {volume} on",
            hint=f"give it through a descriptor: --unlock {volume}=fd:3 3<FILE",
        ) from error
    return os.fsencode(getpass.getpass(f"Password, passphrase or recovery key for {volume}: "))


def _from_descriptor(number: int) -> bytes:
    """All of it but a line break at its end."""
    data = b""
    try:
        while len(data) <= MAX_SECRET and (part := os.read(number, MAX_SECRET)):
            data += part
    except OSError as error:
        raise UsageError(f"file descriptor {number} cannot be read: {error.strerror}") from error
    if len(data) > MAX_SECRET:
        raise UsageError(
            f"file descriptor {number} gives more than {MAX_SECRET} bytes", hint="name a key file"
        )
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _from_file(volume: str, path: Path) -> Unlock:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise UsageError(f"the key file {path} is larger than {_MAX_FILE >> 20} MiB")
    return Unlock(volume, data, str(path.absolute()))
