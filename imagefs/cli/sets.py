"""``imagefs info``, ``verify`` and ``delete``: what an image is and whether it is whole."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import Any

import click

from imagefs.block.devices import open_source
from imagefs.block.mapfile import format_mapfile
from imagefs.cli.command import common
from imagefs.cli.console import Console, default_set
from imagefs.cli.facts import (
    CONSISTENCY,
    image_document,
    linear_digests,
    ranges_in,
    unreadable_bytes,
    unreadable_ranges,
)
from imagefs.cli.growth import say_growth
from imagefs.cli.report import CASE_WORDS, ZEROS_IN_DIGESTS
from imagefs.cli.text import age_text, one_line, quote, size_text, time_text, use_text, valid_text
from imagefs.cli.unlock import secrets_of, unlock_option
from imagefs.cli.wiring import choose_image, open_disk, open_point, open_set
from imagefs.errors import ChainError, StoreError, UsageError
from imagefs.image.catalog import REPORT_SUFFIX, Catalog, ImageInfo, scan
from imagefs.image.shared import Shared
from imagefs.interfaces import Finding, State
from imagefs.ops.affected import find_affected, in_image
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.verify import LEVELS, Verifier, VerifyReport, compare, name_files
from imagefs.version import VERSION

#: Unreadable ranges that `info` lists.
SHOWN_RANGES = 20
#: So many of the newest images are asked which files lie in damage that verify found.
_NAMED_IMAGES = 8
#: The order in which `info --hashes` chooses: `sha256sum -c` is what people have at hand.
STRONGEST = ("sha256", "sha512", "sha1", "md5")

# -- info -----------------------------------------------------------------------------------------


@click.command()
@click.argument("image", required=False)
@click.option("--hashes", is_flag=True, help="Only the digest of disk.raw, as `sha256sum -c` takes it.")
@click.option("--mapfile", is_flag=True, help="Only what could not be read, as a ddrescue mapfile.")
@click.option("--affected", is_flag=True, help="Only the files that lie in what could not be read.")
@click.option(
    "--growth", is_flag=True, help="Only which files and metadata account for the size of this image."
)
@unlock_option
@common
def info(
    console: Console, image: str | None, hashes: bool, mapfile: bool, affected: bool, growth: bool
) -> None:
    """Everything about one IMAGE: what it is, what it needs, its states and volumes."""
    catalog, found = choose_image(console, image, browse=affected or growth)
    if hashes:
        _say_hashes(console, found)
        return
    with open_disk(catalog, found, console=console) as disk:
        if mapfile:
            bad = [(row["offset"], row["length"]) for row in unreadable_ranges(disk)]
            left_out = ranges_in(disk, State.SKIPPED)
            comment = f"imagefs {VERSION}"
            for line in format_mapfile(bad, disk.size, comment=comment, untried=left_out):
                console.line(line)
            return
        if affected:
            _say_affected(console, disk)
            return
        if growth:
            say_growth(console, catalog, found, disk)
            return
        facts = image_document(disk, catalog.store.url)
        for finding in disk.table.findings:
            console.warn(finding.message)
    console.document(facts)
    for line in _info_lines(console, catalog, found, facts):
        console.line(line)


def _say_hashes(console: Console, found: ImageInfo) -> None:
    """The line of one digest: each checking tool complains of the lines of others."""
    digests = linear_digests(found)
    known = [name for name in STRONGEST if name in digests]
    if not known:
        raise UsageError(
            f"{found.name} has no digest of the whole device", hint="capture with --forensic or --hash sha256"
        )
    lost = unreadable_bytes(found)
    console.document({"digests": digests, "unreadable_bytes": lost})
    if lost:  # the checking tools pass over such a line
        console.line(f"# {lost} bytes could not be read: {ZEROS_IN_DIGESTS}")
    console.line(f"{digests[known[0]]}  disk.raw")


def _say_affected(console: Console, disk: DiskImage) -> None:
    """The files in unreadable ranges, by partition and name."""
    bad = [(row["offset"], row["offset"] + row["length"]) for row in unreadable_ranges(disk)]
    with console.progress() as progress:
        found = find_affected(in_image(disk), bad, progress=progress)
    rows = [
        {
            "volume": place.volume,
            "path": valid_text(place.path) or quote(place.path),
            "stream": valid_text(place.stream) or quote(place.stream),
            "offset": place.first,
            "length": place.end - place.first,
        }
        for place in found.places
    ]
    console.document(
        {
            "unreadable": sum(end - first for first, end in bad),
            "affected": rows,
            "notes": found.notes + found.closed,
        }
    )
    for first, end in bad:
        for name in found.files_in(first, end) or ["no file: free space, metadata or a gap"]:
            console.line(f"{end - first} bytes at {first}: {name}")
    if not bad:
        console.line("nothing was unreadable")
    for note in found.notes + found.closed:
        console.warn(note)


def _info_lines(console: Console, catalog: Catalog, found: ImageInfo, facts: dict[str, Any]) -> list[str]:
    source = facts["source"] if isinstance(facts["source"], dict) else {}
    children = ", ".join(child.id[:8] for child in catalog.children(found)) or "none"
    described = ", ".join(f"{key} {one_line(value)}" for key, value in sorted(source.items()))
    rows = [
        ("image", f"{facts['id']}  ({facts['kind']}, mode {facts['mode']})"),
        ("file", quote(os.fsencode(facts["path"]))),
        ("created", f"{time_text(found.created, console.zone)}, {age_text(found.created, time.time_ns())}"),
        (
            "took",
            f"{(found.summary.ended - found.summary.started) / 1e9:.1f} s, source {facts['consistency']}",
        ),
        (
            "disk",
            f"{facts['disk_size']} bytes ({size_text(facts['disk_size'])}), sectors of {facts['sector_size']}",
        ),
        ("image size", f"{facts['stored_bytes']} bytes ({size_text(facts['stored_bytes'])})"),
        ("chunks", f"{facts['chunk_size']} bytes, zstd level {facts['level']}, BLAKE3-256"),
        ("source", described or "unknown"),
        ("tool", one_line(facts["tool"])),
        ("note", one_line(facts["note"]) or "-"),
        ("chain", " → ".join(layer[:8] for layer in facts["chain"])),
        ("needed by", children),
        *(
            (words.lower(), one_line(facts["case"][key]))
            for key, words in CASE_WORDS.items()
            if key in facts["case"]
        ),
        *((name, one_line(value)) for name, value in facts["host"].items()),
        *(facts["digests"].items()),
        *(
            [("digests", f"count what could not be read: {ZEROS_IN_DIGESTS}")]
            if facts["unreadable_bytes"] and facts["digests"]
            else []
        ),
        ("seal", facts["seal"]),
        ("view digest", facts["view_digest"]),
        ("whole view", _states_text(facts["states"])),
        ("this layer", _states_text(facts["layer_states"])),
        ("table", f"{facts['scheme']} {facts['disk_id']}".strip()),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows] + [_volume_line(row) for row in facts["volumes"]]
    lines += [f"  {one_line(use['id']):<4} {one_line(use_text(use))}" for use in facts["allocation"]]
    bad = facts["unreadable"]
    lines += [f"  unreadable: {row['length']} bytes at {row['offset']}" for row in bad[:SHOWN_RANGES]]
    return lines + (
        [f"  and {len(bad) - SHOWN_RANGES} more; all with --mapfile"] if len(bad) > SHOWN_RANGES else []
    )


def _states_text(states: dict[str, int]) -> str:
    return ", ".join(f"{name} {size_text(count)}" for name, count in states.items() if count) or "empty"


def _volume_line(row: dict[str, Any]) -> str:
    words = (row["filesystem"], row["label"], row["role"], row["name"])
    shown = "  ".join(one_line(word) for word in words if word)
    where = f"in {row['inside']}" if "inside" in row else f"at {row['start']}"
    made = f"  made {row['made']}" if row.get("made") else ""
    lead = "  " + "  " * row["id"].count(".")
    line = f"{lead}{row['id']:<4} {size_text(row['length']):>10} {where}  {shown}{made}".rstrip()
    return line + (f"\n{lead}     {one_line(row['message'])}" if "message" in row else "")


# -- verify ---------------------------------------------------------------------------------------


@click.command()
@click.argument("image", required=False)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="data",
    show_default=True,
    help="quick: headers, sections, index, seals. data: every stored chunk too, and the view digest.",
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
