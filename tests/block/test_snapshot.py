"""Snapshots: real clones on XFS and Btrfs that writers cannot change; LVM by what its commands say.

There is no device mapper here. The reports below are those of LVM 2.03.16 (Debian 12), run with
``--driverloaded n`` over a volume group on a loop device; states and percentages, which only the kernel
knows, and the words of a failing lvcreate are set as lvs(8) and LVM's sources have them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from imagefs.block import snapshot as module
from imagefs.block.commands import ENVIRONMENT, Output, run_command
from imagefs.block.snapshot import (
    LvmSnapshot,
    ReflinkSnapshot,
    clear_leftovers,
    in_use,
    open_snapshot,
    take_snapshot,
)
from imagefs.errors import SourceError, UsageError
from tests.block.conftest import MakeLoop, attach
from tests.block.machine import Machine
from tests.support.oracles import need_tool, root_only, run_tool, tool_text

GIB = 1 << 30
LV = "/dev/mapper/vg0-root"
THIN = "/dev/mapper/vg0-thin"
CREATED = '  Logical volume "{name}" created.\n'
NOT_FOUND = '  Failed to find logical volume "vg0/{name}"\n'


def report(*rows: dict[str, str]) -> str:
    """A report as lvs prints it."""
    lines = ",\n".join("                  " + json.dumps(row, separators=(", ", ":")) for row in rows)
    inside = (
        f'              "lv": [\n{lines}\n              ]\n'
        if rows
        else '              "lv": [\n              ]\n'
    )
    return '  {\n      "report": [\n          {\n' + inside + "          }\n      ]\n  }\n"


class Lvm:
    """Answers like the commands of LVM, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.volume = {
            "vg_name": "vg0",
            "lv_name": "root",
            "lv_size": str(100 * GIB),
            "pool_lv": "",
            "vg_free": str(20 * GIB),
            "vg_extent_size": "4194304",
        }
        self.state = {"lv_attr": "sri-aos---", "data_percent": "1.27", "lv_snapshot_invalid": "0"}
        self.pool = {"data_percent": "41.00", "metadata_percent": "12.30"}
        self.others: list[dict[str, str]] = []
        self.open = "0"
        self.create = Output(0, CREATED, "")
        self.remove = [Output(0, "  successfully removed.\n", "")]
        self.made: set[str] = set()

    def __call__(self, argv: Sequence[str]) -> Output:
        self.calls.append(list(argv))
        answer: Callable[[list[str]], Output] = getattr(self, f"_{argv[0]}")
        return answer(list(argv))

    def _lvs(self, argv: list[str]) -> Output:
        assert argv[1:6] == ["--reportformat", "json", "--units", "b", "--nosuffix"]
        fields, place = argv[-2].split(","), argv[-1]
        if place == "vg0":
            rows = self.others
        elif "lv_size" in fields:
            rows = [self.volume]
        elif fields == ["lv_device_open"]:
            rows = [{"lv_device_open": self.open}]
        elif "lv_attr" in fields:
            if place.removeprefix("vg0/") not in self.made:
                return Output(5, report(), NOT_FOUND.format(name=place.removeprefix("vg0/")))
            rows = [self.state]
        else:
            assert place == "vg0/pool"
            rows = [self.pool]
        return Output(0, report(*({name: row[name] for name in fields} for row in rows)), "")

    def _lvcreate(self, argv: list[str]) -> Output:
        if not self.create.code:
            self.made.add(argv[argv.index("--name") + 1])
        return self.create

    def _lvremove(self, argv: list[str]) -> Output:
        name = argv[-1].removeprefix("vg0/")
        leftovers = {row["lv_name"] for row in self.others}
        if name not in self.made | leftovers:
            return Output(5, "", NOT_FOUND.format(name=name))
        answer = self.remove.pop(0) if len(self.remove) > 1 else self.remove[0]
        if not answer.code:
            self.made.discard(name)
        return answer

    def asked(self, command: str) -> list[list[str]]:
        return [call for call in self.calls if call[0] == command]


@pytest.fixture
def lvm(monkeypatch: pytest.MonkeyPatch) -> Lvm:
    monkeypatch.setattr(module, "_PAUSES", (0, 0))
    return Lvm()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Root on an LVM volume, a thin volume, the hidden half of one, LUKS on a partition, an idle sdb."""
    made = Machine(tmp_path / "machine")
    disk = made.disk("sda", "8:0")
    made.disk("sdb", "8:16")
    uuids = {"vg0-root": "LVM-" + 64 * "a", "vg0-thin": "LVM-" + 64 * "b"}
    uuids |= {"vg0-root-real": "LVM-" + 64 * "a" + "-real", "luks": "CRYPT-LUKS2-0123-luks"}
    for index, (name, uuid) in enumerate(uuids.items()):
        attributes = {"dm/name": f"{name}\n", "dm/uuid": f"{uuid}\n"}
        mapped = made.disk(f"dm-{index}", f"253:{index}", attributes=attributes)
        made.stack(mapped, disk)
        made.node(f"/dev/mapper/{name}", f"253:{index}")
    made.node("/dev/vg0/root", "253:0")
    made.mount("/dev/mapper/vg0-root", "/", "253:0")
    return made


def take(lvm: Lvm, machine: Machine, path: str = LV, wish: str = "lvm") -> LvmSnapshot:
    taken = take_snapshot(path, wish, run=lvm, system=machine.system())
    assert isinstance(taken, LvmSnapshot)
    return taken


# -- LVM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["lvm", "auto"])
@pytest.mark.parametrize("path", [LV, "/dev/vg0/root", "/dev/dm-0"])
def test_a_volume_is_snapshot_checked_and_removed(lvm: Lvm, machine: Machine, path: str, wish: str) -> None:
    taken = take(lvm, machine, path, wish)
    (words,) = lvm.asked("lvcreate")
    name = words[words.index("--name") + 1]
    assert words == [
        *("lvcreate", "--yes", "--snapshot", "--name", name, "--permission", "r", "--addtag", "imagefs"),
        *("--size", f"{10 * GIB}b", "vg0/root"),
    ]
    assert (taken.kind, taken.source, taken.name) == ("lvm", path, f"vg0/{name}")
    assert taken.path == f"/dev/vg0/{name}"
    assert lvm.asked("lvs")[0][-1] == LV, "lvs knows no /dev/dm-0"
    assert taken.check() == []
    assert taken.remove() == []
    assert taken.remove() == []
    assert lvm.asked("lvremove") == [["lvremove", "--yes", f"vg0/{name}"]]
    assert lvm.made == set()


@pytest.mark.parametrize(
    ("size", "free", "expected"),
    [
        (100 * GIB, 20 * GIB, 10 * GIB),
        (100 * GIB, 3 * GIB, 3 * GIB),
        (2 * GIB, 20 * GIB, GIB),
        (105 * GIB + (4 << 20), 50 * GIB, 10_756 << 20),
        (2 * GIB, 4 << 20, 4 << 20),
    ],
)
def test_the_room_is_a_tenth_at_least_a_gibibyte_and_no_more_than_there_is(
    lvm: Lvm, machine: Machine, size: int, free: int, expected: int
) -> None:
    lvm.volume |= {"lv_size": str(size), "vg_free": str(free)}
    take(lvm, machine)
    (words,) = lvm.asked("lvcreate")
    given = int(words[words.index("--size") + 1].removesuffix("b"))
    assert given % (4 << 20) == 0
    assert expected <= given < expected + (4 << 20)


def test_two_snapshots_of_one_run_have_two_names(lvm: Lvm, machine: Machine) -> None:
    assert take(lvm, machine).name != take(lvm, machine).name


@pytest.mark.parametrize("free", ["0", "4194303"])
def test_a_full_group_is_told_with_the_ways_out(lvm: Lvm, machine: Machine, free: str) -> None:
    lvm.volume["vg_free"] = free
    with pytest.raises(SourceError, match="volume group vg0 has no free space") as caught:
        take(lvm, machine, wish="auto")
    assert "--snapshot live" in caught.value.hint
    assert lvm.asked("lvcreate") == []


def test_what_lvcreate_says_last_is_in_the_error(lvm: Lvm, machine: Machine) -> None:
    said = (
        "  WARNING: Sum of all thin volume sizes exceeds the size of thin pools.\n"
        '  Volume group "vg0" has insufficient free space (0 extents): 2560 required.\n'
        "  Run `lvcreate --help' for more information.\n"
    )
    lvm.create = Output(5, "", said)
    with pytest.raises(
        SourceError, match=r"no snapshot of vg0/root .* free space \(0 extents\): 2560 required$"
    ):
        take(lvm, machine)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"lv_attr": "sri-Ios---", "data_percent": "100.00", "lv_snapshot_invalid": "1"}, "became invalid"),
        ({"lv_attr": "sri-Ios---", "data_percent": "", "lv_snapshot_invalid": "-1"}, "became invalid"),
        ({"lv_attr": "sri-Sos---", "data_percent": "3.00", "lv_snapshot_invalid": "0"}, "became invalid"),
        ({"lv_snapshot_invalid": "1"}, "became invalid"),
        ({"data_percent": "100.00"}, "became full"),
        ({"lv_attr": "sri-XXs---", "data_percent": "", "lv_snapshot_invalid": "-1"}, "does not say"),
    ],
)
def test_a_spoilt_snapshot_is_an_error(
    lvm: Lvm, machine: Machine, state: dict[str, str], reason: str
) -> None:
    taken = take(lvm, machine)
    lvm.state |= state
    with pytest.raises(SourceError, match=reason) as caught:
        taken.check()
    assert "not consistent" in caught.value.message
    assert "volume group vg0 more free space" in caught.value.hint
    assert taken.remove() == []


def test_a_snapshot_that_is_gone_at_the_end_is_an_error(lvm: Lvm, machine: Machine) -> None:
    taken = take(lvm, machine)
    lvm.made.clear()
    with pytest.raises(SourceError, match="Failed to find logical volume"):
        taken.check()
    assert taken.remove() == []


def test_a_nearly_full_snapshot_is_a_warning(lvm: Lvm, machine: Machine) -> None:
    taken = take(lvm, machine)
    lvm.state["data_percent"] = "93.41"
    (warning,) = taken.check()
    assert "was 93 % full" in warning


def test_a_thin_volume_needs_no_size_and_its_own_fullness_says_nothing(lvm: Lvm, machine: Machine) -> None:
    lvm.volume |= {"lv_name": "thin", "pool_lv": "pool", "vg_free": "0"}
    taken = take(lvm, machine, THIN)
    (words,) = lvm.asked("lvcreate")
    assert "--size" not in words
    assert words[-5:] == ["--setactivationskip", "n", "--activate", "y", "vg0/thin"]
    lvm.state = {"lv_attr": "Vri-aotz--", "data_percent": "100.00", "lv_snapshot_invalid": "-1"}
    assert taken.check() == []
    lvm.pool["data_percent"] = "97.50"
    (warning,) = taken.check()
    assert "thin pool vg0/pool was 98 % full" in warning
    for attributes in ("Vri-aotzF-", "Vri-XXtz--"):
        lvm.state["lv_attr"] = attributes
        with pytest.raises(SourceError, match="not consistent"):
            taken.check()


def test_what_is_stacked_on_the_volume_is_not_held_still(lvm: Lvm, machine: Machine) -> None:
    root = machine.root / "sys/devices/pci0/dm-0"
    upper = machine.disk("dm-9", "253:9", attributes={"dm/name": "crypt\n", "dm/uuid": "CRYPT-1\n"})
    machine.stack(upper, root)
    machine.node("/dev/mapper/crypt", "253:9")
    machine.mount("/dev/mapper/crypt", "/secret", "253:9")
    (warning,) = take(lvm, machine).check()
    assert "/secret could not be held still" in warning


@pytest.mark.parametrize(
    "path", ["/dev/sda", "/dev/sdb", "/dev/mapper/luks", "/dev/mapper/vg0-root-real", "/none"]
)
def test_what_is_no_volume_is_not_for_lvm(lvm: Lvm, machine: Machine, path: str) -> None:
    with pytest.raises(UsageError, match="is not an LVM logical volume"):
        take(lvm, machine, path)
    assert take_snapshot(path, "auto", run=lvm, system=machine.system()) is None
    assert clear_leftovers(path, run=lvm, system=machine.system()) == []
    assert lvm.calls == []


@pytest.mark.parametrize("wish", ["none", "live"])
def test_no_snapshot_where_none_is_wanted(lvm: Lvm, machine: Machine, wish: str) -> None:
    assert take_snapshot(LV, wish, run=lvm, system=machine.system()) is None
    assert lvm.calls == []


def test_an_unknown_wish_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zfs"):
        take_snapshot(LV, "zfs")


@pytest.mark.parametrize(
    "answer", ["", "{}", "[]", '{"report": [{"lv": []}]}', '{"report": [{"lv": [7]}]}', report({})]
)
def test_an_answer_that_is_no_report_is_an_error(lvm: Lvm, machine: Machine, answer: str) -> None:
    with pytest.raises(SourceError, match="lvs d"):
        take_snapshot(LV, "lvm", run=lambda _argv: Output(0, answer, ""), system=machine.system())


def test_the_device_mappers_name_is_taken_where_there_is_no_udev(
    lvm: Lvm, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_count", iter([7]))
    name = f"imagefs_snap_{module._boot()}_{os.getpid()}_{module._started(os.getpid())}_7"
    machine.disk("dm-20", "253:20")
    machine.node(f"/dev/mapper/my--vg-{name}", "253:20")
    lvm.volume["vg_name"] = "my-vg"
    assert take(lvm, machine).path == f"/dev/mapper/my--vg-{name}"


# -- LVM: ways out --------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, SourceError("lvcreate did not end")])
def test_an_interrupted_lvcreate_leaves_nothing(
    lvm: Lvm, machine: Machine, made: bool, stop: BaseException | type[BaseException]
) -> None:
    def run(argv: Sequence[str]) -> Output:
        if argv[0] != "lvcreate":
            return lvm(argv)
        if made:
            lvm(argv)
        raise stop

    with pytest.raises(BaseException) as caught:
        take_snapshot(LV, "lvm", run=run, system=machine.system())
    assert caught.type in (stop, type(stop))
    assert lvm.made == set()
    assert len(lvm.asked("lvremove")) == 1


def test_a_busy_snapshot_is_tried_again(lvm: Lvm, machine: Machine) -> None:
    taken = take(lvm, machine)
    busy = Output(5, "", "  Logical volume vg0/imagefs_snap_x in use.\n")
    lvm.remove = [busy, busy, Output(0, "", "")]
    assert taken.remove() == []
    assert len(lvm.asked("lvremove")) == 3


def test_a_snapshot_that_stays_is_told_with_the_command(lvm: Lvm, machine: Machine) -> None:
    taken = take(lvm, machine)
    lvm.remove = [Output(5, "", "  Logical volume vg0/imagefs_snap_x in use.\n")]
    (warning,) = taken.remove()
    assert "in use; remove it with: lvremove vg0/imagefs_snap_" in warning
    lvm.remove = [Output(0, "", "")]
    assert taken.remove() == [], "a second call tries again"
    assert lvm.made == set()


def test_missing_tools_are_told_by_their_package(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PATH", "/nowhere")
    for wish in ("lvm", "auto"):
        with pytest.raises(SourceError, match="lvs is not installed") as caught:
            take_snapshot(LV, wish, system=machine.system())
        assert "install the package" in caught.value.hint
    assert clear_leftovers(LV, system=machine.system()) == []
    assert not in_use(THIN, system=machine.system())


def leftover(boot: str, pid: int, started: int, **row: str) -> dict[str, str]:
    name = f"imagefs_snap_{boot}_{pid}_{started}_0"
    plain = {"vg_name": "vg0", "lv_name": name, "lv_tags": "imagefs", "origin": "root", "lv_device_open": "0"}
    return plain | row


def test_only_leftovers_of_the_dead_are_removed(lvm: Lvm, machine: Machine) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    boot, own, started = module._boot(), os.getpid(), module._started(os.getpid())
    gone = [
        leftover(boot, dead.pid, started),
        leftover("ffffffff", own, started),
        leftover(boot, own, started + 1, lv_tags="nightly,imagefs"),  # the pid is another's now
    ]
    kept = [
        leftover(boot, own, started),
        leftover(boot, os.getppid(), module._started(os.getppid())),
        leftover(boot, dead.pid, 1, lv_device_open="1"),
        leftover(boot, dead.pid, 2, lv_tags=""),
        leftover(boot, dead.pid, 3, origin=""),
        leftover(boot, dead.pid, 4, lv_name="imagefs_snap_mine"),
        leftover(boot, dead.pid, 5, lv_name="root"),
    ]
    lvm.others = [*kept, *gone]
    said = clear_leftovers(LV, run=lvm, system=machine.system())
    removed = [call[-1] for call in lvm.asked("lvremove")]
    assert removed == [f"vg0/{row['lv_name']}" for row in gone]
    assert all(
        f"vg0/{row['lv_name']} of a capture that was killed" in text
        for row, text in zip(gone, said, strict=True)
    )


def test_a_leftover_that_stays_does_not_hide_the_next(lvm: Lvm, machine: Machine) -> None:
    lvm.others = [leftover("00000000", pid, 1) for pid in (1, 2)]
    busy = Output(5, "", "  Logical volume vg0/x in use.\n")
    lvm.remove = [busy, busy, busy, Output(0, "", "")]
    first, second = clear_leftovers(LV, run=lvm, system=machine.system())
    assert "remove it with: lvremove vg0/imagefs_snap_00000000_1_1_0" in first
    assert "imagefs_snap_00000000_2_1_0 of a capture" in second


# -- commands -------------------------------------------------------------------------------------


def test_a_command_has_no_input_no_shell_and_speaks_english() -> None:
    found = run_command(
        ["sh", "-c", 'cat; echo "$LC_ALL $HOME $1"; echo "  A b c." >&2; exit 5', "sh", "$(id)"]
    )
    assert found == Output(5, "C  $(id)\n", "  A b c.\n")
    assert found.reason == "A b c"
    assert Output(3, "", "\n").reason == "exit code 3"


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(SourceError, match="sleep did not end within 0 seconds"):
        run_command(["sleep", "60"], timeout=0.1)


def test_an_interrupt_waits_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LVM killed half-way leaves a suspended volume, so the command comes to its end first."""
    done = tmp_path / "done"
    real = subprocess.Popen.communicate
    calls = []

    def interrupted(self: subprocess.Popen[str], *words: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_command(["sh", "-c", f"sleep 0.2; touch '{done}'"])
    assert done.exists()


# -- in use ---------------------------------------------------------------------------------------


def test_in_use_is_what_may_be_written(lvm: Lvm, machine: Machine) -> None:
    machine.mount("/dev/sdb", "/media", "8:16", options="ro")
    system = machine.system()
    assert in_use(LV, run=lvm, system=system)
    assert in_use("/dev/sda", run=lvm, system=system)
    assert not in_use("/dev/sdb", run=lvm, system=system)
    assert not in_use(THIN, run=lvm, system=system)
    assert not in_use("/dev/mapper/luks", run=lvm, system=system)
    lvm.open = "1"
    assert in_use(THIN, run=lvm, system=system), "a virtual machine has it"
    assert not in_use("/dev/mapper/luks", run=lvm, system=system)
    machine.swap("/dev/mapper/luks")
    assert in_use("/dev/mapper/luks", run=lvm, system=system)


def test_a_volume_mounted_read_only_is_open_and_not_in_use(lvm: Lvm, machine: Machine) -> None:
    machine.mount(THIN, "/media", "253:1", options="ro")
    lvm.open = "1"
    assert not in_use(THIN, run=lvm, system=machine.system())


def test_a_file_is_in_use_while_somebody_can_write_to_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    assert not in_use(str(path))
    with path.open("rb"):
        assert not in_use(str(path))
    with path.open("r+b"):
        assert in_use(str(path))
    assert not in_use(str(path))
    path.open("r+b").close()  # the lease is gone: nobody waits for it
    assert not in_use(str(tmp_path / "missing"))


@root_only
def test_a_loop_over_a_file_counts_when_it_is_writable(tmp_path: Path, make_loop: MakeLoop) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    make_loop(path, "--read-only")
    assert not in_use(str(path))
    make_loop(path)
    assert in_use(str(path))


# -- clones ---------------------------------------------------------------------------------------


@pytest.fixture(params=["xfs", "btrfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, make_loop: MakeLoop) -> Iterator[Path]:
    """A folder on a real file system of 512 MiB that can clone."""
    image, place = tmp_path / "fs.img", tmp_path / "fs"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    need_tool("mkfs.xfs", "mkfs.btrfs")
    run_tool([f"mkfs.{request.param}", "-q", image])
    place.mkdir()
    run_tool(["mount", "-t", request.param, make_loop(image), place])
    try:
        yield place
    finally:
        run_tool(["umount", place])


def clone(path: Path, wish: str = "auto") -> ReflinkSnapshot:
    taken = take_snapshot(str(path), wish)
    assert isinstance(taken, ReflinkSnapshot)
    return taken


@contextlib.contextmanager
def kept_writing(path: Path) -> Iterator[list[int]]:
    """A thread that writes ever higher numbers all over the file; gives how often it has."""
    rounds = [0]
    end = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while not end.is_set():
                rounds[0] += 1
                for offset in range(0, size, 1 << 16):
                    os.pwrite(file.fileno(), rounds[0].to_bytes(8, "little") * 512, offset)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield rounds
    finally:
        end.set()
        thread.join()


def wait_for_rounds(rounds: list[int], more: int) -> None:
    wanted = rounds[0] + more
    while rounds[0] < wanted:
        time.sleep(0.001)


@root_only
def test_a_clone_stands_still_while_the_file_is_written(folder: Path) -> None:
    path = folder / "disk.raw"
    path.write_bytes(os.urandom(8 << 20))
    with kept_writing(path) as rounds:
        wait_for_rounds(rounds, 2)
        assert in_use(str(path))
        taken = clone(path)
        reader = open_snapshot(taken)
        first = reader.read_at(0, reader.size)
        wait_for_rounds(rounds, 3)
        assert reader.read_at(0, reader.size) == first
        reader.check_unchanged()
    assert path.read_bytes() != first
    # One moment: each place holds a round, in falling order and at most one apart.
    marks = [int.from_bytes(first[offset : offset + 8], "little") for offset in range(0, len(first), 1 << 16)]
    assert marks == sorted(marks, reverse=True)
    assert marks[0] - marks[-1] <= 1
    assert reader.warnings == []
    reader.close()
    assert taken.remove() == taken.remove() == []


@root_only
def test_a_clone_has_the_name_and_identity_of_its_file_and_none_in_the_folder(folder: Path) -> None:
    path = folder / "disk.raw"
    path.write_bytes(b"x" * (1 << 20))
    taken = clone(path, "reflink")
    assert list(folder.iterdir()) == [path]
    assert os.stat(taken.path).st_nlink == 0
    assert os.stat(taken.path).st_mode & 0o7777 == 0o600
    reader = open_snapshot(taken)
    assert (reader.path, reader.identity.path, reader.size) == (str(path), str(path), 1 << 20)
    path.write_bytes(b"")
    path.unlink()
    assert reader.read_at(4096, 4) == b"xxxx"
    reader.check_unchanged()
    taken.remove()
    with pytest.raises(SourceError, match="was removed while it was read"):
        reader.check_unchanged()
    reader.close()


@root_only
def test_a_link_is_followed_and_holes_stay_holes(folder: Path, tmp_path: Path) -> None:
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"y" * (1 << 16), 1 << 20)
    link = tmp_path / "link"
    link.symlink_to(path)
    taken = clone(link)
    reader = open_snapshot(taken)
    assert (
        sum(part.length for part in reader.extents(0, reader.size) if part.state.name == "STORED") <= 1 << 20
    )
    assert reader.read_at((1 << 20) - 1, 3) == b"\0yy"
    reader.close()
    taken.remove()


@root_only
def test_the_clone_needs_no_file_without_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and SMB can clone, but not that."""
    path = folder / "disk.raw"
    path.write_bytes(b"z" * 8192)
    real = os.open

    def without(place: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(place, flags, mode)

    monkeypatch.setattr(os, "open", without)
    taken = clone(path, "reflink")
    assert list(folder.iterdir()) == [path]
    assert Path(taken.path).read_bytes() == b"z" * 8192
    taken.remove()


@root_only
@pytest.mark.parametrize("folder", ["btrfs"], indirect=True)
@pytest.mark.parametrize("in_place", ["file", "folder"])
def test_files_that_are_written_in_place_are_cloned_too(folder: Path, in_place: str) -> None:
    """chattr +C, as libvirt sets it on its disks: Btrfs clones only like to like."""
    path = folder / "disk.raw"
    path.touch()
    target = path if in_place == "file" else folder
    fd = os.open(target, os.O_RDONLY)
    fcntl.ioctl(fd, module._SETFLAGS, module._NOCOW.to_bytes(4, "little"))
    os.close(fd)
    path.write_bytes(b"c" * 65536)
    taken = clone(path, "reflink")
    assert Path(taken.path).read_bytes() == b"c" * 65536
    taken.remove()


@root_only
@pytest.mark.parametrize("folder", ["xfs"], indirect=True)
def test_a_mounted_file_system_is_clean_in_the_clone(
    folder: Path, tmp_path: Path, make_loop: MakeLoop
) -> None:
    """It is held still for the clone: no journal to replay, no page that was not yet written."""
    path, place = folder / "inner.img", tmp_path / "inner"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", path])
    place.mkdir()
    device = attach(path)
    run_tool(["mount", device, place])
    try:
        (place / "just written").write_bytes(b"new" * 100_000)
        assert in_use(str(path))
        taken = clone(path)
        (place / "later").write_bytes(b"not in the clone, and the file system is thawed")
        os.sync()
        (tmp_path / "copy.img").write_bytes(Path(taken.path).read_bytes())
        assert taken.check() == []
        taken.remove()
    finally:
        run_tool(["umount", place])
        run_tool(["losetup", "--detach", device])
    copy = tmp_path / "copy.img"
    assert "needs_recovery" not in tool_text("dumpe2fs", "-h", copy)
    tool_text("e2fsck", "-f", "-n", copy)
    listing = tool_text("debugfs", "-R", "ls -p /", copy)
    assert "just written" in listing
    assert "later" not in listing


@root_only
@pytest.mark.parametrize("folder", ["xfs"], indirect=True)
def test_the_file_system_is_thawed_when_the_clone_fails(
    folder: Path, tmp_path: Path, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = folder / "inner.img", tmp_path / "inner"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", path])
    place.mkdir()
    device = attach(path)
    run_tool(["mount", device, place])
    real = fcntl.ioctl
    files = len(os.listdir("/proc/self/fd"))

    def interrupted(fd: int, request: int, *words: object) -> object:
        if request == module._FICLONE:
            raise KeyboardInterrupt
        return real(fd, request, *words)  # type: ignore[call-overload]

    monkeypatch.setattr(fcntl, "ioctl", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            take_snapshot(str(path), "auto")
        with pytest.raises(OSError) as caught:
            fd = os.open(place, os.O_RDONLY)
            try:
                real(fd, module._FITHAW, 0)
            finally:
                os.close(fd)
        assert caught.value.errno == errno.EINVAL, "it was thawed already"
    finally:
        run_tool(["umount", place])
        run_tool(["losetup", "--detach", device])
    assert len(os.listdir("/proc/self/fd")) == files
    assert list(folder.iterdir()) == [path]


@root_only
def test_where_files_cannot_be_cloned(tmp_path: Path, small_disk: Path) -> None:
    path = small_disk / "disk.raw"
    path.write_bytes(bytes(8192))
    with pytest.raises(SourceError, match="its file system cannot share blocks") as caught:
        take_snapshot(str(path), "reflink")
    assert "--snapshot live" in caught.value.hint
    assert take_snapshot(str(path), "auto") is None
    assert list(small_disk.iterdir()) == [path]


@root_only
def test_a_device_cannot_be_cloned(tmp_path: Path, make_loop: MakeLoop) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    device = make_loop(path)
    with pytest.raises(UsageError, match="only files can be cloned"):
        take_snapshot(device, "reflink")
    with pytest.raises(SourceError, match="No such file"):
        take_snapshot(str(tmp_path / "missing"), "reflink")
    assert take_snapshot(device, "auto") is None


@root_only
@pytest.mark.parametrize("folder", ["btrfs"], indirect=True)
def test_swap_space_in_use_is_told_as_such(folder: Path) -> None:
    path = folder / "swap"
    path.touch()
    with path.open("rb") as file:
        fcntl.ioctl(file, module._SETFLAGS, module._NOCOW.to_bytes(4, "little"))
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o600)
    run_tool(["mkswap", path])
    run_tool(["swapon", path])
    try:
        assert in_use(str(path))
        with pytest.raises(SourceError, match="swap space in use"):
            take_snapshot(str(path), "reflink")
    finally:
        run_tool(["swapoff", path])


def test_reading_a_spoilt_snapshot_says_why(tmp_path: Path, lvm: Lvm, machine: Machine) -> None:
    """A full LVM snapshot answers with I/O errors; a file that shrank stands in for it."""
    taken = take(lvm, machine)
    stand_in = tmp_path / "snapshot"
    stand_in.write_bytes(bytes(8192))
    taken.path = str(stand_in)
    reader = open_snapshot(taken)
    assert reader.identity.path == LV
    stand_in.write_bytes(b"")
    with pytest.raises(SourceError, match="ended early"):
        reader.read_at(0, 4096)
    lvm.state["lv_attr"] = "sri-Ios---"
    with pytest.raises(SourceError, match="became invalid"):
        reader.read_at(0, 4096)
    with pytest.raises(SourceError, match="became invalid"):
        reader.check_unchanged()
    reader.close()
    taken.path = str(tmp_path / "missing")
    with pytest.raises(SourceError, match="cannot be opened"):
        open_snapshot(taken)
