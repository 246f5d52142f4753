"""A file system that changes inside a logical volume, an encrypted volume or a mirror, and a set with an image of the
disk after each change. This kernel has no device-mapper and no md: the volume is changed as a file of its own, and its
bytes are put where LVM's own tools, qemu or mdadm say that they belong."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fixtures import inner
from imagefs.ops.innervolumes import Secret
from tests.support.images import capture_file
from tests.support.oracles import loop_device, need_tool, qemu_img, run_tool, tool_text
from tests.support.past import MIB, Past

SECRET = b"secret"
_LVM = """
devices {{ use_devicesfile=0 dir="/dev" scan=["/dev"] filter=[{devices},"r|.*|"] }}
global {{ locking_dir="{folder}" activation=0 use_lvmpolld=0 }}
activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}
backup {{ backup=0 archive=0 }}
"""


class InsidePast(Past):
    """``name`` is the id of the volume, ``secrets`` what opens it."""

    name = ""

    def __init__(self, folder: Path, disk: Path, size: int, words: Sequence[str] = ()) -> None:
        super().__init__(folder, "ext4", size=size, words=("-b", "1024", "-N", "1024", *words))
        self.disk = disk
        self.put()

    def secrets(self) -> Mapping[str, Secret]:
        return {}

    def put(self) -> None:
        """The volume's bytes into the disk."""
        raise NotImplementedError

    def place_of(self, offset: int) -> int:
        """Where on the disk byte ``offset`` of the volume lies."""
        raise NotImplementedError

    def step(self, change: Callable[[Path], Any] | None = None, **options: Any) -> str:
        if change is not None:
            with self.mounted() as room:
                change(room)
            self.put()
        return capture_file(self.store, self.disk, **options).info.id


class LvmPast(InsidePast):
    """In ``root`` of the disk ``lvm``: three segments on two physical volumes."""

    name = "p1.1"
    #: Where the partitions lie, as sgdisk was told in the guest.
    parts: Sequence[int] = (MIB, 13 * MIB, 25 * MIB)
    part_size = 12 * MIB

    def __init__(self, folder: Path) -> None:
        need_tool("lvm")
        self._folder = folder
        disk = inner.unpack("lvm", folder / "disk")
        self.disk = disk
        super().__init__(folder, disk, sum(length for _, length in self.segments()))

    @contextlib.contextmanager
    def lvm(self) -> Iterator[Callable[..., str]]:
        """``lvm("lvs", …)`` on the disk, without the kernel's part."""
        (self._folder / "lock").mkdir(exist_ok=True)
        with contextlib.ExitStack() as loops:
            each = [
                loop_device(self.disk, offset=start, size=self.part_size, writable=True)
                for start in self.parts
            ]
            self.loops = [loops.enter_context(loop) for loop in each]
            devices = ",".join(f'"a|^{loop}$|"' for loop in self.loops)
            config = " ".join(_LVM.format(folder=self._folder / "lock", devices=devices).split())
            yield lambda *words: tool_text("lvm", *words, "--config", config)

    def segments(self, volume: str = "office/root") -> list[tuple[int, int]]:
        """(offset on the disk, bytes) of each segment."""
        with self.lvm() as lvm:
            columns = "seg_start_pe,seg_size,devices"
            words = ("--reportformat", "json", "--units", "b", "--nosuffix")
            rows = json.loads(lvm("lvs", *words, "-o", columns, "--segments", volume))["report"][0]["seg"]
            disks = json.loads(lvm("pvs", *words, "-o", "pv_name,pe_start,vg_extent_size"))["report"][0]["pv"]
            starts = {row["pv_name"]: row for row in disks if row["vg_extent_size"] != "0"}
            found = []
            for row in sorted(rows, key=lambda each: int(each["seg_start_pe"])):
                device, _, extent = row["devices"].rstrip(")").partition("(")
                where = starts[device]
                at = self.parts[self.loops.index(device)] + int(where["pe_start"])
                found.append((at + int(extent) * int(where["vg_extent_size"]), int(row["seg_size"])))
        return found

    def put(self) -> None:
        data, at = self.volume.read_bytes(), 0
        with self.disk.open("r+b") as out:
            for place, length in self.segments():
                out.seek(place)
                out.write(data[at : at + length])
                at += length

    def place_of(self, offset: int) -> int:
        for place, length in self.segments():
            if offset < length:
                return place + offset
            offset -= length
        raise ValueError("past the end of the volume")


class LuksPast(InsidePast):
    """In LUKS made by qemu, which encrypts what it is given."""

    name = "p0.1"

    def __init__(self, folder: Path) -> None:
        self._words = ["--object", f"secret,id=s,data={SECRET.decode()}"]
        disk = folder / "disk"
        made = ["-o", "key-secret=s,iter-time=10", disk, str(8 * MIB)]
        qemu_img("create", "-q", "-f", "luks", *self._words, *made)
        super().__init__(folder, disk, 8 * MIB)

    def secrets(self) -> Mapping[str, Secret]:
        return {"p0": Secret(SECRET)}

    def put(self) -> None:
        place = f"driver=luks,key-secret=s,file.filename={self.disk}"
        words = ["convert", "-n", "-f", "raw", "--target-image-opts", *self._words, self.volume, place]
        run_tool(["qemu-img", *words])

    def place_of(self, offset: int) -> int:
        payload = int(
            tool_text("cryptsetup", "luksDump", self.disk).partition("Payload offset:")[2].split()[0]
        )
        return payload * 512 + offset


class MirrorPast(InsidePast):
    """In the mirror of p1 and p2 of the disk ``raid``, of which p2 was written to last."""

    name = "p1.1"

    def __init__(self, folder: Path) -> None:
        need_tool("mdadm")
        disk = inner.unpack("raid", folder / "disk")
        with loop_device(disk, offset=5 * MIB, size=4 * MIB) as device:
            told = tool_text("mdadm", "--examine", device)
        numbers = {
            word: int(number) for word, number in re.findall(r"(Data Offset|Array Size) : (\d+)", told)
        }
        self._start = 5 * MIB + 512 * numbers["Data Offset"]
        super().__init__(folder, disk, 1024 * numbers["Array Size"])

    def put(self) -> None:
        with self.disk.open("r+b") as out:
            out.seek(self._start)
            out.write(self.volume.read_bytes())

    def place_of(self, offset: int) -> int:
        return self._start + offset


def change_of(words: str) -> Callable[[Path], object]:
    """A step that writes ``words`` into home/doc.txt."""

    def write(room: Path) -> None:
        (room / "home").mkdir(exist_ok=True)
        (room / "home/doc.txt").write_text(words)

    return write
