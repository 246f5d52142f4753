"""The rules of the house, held by reading its sources: floors, foreign libraries, silence, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.architecture.sources import ROOT, Source, sources

#: Each foreign library and the only places that may import it. A place that ends in / is a folder.
FOREIGN = {
    "mfusepy": ("mounter/binding.py",),
    "fuse": ("mounter/binding.py",),
    "pyfwnt": ("imagefs/browse/fwnt.py",),
    "lzfse": ("imagefs/browse/lzfse.py",),
    "pytsk3": ("imagefs/browse/tsk.py",),
    "pyfatfs": ("imagefs/browse/fat.py", "fixtures/fat.py"),
    "fs": (),
    "fsspec": ("imagefs/spec/filesystem.py",),
    "google_crc32c": ("imagefs/allocation/ext.py", "imagefs/browse/xfsdisk.py"),
    "argon2": ("imagefs/volume/luksunlock.py",),
    "cryptography": ("imagefs/block/sectorcipher.py",),
    "pybde": ("imagefs/volume/bitlocker.py",),
    "pyvshadow": ("imagefs/volume/shadow.py",),
    "zstandard": ("imagefs/format/codec.py",),
    "click": ("imagefs/cli/",),
    "rich": ("imagefs/cli/", "imagefs/tui/"),
    "textual": ("imagefs/tui/", "fixtures/draw.py"),
}

#: What only ``cli`` may do.
FORBIDDEN_CALLS = {"print", "input", "exit", "quit", "breakpoint", "sys.exit", "os._exit", "os.getenv"}
FORBIDDEN_MENTIONS = {"os.environ", "os.environb", "sys.argv", "sys.stdin", "sys.stdout", "sys.stderr"}

#: Exceptions, each with its reason.
ALLOWED = {
    ("mounter/binding.py", "os.environ"): "mfusepy chooses its library by FUSE_LIBRARY_PATH alone",
    ("mounter/background.py", "os._exit"): "the forked process must not end as the one that forked it",
    ("mounter/background.py", "sys.stdout"): "flushed, so that nothing is said twice",
    ("mounter/kernelhelper.py", "sys.argv"): "a program of its own, started by mounter/kernel.py",
    ("mounter/kernelhelper.py", "sys.exit"): "the same",
    ("mounter/kernelhelper.py", "os._exit"): "the loop of FUSE would wait for a kernel that waits for it",
}


def below_cli() -> list[Source]:
    return [source for source in sources("imagefs", "mounter") if not source.path.startswith("imagefs/cli/")]


def test_the_floors_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("library", FOREIGN)
def test_one_foreign_library_one_file(library: str) -> None:
    users = {
        source.path
        for source in sources("imagefs", "mounter", "fixtures")
        if library in set(source.imports())
    }
    strangers = {path for path in users if not any(_within(path, place) for place in FOREIGN[library])}
    assert not strangers, f"{library} belongs in {FOREIGN[library]}"


def test_every_dependency_has_its_place_in_the_rule_or_is_a_tool_for_all() -> None:
    """A new library is a decision: it gets a file of its own, or is named here."""
    own = {"imagefs", "mounter", "fixtures"}
    for_all = {"blake3", "numpy", "_typeshed"}  # the last one holds types only
    used = {name for source in sources("imagefs", "mounter", "fixtures") for name in source.imports()}
    assert used - set(sys.stdlib_module_names) - own - for_all <= set(FOREIGN)


def test_nothing_below_cli_prints_exits_or_reads_the_environment() -> None:
    offences = [offence for source in below_cli() for offence in _offences(source) if offence not in ALLOWED]
    assert offences == []


def test_every_exception_to_the_rules_is_still_needed() -> None:
    found = {offence for source in below_cli() for offence in _offences(source)}
    assert set(ALLOWED) <= found


def test_the_rule_sees_what_it_forbids() -> None:
    """The check itself: one module that does everything wrong."""
    text = "import os, sys\nfrom os import environ\nprint(1)\nsys.exit(2)\nx = os.environ['A']\nsys.stdout.write('')"
    found = {name for _, name in _offences(Source("x.py", ast.parse(text)))}
    assert found == {"print", "sys.exit", "os.environ", "sys.stdout", "environ"}


def test_every_module_says_what_it_is_for() -> None:
    houses = ("imagefs", "mounter", "fixtures", "benchmarks")
    silent = [s.path for s in sources(*houses) if s.tree.body and not ast.get_docstring(s.tree)]
    assert silent == []


def test_library_and_mounter_do_not_know_tests_fixtures_or_benchmarks() -> None:
    outer = {"tests", "fixtures", "benchmarks", "pytest"}
    assert [s.path for s in sources("imagefs", "mounter") if outer & set(s.imports())] == []


def test_relative_imports_are_not_used() -> None:
    """The linter of the floors sees them, but a reader of one file does not."""
    houses = ("imagefs", "mounter", "fixtures", "benchmarks")
    found = [
        source.path
        for source in sources(*houses)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert found == []


def _within(path: str, place: str) -> bool:
    return path.startswith(place) if place.endswith("/") else path == place


def _offences(source: Source) -> Iterator[tuple[str, str]]:
    names = set(source.calls()) & FORBIDDEN_CALLS
    names |= set(source.mentions()) & FORBIDDEN_MENTIONS
    names |= set(source.taken_from("os")) & {"environ", "environb", "getenv", "_exit"}
    names |= set(source.taken_from("sys")) & {"argv", "stdin", "stdout", "stderr", "exit"}
    yield from ((source.path, name) for name in sorted(names))
