"""What an ATA disk hides from everybody: its host protected area and its device configuration overlay."""

from __future__ import annotations

import re

from imagefs.block.commands import Runner, run_command
from imagefs.errors import SourceError

_HPA = re.compile(r"max sectors\s*=\s*(\d+)/(\d+)")
_DCO = re.compile(r"Real max sectors:\s*(\d+)")


def hidden_areas(device: str, *, run: Runner = run_command) -> dict[str, str]:
    """``hpa`` and ``dco`` in words, as far as hdparm tells; empty for what is no ATA disk.

    The disk is only asked, never changed.
    """
    told: dict[str, str] = {}
    shown = _asked(run, ["hdparm", "-N", device], _HPA)
    if shown:
        now, native = int(shown[1]), int(shown[2])
        told["hpa"] = f"{native - now} of {native} sectors hidden" if now < native else "none"
    real = _asked(run, ["hdparm", "--dco-identify", device], _DCO)
    if real:
        least = int(shown[2]) if shown else 0
        most = int(real[1])
        told["dco"] = f"{most - least} of {most} sectors hidden" if 0 < least < most else "none"
    return told


def _asked(run: Runner, words: list[str], wanted: re.Pattern[str]) -> re.Match[str] | None:
    try:
        return wanted.search(run(words).stdout)
    except SourceError:  # hdparm is not installed, or the disk does not answer
        return None
