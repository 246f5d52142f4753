"""``imagefs restore`` and ``imagefs clone``: a disk, or one partition of an image, goes to a target."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from imagefs.block.devices import DeviceReader, open_source
from imagefs.block.targets import TargetSink, open_target
from imagefs.block.usage import check_not_mounted_rw, partitions_of
from imagefs.block.views import SliceReader, extents_of
from imagefs.cli.command import common
from imagefs.cli.console import Console
from imagefs.cli.text import size_text
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk, parse_volume
from imagefs.errors import ImagefsError, SourceError, UsageError
from imagefs.interfaces import Progress, Reader, State
from imagefs.ops.transfer import TransferResult, transfer
from imagefs.ops.verify import compare
from imagefs.volume import read_table

#: Differing ranges that are told one by one.
SHOWN_DIFFERENCES = 20


@click.command()
@click.argument("image")
@click.argument("target", type=click.Path(allow_dash=True))
@click.option(
    "--partition", metavar="N", help="Write volume N alone, from byte 0 of TARGET; 3.1 is one inside p3."
)
@click.option("--verify", "then_verify", is_flag=True, help="Read the target back and compare.")
@click.option("--yes", is_flag=True, help="Overwrite a device or a file that is not empty.")
@click.option("--threads", type=click.IntRange(1, 256), help="Default: all cores.")
@unlock_option
@common
def restore(
    console: Console,
    image: str,
    target: str,
    partition: str | None,
    then_verify: bool,
    yes: bool,
    threads: int | None,
) -> None:
    """Write IMAGE to TARGET: a block device, a file (sparse where it can be), or - for stdout."""
    wanted = parse_volume(partition) if partition else None
    catalog, found = choose_image(console, image)
    with open_disk(catalog, found, console=console) as disk:
        reader: Reader = disk.disk
        if wanted is not None:
            refuse_whole_disk(target, wanted)
            reader = disk.volume_reader(disk.volume(wanted))
        sources = [os.path.join(catalog.store.url, layer.name) for layer in disk.disk.chain.infos]
        job = Job(reader, sources, target, "restore", yes=yes, then_verify=then_verify, threads=threads)
        run_job(console, job)


@click.command()
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path(allow_dash=True))
@click.option(
    "--snapshot",
    type=click.Choice(["none", "live"]),
    default="none",
    show_default=True,
    help="live: take a device that is mounted read-write as it is.",
)
@click.option("--verify", "then_verify", is_flag=True, help="Read the target back and compare.")
@click.option("--yes", is_flag=True, help="Overwrite a device or a file that is not empty.")
@click.option("--threads", type=click.IntRange(1, 256), help="Default: all cores.")
@common
def clone(
    console: Console, source: str, target: str, snapshot: str, then_verify: bool, yes: bool, threads: int | None
) -> None:  # fmt: skip
    """Copy SOURCE (a device or raw file) to TARGET, without making an image."""
    reader = open_source(source)
    try:
        if snapshot != "live":
            check_not_mounted_rw(source)
        job = Job(reader, [source], target, "clone", yes=yes, then_verify=then_verify, threads=threads)
        run_job(console, job)
        if snapshot != "live":
            reader.check_unchanged()
    except SourceError as error:
        if error.data.get("path") == source and "while it was read" in error.message:
            error.message += f"; {target} is not a faithful copy"
        raise
    finally:
        reader.close()


@dataclass(frozen=True, slots=True)
class Job:
    """One restore or clone: where from, where to, and what the user allowed."""

    reader: Reader
    sources: Sequence[str]
    target: str
    label: str
    yes: bool
    then_verify: bool
    threads: int | None


def run_job(console: Console, job: Job) -> None:
    """Write, finish, and compare if asked; an interrupted one says that the target is incomplete."""
    to_stdout = job.target == "-"
    if to_stdout and (console.json_mode or job.then_verify):
        raise UsageError("standard output takes the disk, so neither --json nor --verify can go with it")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("standard output is a terminal", hint="redirect it")
    sink = open_target(
        job.target,
        job.reader.size,
        overwrite=job.yes,
        data_bytes=data_bytes(job.reader),
        sources=job.sources,
    )
    try:
        with console.progress() as progress:
            result = _write(job, sink, progress)
            findings = _compare(job, sink.reader(), progress) if job.then_verify else 0
    finally:
        sink.close()
    if not to_stdout:
        _report(console, job, result, findings)


def data_bytes(reader: Reader) -> int:
    """How much of ``reader`` is data and so needs room on the target.

    A device does not know, and refusing a mostly empty one would be wrong: then it is 0, and a target
    that gets full says so.
    """
    if isinstance(reader, DeviceReader) and reader.is_device:
        return 0
    found = extents_of(reader, 0, reader.size)
    return sum(extent.length for extent in found if extent.state is State.STORED)


def _write(job: Job, sink: TargetSink, progress: Progress) -> TransferResult:
    try:
        return transfer(job.reader, sink, label=job.label, threads=job.threads, progress=progress)
    except BaseException as error:
        if sink.leaves_incomplete:
            _say_incomplete(error, job.target)
        raise


def _say_incomplete(error: BaseException, target: str) -> None:
    text = f"{target} is incomplete and must not be used"
    if isinstance(error, ImagefsError):
        error.message += f"; {text}"
    else:
        print(f"imagefs: {text}", file=sys.stderr)


def _compare(job: Job, target: Reader, progress: Progress) -> int:
    """How many ranges of the target differ; the first ones are told here."""
    cut = SliceReader(target, 0, job.reader.size)
    count = 0
    for finding in compare(
        job.reader, cut, image="", name=job.target, threads=job.threads, progress=progress
    ):
        count += 1
        if count <= SHOWN_DIFFERENCES:
            progress.note(finding.message)
    return count


def _report(console: Console, job: Job, result: TransferResult, findings: int) -> None:
    console.document(
        {
            "target": job.target,
            "size": job.reader.size,
            "data_bytes": result.data_bytes,
            "zero_bytes": result.zero_bytes,
            "verified": (findings == 0) if job.then_verify else None,
        }
    )
    console.line(
        f"{job.target}: {size_text(job.reader.size)} written, {size_text(result.data_bytes)} of it data"
    )
    if job.then_verify and not findings:
        console.line("  read back and compared: the same")
    elif job.then_verify:
        console.line(f"  read back and compared: {findings} ranges DIFFER")
        console.exit_code = 4


def refuse_whole_disk(target: str, volume: str) -> None:
    """A partition written over a whole partitioned disk would destroy its table: UsageError."""
    names = partitions_of(target)
    if not names:
        names = _table_volumes(target)
    if names:
        raise UsageError(
            f"{target} is a whole disk with {', '.join(names)}, and {volume} would be written over its table",
            hint="name the partition device, or a file",
        )


def _table_volumes(target: str) -> list[str]:
    """The volumes of a block device that holds a partition table itself."""
    try:
        reader = open_source(target)
    except ImagefsError:
        return []
    try:
        if not reader.is_device:
            return []
        table = read_table(reader, sector_size=reader.sector_size)
        return [volume.id for volume in table.volumes] if table.scheme != "none" else []
    finally:
        reader.close()
