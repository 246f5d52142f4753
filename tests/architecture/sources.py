"""The sources of the house as syntax trees, for the tests that hold it to its rules."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """A module: its path from the root of the house (``imagefs/errors.py``) and its tree."""

    path: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Top names of all absolute imports, those inside functions too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]

    def calls(self) -> Iterator[str]:
        """Dotted names of what is called: ``print``, ``sys.exit``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield dotted(node.func)

    def mentions(self) -> Iterator[str]:
        """Dotted names of all attributes that are looked up: ``os.environ``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                yield dotted(node)

    def taken_from(self, module: str) -> Iterator[str]:
        """The names of ``from module import name``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module == module:
                yield from (alias.name for alias in node.names)


@functools.cache
def sources(*folders: str) -> tuple[Source, ...]:
    """All modules below the named folders of the house."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes(), str(path)))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    )


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"
