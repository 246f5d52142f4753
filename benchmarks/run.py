"""``python -m benchmarks.run``: measure beside the peers, print the table, keep it in RESULTS.md."""

from __future__ import annotations

import argparse
import compileall
import json
import sys
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.disk import FULL, QUICK, free_space
from benchmarks.figures import GROUPS, measure_groups
from benchmarks.measure import BenchError, say
from benchmarks.mounts import fuse_for_everybody
from benchmarks.report import document, machine_facts, markdown
from benchmarks.rows import Row
from benchmarks.workshop import Workshop
from fixtures.tools import ToolError, missing_sentence

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = 30 << 30


def main(words: list[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    shape = QUICK if asked.quick else FULL
    try:
        _check(asked.cache, quick=asked.quick)
        shop = Workshop(asked.cache, shape, runs=asked.runs)
        facts = machine_facts(peers.versions())
        begin = time.monotonic()
        try:
            with fuse_for_everybody():
                names = [name for name in GROUPS if name in (asked.only or GROUPS)]
                rows = list(measure_groups(shop, names))
            facts |= _about(shop, time.monotonic() - begin)
        finally:
            shop.close()
    except (BenchError, ToolError, OSError) as error:
        say(str(error))
        return 1
    _tell(rows, facts, as_json=asked.json, keep=not (asked.quick or asked.only), cache=asked.cache)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="this group; may be repeated")
    parser.add_argument("--runs", type=int, default=3, help="how often each side is run (%(default)s)")
    parser.add_argument("--json", action="store_true", help="every run as JSON on stdout, not the table")
    parser.add_argument("--quick", action="store_true", help="a small disk: to try it out, not to quote")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "bench", help="where the disks are")
    return parser


def _check(cache: Path, *, quick: bool) -> None:
    """Say now what would only be found out half an hour later."""
    gone = peers.missing()
    if gone:
        raise BenchError("; ".join(missing_sentence(tool) for tool in gone))
    cache.mkdir(parents=True, exist_ok=True)
    if not quick and free_space(cache) < _NEEDED:
        raise BenchError(f"{cache} needs {_NEEDED >> 30} GiB of free space: give another place with --cache")
    # What pip does with a wheel; a checkout may run under PYTHONDONTWRITEBYTECODE, for ever compiling.
    for package in ("imagefs", "mounter"):
        compileall.compile_dir(ROOT / package, quiet=1)


def _about(shop: Workshop, seconds: float) -> dict[str, str]:
    settings, disk = shop.settings, shop.disk.stat()
    held = f"{disk.st_size / 2**30:.2f} GiB, {disk.st_blocks * 512 / 1e9:.2f} GB allocated"
    return {
        "disk": f"{held}, GPT with FAT32, ext4 and NTFS holding program files",
        "imagefs": f"defaults: chunks of {settings.chunk >> 10} KiB, zstd level {settings.level}",
        "method": f"medians of {shop.runs} runs of each side in turn, {seconds / 60:.0f} minutes in all",
    }


def _tell(rows: list[Row], facts: dict[str, str], *, as_json: bool, keep: bool, cache: Path) -> None:
    table, everything = markdown(rows, facts), json.dumps(document(rows, facts), indent=1)
    (cache / "results.json").write_text(everything + "\n")
    if keep:
        (ROOT / "benchmarks" / "RESULTS.md").write_text(table)
    print(everything if as_json else table)


if __name__ == "__main__":
    sys.exit(main())
