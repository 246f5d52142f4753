"""``imagefs get``: files and folders out of an image, as ``cp`` would take them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from imagefs.browse import ExtractOptions, extract, plan_targets
from imagefs.cli.browse import Place, Places, write_content
from imagefs.cli.command import common
from imagefs.cli.console import Console
from imagefs.cli.deleted import (
    Recoverable,
    check_inodes,
    deleted_findings,
    deleted_option,
    distinct_names,
    inode_option,
)
from imagefs.cli.text import size_text
from imagefs.cli.wiring import choose_image, open_disk
from imagefs.errors import UsageError


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH... DEST", nargs=-1, required=True)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
@click.option("--owners", is_flag=True, help="Owners, setuid bits, devices and pipes too; needs root.")
@deleted_option
@inode_option
@common
def get(
    console: Console,
    image: str,
    paths: tuple[str, ...],
    overwrite: bool,
    owners: bool,
    deleted: bool,
    inodes: tuple[str, ...],
) -> None:
    """Take files and folders out of IMAGE.

    DEST follows cp: an existing folder means into it, several PATHs need one, - is one file's bytes.
    Files are written beside and renamed; nothing is overwritten without --overwrite.
    """
    if len(paths) < 2:
        raise UsageError("get needs a PATH in the image and a DEST", hint=f"imagefs get {image} {paths[0]} .")
    sources, dest = [os.fsencode(path) for path in paths[:-1]], os.fsencode(paths[-1])
    check_inodes(paths[:-1], inodes)
    if dest == b"-":
        _to_stdout(console, image, sources, deleted=deleted, inodes=inodes)
        return
    if owners and os.geteuid() != 0:
        raise UsageError("only root can restore owners", hint="run it with sudo, or leave --owners out")
    targets = [] if inodes else plan_targets(sources, dest, is_dir=os.path.isdir(dest))
    catalog, found = choose_image(console, image)
    with open_disk(catalog, found) as disk:
        chosen = _chosen(Places(console, disk, tree=Recoverable), sources, deleted=deleted, inodes=inodes)
        if inodes:
            names = distinct_names([place.entry for place in chosen])
            targets = plan_targets(names, dest, is_dir=os.path.isdir(dest))
        jobs = list(zip(chosen, targets, strict=True))
        _extract(console, jobs, ExtractOptions(overwrite=overwrite, owners=owners))


def _chosen(places: Places, sources: list[bytes], *, deleted: bool, inodes: Sequence[str]) -> list[Place]:
    if inodes:
        return [places.at(sources[0], address) for address in inodes]
    return [places.entry(source, deleted=deleted) for source in sources]


def _to_stdout(
    console: Console, image: str, sources: list[bytes], *, deleted: bool, inodes: Sequence[str]
) -> None:
    if max(len(sources), len(inodes)) > 1:
        raise UsageError("- takes one file's bytes", hint="name one PATH, or a folder as DEST")
    if console.json_mode:
        raise UsageError("standard output takes the file, so --json cannot go with it")
    catalog, found = choose_image(console, image)
    with open_disk(catalog, found) as disk:
        write_content(console, _chosen(Places(console, disk), sources, deleted=deleted, inodes=inodes)[0])


def _extract(console: Console, jobs: list[tuple[Place, bytes]], options: ExtractOptions) -> None:
    """Extract volume by volume, and tell what was made and what was left out."""
    volumes = list(dict.fromkeys(place.volume for place, _ in jobs))
    files = made_bytes = 0
    findings = []
    with console.progress() as progress:
        for volume in volumes:
            here = [(place, target) for place, target in jobs if place.volume == volume]
            report = extract(
                here[0][0].fs,
                [(place.entry, target) for place, target in here],
                options=options,
                progress=progress,
            )
            files, made_bytes = files + report.files, made_bytes + report.bytes
            findings += report.findings
            findings += deleted_findings(here[0][0].fs, [place.entry for place, _ in here])
    rows = [{"severity": each.severity, "code": each.code, "message": each.message} for each in findings]
    console.document({"files": files, "bytes": made_bytes, "findings": rows})
    for finding in findings:
        console.warn(finding.message)
    if any(finding.severity != "note" for finding in findings):
        console.exit_code = 3
    console.line(f"{files} file{'s' if files != 1 else ''}, {size_text(made_bytes)}")
