"""``imagefs boot-test``: would the disk in an image boot? A machine tries, from the image as it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import click

from imagefs.boot import machine
from imagefs.boot.machine import Plan, Seen
from imagefs.boot.verdict import Firmware, Verdict, judge
from imagefs.cli.command import common
from imagefs.cli.console import Console, log_line
from imagefs.cli.nbd import own_folder, serving
from imagefs.cli.text import one_line
from imagefs.cli.wiring import choose_image, open_disk
from imagefs.errors import ImagefsError, TargetError
from imagefs.interfaces import EntryType
from imagefs.nbd.exports import Export
from imagefs.nbd.listening import listen_unix
from imagefs.nbd.server import Server
from imagefs.ops.diskimage import DiskImage

NO_LOADER = 4
#: Lines of each text that are shown; --json has all that was kept.
SHOWN = 25
MAX_LOADERS = 20


@click.command()
@click.argument("image")
@click.option(
    "--firmware",
    type=click.Choice(["auto", *(each.value for each in Firmware)]),
    default="auto",
    show_default=True,
    help="auto: uefi for a disk with an EFI system partition, else bios.",
)
@click.option(
    "--timeout", type=click.FloatRange(1, 86_400), default=60, show_default=True, help="Seconds to run."
)
@click.option(
    "--until",
    metavar="TEXT",
    default="",
    help="End when TEXT appears on console or text screen.",
)
@click.option(
    "--screenshot", type=click.Path(path_type=Path, dir_okay=False), help="Keep the screen as a PNG."
)
@click.option("--overwrite", is_flag=True, help="Replace a screenshot that is there.")
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="auto: KVM where it works, else TCG.",
)
@common
def boot_test(
    console: Console,
    image: str,
    firmware: str,
    timeout: float,
    until: str,
    screenshot: Path | None,
    overwrite: bool,
    accel: str,
) -> None:
    """Boot IMAGE in qemu, its writes thrown away, and tell whether the firmware found a loader.

    Exit code 0 when it did, 4 when not. The machine has no network; the image stays as it is.
    """
    if screenshot is not None and screenshot.exists() and not overwrite:
        raise TargetError(f"{screenshot} exists already", hint="add --overwrite", path=str(screenshot))
    catalog, info = choose_image(console, image)
    with open_disk(catalog, info) as disk, serving(disk) as exports, own_folder() as folder:
        kind = _firmware(disk, firmware)
        sector_size = disk.disk.sector_size
        machine.check(kind, sector_size)
        sector = disk.read_at(0, sector_size)
        console.note(f"imagefs: booting with {_NAMES[kind]} for up to {timeout:g} seconds")
        plan = Plan("", exports[0].name, kind, sector_size, sector, timeout, until, folder)
        seen = _boot(exports, plan, accel)
        verdict = judge(kind, seen.debug, seen.console, screen=seen.screen, boot_sector=sector)
        others = [] if verdict.found or kind is not Firmware.UEFI else _loaders(disk)
    if screenshot is not None:
        _keep(screenshot, seen.picture)
    report = Report(os.path.join(catalog.store.url, info.name), kind, seen, verdict, others, screenshot)
    console.document(report.document())
    report.tell(console)
    console.exit_code = 0 if verdict.found else NO_LOADER


_NAMES = {Firmware.BIOS: "a BIOS (SeaBIOS)", Firmware.UEFI: "UEFI firmware (OVMF)"}


def _firmware(disk: DiskImage, wanted: str) -> Firmware:
    if wanted != "auto":
        return Firmware(wanted)
    return Firmware.UEFI if any(volume.role == "esp" for volume in disk.volumes) else Firmware.BIOS


def _boot(exports: Sequence[Export], plan: Plan, accel: str) -> Seen:
    """The machine and its disk server, side by side."""
    listener = listen_unix(os.path.join(plan.folder, "nbd.sock"))
    server = Server(exports, [listener], log=log_line)
    try:
        server.start()
        return machine.boot(replace(plan, socket=listener.path), accel)
    finally:
        server.close()


def _keep(path: Path, picture: bytes) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise TargetError(f"{path} cannot be written: {error.strerror}", path=str(path)) from error


def _loaders(disk: DiskImage) -> list[str]:
    """Programs on EFI system partitions: firmware finds those it was told of, and a new machine was told nothing."""
    from imagefs.browse.find import find

    found: list[str] = []
    for volume in (volume for volume in disk.volumes if volume.role == "esp"):
        with contextlib.suppress(ImagefsError):  # one that cannot be read holds nothing to name
            fs = disk.filesystem(volume.number)
            entries = find(
                fs, fs.lookup(b"/EFI"), onerror=lambda _: None, iname=b"*.efi", types={EntryType.FILE}
            )
            names = (one_line(f"/{volume.id}{entry.path.decode('utf-8', 'replace')}") for entry in entries)
            found += islice(names, MAX_LOADERS)
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """All there is to say, as a document and as text."""

    image: str
    firmware: Firmware
    seen: Seen
    verdict: Verdict
    other_loaders: list[str]
    screenshot: Path | None

    def document(self) -> dict[str, object]:
        return {
            "image": self.image,
            "firmware": self.firmware.value,
            "accelerator": self.seen.accelerator,
            "loader_found": self.verdict.found,
            "reason": self.verdict.reason,
            "evidence": list(self.verdict.evidence),
            "other_loaders": self.other_loaders,
            "ended": self.seen.ended,
            "seconds": round(self.seen.seconds, 1),
            "console": self.seen.console,
            "screen": self.seen.screen or None,
            "screenshot": str(self.screenshot) if self.screenshot else None,
        }

    def tell(self, console: Console) -> None:
        console.line(f"{'a loader was found' if self.verdict.found else 'NO LOADER'}: {self.verdict.reason}")
        how = f"{_NAMES[self.firmware]}, {self.seen.accelerator.upper()}"
        console.line(f"  {how}; {self.seen.ended}, after {self.seen.seconds:.0f} s")
        if self.other_loaders:
            console.line("  loaders that the firmware of its own machine may know by name:")
            for name in self.other_loaders:
                console.line(f"    {name}")
        for name, text in (("serial console", self.seen.console), ("text screen", self.seen.screen)):
            lines = text.splitlines()
            left_out = f" the last {SHOWN} of {len(lines)} lines" if len(lines) > SHOWN else ""
            console.line(f"  {name}:{left_out if lines else ' nothing'}")
            for line in lines[-SHOWN:]:
                console.line(f"    {line}")
        if self.screenshot is not None:
            console.line(f"  picture of the screen: {self.screenshot}")
