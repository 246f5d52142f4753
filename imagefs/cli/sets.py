"""``imagefs verify`` and ``delete``: whether an image is whole, and taking one away."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import Any

import click

from imagefs.block.devices import open_source
from imagefs.cli.command import common
from imagefs.cli.console import Console, default_set
from imagefs.cli.facts import CONSISTENCY
from imagefs.cli.text import size_text
from imagefs.cli.unlock import secrets_of, unlock_option
from imagefs.cli.wiring import choose_image, open_disk, open_point, open_set
from imagefs.errors import ChainError, StoreError, UsageError
from imagefs.image.catalog import REPORT_SUFFIX, Catalog, ImageInfo, scan
from imagefs.image.shared import Shared
from imagefs.interfaces import Finding
from imagefs.ops.verify import LEVELS, Verifier, VerifyReport, compare, name_files

#: So many of the newest images are asked which files lie in damage that verify found.
_NAMED_IMAGES = 8

# -- verify ---------------------------------------------------------------------------------------


@click.command()
@click.argument("image", required=False)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="data",
    show_default=True,
    help="quick: headers, sections, index, seals. data: every stored chunk too, and the view digest. deep: every "
    "file too, in every file system.",
)
@click.option("--against", metavar="SOURCE", type=click.Path(), help="Compare with a device or raw file.")
@click.option("--all", "every", is_flag=True, help="IMAGE is a set: verify every image of it.")
@click.option("--threads", type=click.IntRange(1, 256), help="Default: all cores.")
@unlock_option
@common
def verify(
    console: Console, image: str | None, level: str, against: str | None, every: bool, threads: int | None
) -> None:  # fmt: skip
    """Is IMAGE whole, with everything it needs? Every finding is told; exit 4 if there is any."""
    if every and against:
        raise UsageError("--against compares one image", hint="leave --all out")
    secrets, shared = secrets_of(console.unlocks), Shared()
    open_image = partial(open_point, console, secrets=secrets, shared=shared)
    with console.progress() as progress:
        if every:
            catalog = scan(open_set(image or default_set()))
            chosen = list(catalog.images)
        else:
            catalog, one = choose_image(console, image, look=scan)
            chosen = [one]
        verifier = Verifier(catalog, level=level, threads=threads, progress=progress)
        for found, error in catalog.damaged if every else ():
            verifier.damaged(found.name, error)
        for each in chosen:
            verifier.verify(each)
            if level == "deep":
                verifier.look_into(each, open_image)
        report = verifier.report
        if against is not None and report.ok:
            _compare(report, catalog, chosen[0], against, threads, progress)
        for each in reversed(chosen[-_NAMED_IMAGES:]):
            name_files(report, catalog, each, progress, open_image)
    _say_report(console, report, against, chosen)


def _compare(
    report: VerifyReport, catalog: Catalog, found: ImageInfo, against: str, threads: int | None, progress: Any
) -> None:
    source = open_source(against)
    try:
        with open_disk(catalog, found) as disk:
            differences = compare(
                disk.disk, source, image=found.id, name=against, threads=threads, progress=progress
            )
            for finding in differences:
                report.add(finding)
    finally:
        source.close()


def _say_report(console: Console, report: VerifyReport, against: str | None, chosen: list[ImageInfo]) -> None:
    consistency = {info.id: CONSISTENCY.get(info.summary.consistency, "none") for info in chosen}
    console.document(
        {
            "ok": report.ok,
            "level": report.level,
            "images": report.images,
            "consistency": consistency,
            "findings": [_finding_row(finding) for finding in report.findings],
            "findings_not_listed": report.dropped,
            "notes": list(report.closed),
        }
    )
    console.findings(report.findings, report.dropped)
    for note in report.closed:
        console.warn(f"files in it are not named: {note}")
    if not report.ok:
        console.exit_code = 4
        return
    count = len(report.images)
    same = f"; the same as {against}" if against else ""
    console.line(f"ok: {count} image{'s' if count != 1 else ''} verified, level {report.level}{same}")
    live = [identity[:8] for identity, word in consistency.items() if word == "none"]
    if live:
        console.line(
            f"  consistency none: nobody vouches that the source stood still for {', '.join(live[:5])}"
        )


def _finding_row(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "code": finding.code,
        "image": finding.image,
        "chunk": finding.chunk,
        "offset": finding.offset,
        "length": finding.length,
        "message": finding.message,
        "files": list(finding.files),
    }


# -- delete ---------------------------------------------------------------------------------------


@click.command()
@click.argument("image")
@common
def delete(console: Console, image: str) -> None:
    """Delete IMAGE. Refused while another image needs it."""
    catalog, found = choose_image(console, image)
    lock = catalog.store.lock()
    try:
        catalog = scan(catalog.store)
        needed_by = catalog.descendants(found)
        if needed_by:
            names = ", ".join(child.id[:8] for child in needed_by[-3:])
            more = f" and {len(needed_by) - 3} more" if len(needed_by) > 3 else ""
            raise ChainError(
                f"{found.name} is needed by {names}{more}",
                hint="delete those first, the newest first",
                image=found.id,
                needed_by=[child.id for child in needed_by],
            )
        catalog.store.delete(found.name)
        with contextlib.suppress(StoreError):  # most images have no report
            catalog.store.delete(found.name + REPORT_SUFFIX)
    finally:
        lock.release()
    console.document({"deleted": found.id, "path": os.path.join(catalog.store.url, found.name)})
    console.line(f"deleted {found.name}, {size_text(found.tail.size)} freed")
