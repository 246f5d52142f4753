"""Whatever tool a test or builder calls, ``make setup`` installs: nothing rests on one machine's luck."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from fixtures.tools import PACKAGES
from tests.architecture.sources import ROOT, dotted, sources

#: Calls whose words name tools, and the modules that try them on tools that must not exist.
CALLS = {"need_tool", "run_tool", "tool_text"}
UNTRUE = {"tests/fixtures/test_oracles.py", "tests/fixtures/test_parts.py", "tests/fixtures/test_build.py"}

#: On every Debian and Ubuntu, the smallest container included.
ESSENTIAL = {"coreutils", "dash", "diffutils", "findutils", "grep", "mount", "tar", "util-linux"}
OF_ESSENTIAL = {
    "cat",
    "chmod",
    "cp",
    "dd",
    "diff",
    "env",
    "fallocate",
    "ls",
    "mount",
    "sh",
    "sleep",
    "stat",
    "tar",
    "true",
    "find",
    "grep",
}


def listed(name: str) -> set[str]:
    """The packages of a list in the Makefile, alternatives apart."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (found,) = re.findall(rf"^{name} := (.*)$", text, re.MULTILINE)
    return set(found.replace("|", " ").split())


def called_tools(*folders: str) -> Iterator[tuple[str, str]]:
    """(module, tool) for each literal tool name in a call of the helpers."""
    for source in sources(*folders):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in CALLS:
                yield from ((source.path, word) for word in _tools(node))


def _tools(call: ast.Call) -> Iterator[str]:
    every = call.args if dotted(call.func).endswith("need_tool") else call.args[:1]
    for argument in every:
        first = argument.elts[0] if isinstance(argument, ast.List) and argument.elts else argument
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


@pytest.mark.parametrize("folder", ["tests", "fixtures"])
def test_make_setup_installs_every_tool_that_is_called(folder: str) -> None:
    installed = listed("RUN_PACKAGES") | listed("DISK_PACKAGES") | listed("TEST_PACKAGES") | ESSENTIAL
    found = [pair for pair in called_tools(folder) if pair[0] not in UNTRUE]
    assert len(found) > 5, "the search itself finds the calls"
    missing = {
        (path, tool)
        for path, tool in found
        if tool not in OF_ESSENTIAL and PACKAGES.get(tool, tool) not in installed
    }
    assert missing == set()


def test_the_benchmarks_install_their_peers() -> None:
    from benchmarks.peers import VERSIONS

    installed = listed("BENCH_PACKAGES")
    assert {PACKAGES.get(tool, tool) for tool in VERSIONS} <= installed


def test_a_missing_tool_is_told_with_a_package_that_is_listed() -> None:
    """The sentence never names a package that nobody has tried."""
    lists = ("RUN_PACKAGES", "DISK_PACKAGES", "TEST_PACKAGES", "BENCH_PACKAGES")
    known = set().union(*map(listed, lists)) | ESSENTIAL
    assert set(PACKAGES.values()) <= known
