"""``imagefs info``: what one image is. Loads what reads files only for the options that need it."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from imagefs.cli.command import common
from imagefs.cli.console import Console
from imagefs.cli.facts import (
    image_document,
    linear_digests,
    ranges_in,
    unreadable_bytes,
    unreadable_ranges,
)
from imagefs.cli.report import CASE_WORDS, ZEROS_IN_DIGESTS
from imagefs.cli.text import age_text, one_line, quote, size_text, time_text, use_text, valid_text
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk
from imagefs.errors import UsageError
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.interfaces import State
from imagefs.ops.diskimage import DiskImage
from imagefs.version import VERSION

#: Unreadable ranges that `info` lists.
SHOWN_RANGES = 20
#: The order in which `info --hashes` chooses: `sha256sum -c` is what people have at hand.
STRONGEST = ("sha256", "sha512", "sha1", "md5")


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
            from imagefs.block.mapfile import format_mapfile

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
            from imagefs.cli.growth import say_growth

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
    from imagefs.ops.affected import find_affected, in_image

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
