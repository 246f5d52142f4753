"""The text in which LVM2 keeps its metadata: sections in braces, ``key = value``, lists, comments.

As ``libdm/libdm-config.c`` of LVM2 reads it. Bounded in length, depth and number of words; knows nothing of volumes.
"""

from __future__ import annotations

import re
from typing import Any

Section = dict[str, Any]
_MAX_DEPTH, _MAX_TOKENS = 8, 2_000_000
_TOKEN = re.compile(
    r'\s+|\#[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>[-+]?\d+(?:\.\d+)?)(?![\w.+-])|(?P<sign>[{}\[\],=])'
    r"|(?P<name>[\w.+\-/@#]+)",
    re.DOTALL,
)


def parse(text: str) -> Section:
    """The whole text as sections in sections; names in their order. Raises ValueError."""
    tokens = _Tokens(text)
    return _section(tokens, 0)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._found = iter(self._all(text))
        self.kind, self.value = "", ""
        self.step()

    @staticmethod
    def _all(text: str) -> Any:
        at, count = 0, 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            count += 1
            if match is None or count > _MAX_TOKENS:
                raise ValueError(f"nonsense at character {at}")
            at = match.end()
            if match.lastgroup:
                yield match.lastgroup, match.group(match.lastgroup)

    def step(self) -> None:
        self.kind, self.value = next(self._found, ("end", ""))

    def take(self, sign: str) -> None:
        if self.kind != "sign" or self.value != sign:
            raise ValueError(f"{sign!r} is missing before {self.value[:20]!r}")
        self.step()


def _section(tokens: _Tokens, depth: int) -> Section:
    if depth > _MAX_DEPTH:
        raise ValueError("sections too deep")
    found: Section = {}
    while tokens.kind in ("name", "number"):  # a name may be all digits
        name = tokens.value
        tokens.step()
        if tokens.value == "{" and tokens.kind == "sign":
            tokens.step()
            found[name] = _section(tokens, depth + 1)
            tokens.take("}")
        else:
            tokens.take("=")
            found[name] = _value(tokens)
    if (depth == 0) != (tokens.kind == "end"):
        raise ValueError(f"nonsense before {tokens.value[:20]!r}")
    return found


def _value(tokens: _Tokens) -> Any:
    kind, value = tokens.kind, tokens.value
    if kind == "sign" and value == "[":
        tokens.step()
        found = []
        while not (tokens.kind == "sign" and tokens.value == "]"):
            found.append(_plain(tokens))
            if tokens.kind == "sign" and tokens.value == ",":
                tokens.step()
        tokens.step()
        return found
    return _plain(tokens)


def _plain(tokens: _Tokens) -> int | float | str:
    kind, value = tokens.kind, tokens.value
    tokens.step()
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    if kind == "number":
        return float(value) if "." in value else int(value[:40])
    if kind == "name":
        return value
    raise ValueError(f"no value at {value[:20]!r}")
