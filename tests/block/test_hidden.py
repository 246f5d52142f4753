"""Areas that a disk hides, by what hdparm prints (hdparm 9.65, of a SATA disk with and without them)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from imagefs.block.commands import ENVIRONMENT, Output
from imagefs.block.hidden import hidden_areas
from tests.block.conftest import MakeLoop
from tests.support.oracles import need_tool, root_only

WHOLE = "\n/dev/sda:\n max sectors   = 1953525168/1953525168, HPA is disabled\n"
CUT = "\n/dev/sda:\n max sectors   = 976771055/1953525168, HPA is enabled\n"
DCO = (
    "\n/dev/sda:\nDCO Revision: 0x0002\nThe following features can be selectively disabled via DCO:\n"
    "\tTransfer modes:\n\t\t mdma0 mdma1 mdma2\n\tReal max sectors: {}\n\tATA command/feature sets:\n"
)


@pytest.mark.parametrize(
    ("hpa", "dco", "told"),
    [
        (WHOLE, DCO.format(1953525168), {"hpa": "none", "dco": "none"}),
        (CUT, "", {"hpa": "976754113 of 1953525168 sectors hidden"}),
        (WHOLE, DCO.format(2000000000), {"hpa": "none", "dco": "46474832 of 2000000000 sectors hidden"}),
        ("", "", {}),
    ],
)
def test_what_hdparm_tells(hpa: str, dco: str, told: dict[str, str]) -> None:
    asked = []

    def run(words: Sequence[str]) -> Output:
        asked.append(list(words))
        return Output(0, hpa if "-N" in words else dco, "")

    assert hidden_areas("/dev/sda", run=run) == told
    assert asked == [["hdparm", "-N", "/dev/sda"], ["hdparm", "--dco-identify", "/dev/sda"]]


@root_only
def test_a_device_that_is_no_ata_disk(tmp_path: Path, make_loop: MakeLoop) -> None:
    need_tool("hdparm")
    path = tmp_path / "disk"
    path.write_bytes(bytes(2**20))
    assert hidden_areas(make_loop(path)) == {}


def test_without_hdparm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PATH", "/nowhere")
    assert hidden_areas("/dev/sda") == {}
