"""Names of eight and three characters find the files that have a longer one (NTFS, FAT)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures.tools import run_tool
from imagefs.browse.fat import open_fat
from imagefs.browse.names import could_be_short
from imagefs.browse.opening import open_filesystem
from imagefs.errors import PathNotFound
from tests.browse.disks import FileReader, make_fat, make_ntfs
from tests.browse.windows import ntfs3g
from tests.support.oracles import need_tool, root_only

LONG = "A rather long name.text"


@root_only
@pytest.mark.parametrize("many", [0, 300])
def test_ntfs(tmp_path: Path, many: int) -> None:
    volume = make_ntfs(tmp_path / "ntfs", {}, tmp_path, size=24 << 20)
    with ntfs3g(volume, tmp_path / "mnt") as mounted:
        folder = mounted / "Program Files (x86)"
        folder.mkdir()
        os.setxattr(folder, "system.ntfs_dos_name", b"PROGRA~2")
        for number in range(many):
            (folder / f"{number} {'filler' * 20}").touch()
        (folder / LONG).write_bytes(b"found")
        os.setxattr(folder / LONG, "system.ntfs_dos_name", b"ODD.TXT")
        assert Path(f"{mounted}/PROGRA~2/ODD.TXT").read_bytes() == b"found"
    fs = open_filesystem(FileReader(volume))
    entry = fs.lookup(b"/progra~2/odd.txt")
    assert entry.path == f"/Program Files (x86)/{LONG}".encode()
    assert fs.open(entry).read_at(0, 9) == b"found"
    listed = [each.name for each in fs.children(fs.lookup(b"/PROGRA~2"))]
    assert len(listed) == many + 1
    assert b"ODD.TXT" not in listed
    for missing in (b"/PROGRA~1", b"/PROGRA~2/OTHER.TXT", b"/PROGRA~2.TXT"):
        with pytest.raises(PathNotFound):
            fs.lookup(missing)


@pytest.mark.parametrize("opener", [open_filesystem, open_fat])
def test_fat(tmp_path: Path, opener: object) -> None:
    need_tool("mdir")
    (tmp_path / "root" / "A long folder").mkdir(parents=True)
    (tmp_path / "root" / "A long folder" / LONG).write_bytes(b"found")
    (tmp_path / "root" / "A long folder" / "A rather long name.texture").write_bytes(b"another")
    volume = make_fat(tmp_path / "fat", tmp_path / "root", "-F16", "-s1")
    said = run_tool(["mdir", "-i", volume, "::A long folder"]).stdout.decode()
    assert "ARATHE~1" in said
    assert "ARATHE~2" in said
    fs = opener(FileReader(volume))  # type: ignore[operator]
    contents = {fs.open(fs.lookup(b"/alongf~1/arathe~%d.tex" % n)).read_at(0, 9) for n in (1, 2)}
    assert contents == {b"found", b"another"}
    assert fs.lookup(b"/ALONGF~1").path == b"/A long folder"
    with pytest.raises(PathNotFound):
        fs.lookup(b"/ALONGF~2")


def test_what_a_short_name_looks_like() -> None:
    short = (b"A", b"PROGRA~1", b"ABCDEFGH.TXT", "GRÖSSE~1.TXT".encode(), b"a.b")
    other = (b"", b".hidden", b"ABCDEFGHI", b"A.TEXT", b"A.", b"A.B.C", b"a.b.")
    assert [could_be_short(name) for name in short] == [True] * len(short)
    assert [could_be_short(name) for name in other] == [False] * len(other)
