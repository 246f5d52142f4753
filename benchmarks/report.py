"""The results as a markdown table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import median
from benchmarks.rows import Figure, LeftOut, Row

_HEAD = "| figure | beside | ours | theirs | ratio | wanted | reached |\n|---|---|---:|---:|---:|---:|---|\n"


def markdown(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """The table with what it was measured on."""
    lines = [_line(row) for row in rows]
    about = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    reached = [row for row in rows if isinstance(row, Figure) and row.reached]
    closing = f"{len(reached)} of {len(rows)} rows reached."
    return f"# Benchmark results\n\n{about}\n{_HEAD}{''.join(lines)}\n{closing}\n"


def _line(row: Row) -> str:
    if isinstance(row, LeftOut):
        return f"| {row.name} | | | | | | left out: {_cell(row.reason)} |\n"
    sign = "≥" if row.at_least else "≤"
    cells = [
        _cell(row.name),
        _cell(row.peer),
        f"{_number(median(row.ours))} {row.unit}",
        f"{_number(median(row.theirs))} {row.unit}",
        f"{row.ratio:.2f}",
        f"{sign} {row.wanted:g}",
        "yes" if row.reached else "**no**",
    ]
    return f"| {' | '.join(cells)} |\n"


def document(rows: Sequence[Row], facts: dict[str, str]) -> dict[str, Any]:
    """Every run of every figure."""
    figures = [
        {**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows if isinstance(row, Figure)
    ]
    left_out = [asdict(row) for row in rows if isinstance(row, LeftOut)]
    return {"facts": facts, "figures": figures, "left_out": left_out}


def machine_facts(versions: dict[str, str]) -> dict[str, str]:
    """What a reader needs to know of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, Linux {platform.release()}",
        "Python": platform.python_version(),
        "peers": ", ".join(versions.values()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
