"""The pictures of the README show what the browser shows now."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from fixtures.draw import FOLDER, SCREENS, draw, words_of
from tests.architecture.sources import ROOT


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_says_what_it_says_in_the_readme(past: Path, name: str) -> None:
    """Compared by its words, so that another version of Textual may draw it otherwise; `python -m fixtures.draw`
    draws it anew."""
    kept = words_of((FOLDER / f"{name}.svg").read_text())
    assert len(kept) > 5
    assert words_of(asyncio.run(draw(past, name))) == kept


def test_every_screen_is_in_the_readme() -> None:
    shown = re.findall(r"\(fixtures/screens/(\w+)\.svg\)", (ROOT / "README.md").read_text())
    assert set(shown) <= set(SCREENS)
    assert {path.stem for path in FOLDER.iterdir()} == set(SCREENS)
    assert shown
