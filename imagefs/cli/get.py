"""``imagefs get``: files and folders out of an image, as ``cp`` would take them, or as one tar or zip."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import click

from imagefs.browse.archive import archive
from imagefs.browse.copying import new_hashes, pieces, plan
from imagefs.browse.extract import extract, plan_targets
from imagefs.browse.manifest import ALGORITHMS, Manifest
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.browse.tarzip import archive_writer
from imagefs.cli.browse import Place, Places
from imagefs.cli.command import common, fat_zone_option
from imagefs.cli.console import Console
from imagefs.cli.deleted import (
    Recoverable,
    check_inodes,
    deleted_findings,
    deleted_option,
    distinct_names,
    inode_option,
)
from imagefs.cli.history import image_of_version
from imagefs.cli.text import quote, size_text
from imagefs.cli.unlock import unlock_option
from imagefs.cli.wiring import choose_image, open_disk, shown_disk
from imagefs.errors import BrowseError, UsageError
from imagefs.interfaces import EntryType, Progress

#: (place in the image, path on this machine or in the archive)
Job = tuple[Place, bytes]


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH... DEST", nargs=-1, required=True)
@click.option(
    "--format", "kind", type=click.Choice(["tar", "zip"]), help="With - as DEST: all of it as one stream."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
@click.option("--resume", is_flag=True, help="Keep what is there with the same size and time; copy the rest.")
@click.option("--owners", is_flag=True, help="Owners, setuid bits, devices and pipes too; needs root.")
@fat_zone_option
@unlock_option
@click.option("--xattrs", is_flag=True, help="Extended attributes too.")
@click.option(
    "--streams", is_flag=True, help="Streams and resource forks too, as NAME:STREAM beside the file."
)
@click.option(
    "--hard-links", is_flag=True, help="Names of one file stay names of one file (always in a tar)."
)
@click.option(
    "--names",
    type=click.Choice(["auto", "linux", "windows"]),
    default="auto",
    show_default=True,
    help="Which names DEST can hold; auto asks its file system.",
)
@click.option("--manifest", metavar="FILE", help="Write digests for sha256sum -c to FILE.")
@click.option(
    "--hashes", metavar="LIST", help="Digests in the manifest: md5,sha1,sha256,sha512. Default: sha256."
)
@click.option("--verify", is_flag=True, help="Read back from the medium what was written, and compare.")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    metavar="N",
    help="That version of PATH, as `imagefs history` counts; IMAGE is the set.",
)
@deleted_option
@inode_option
@common
def get(
    console: Console,
    image: str,
    paths: tuple[str, ...],
    kind: str | None,
    names: str,
    manifest: str | None,
    hashes: str | None,
    deleted: bool,
    inodes: tuple[str, ...],
    version: int | None,
    **flags: bool,
) -> None:
    """Take files and folders out of IMAGE.

    DEST follows cp: an existing folder means into it, several PATHs need one, - is one file's bytes, or
    a tar or zip of everything with --format. Files get their names when they are whole; nothing is
    overwritten without --overwrite.
    """
    if len(paths) < 2:
        raise UsageError("get needs a PATH in the image and a DEST", hint=f"imagefs get {image} {paths[0]} .")
    sources, dest = [os.fsencode(path) for path in paths[:-1]], os.fsencode(paths[-1])
    windows = None if names == "auto" else names == "windows"
    options = ExtractOptions(**flags, windows_names=windows)
    algorithms = _algorithms(hashes, manifest)
    _check(console, options, kind, to_stdout=dest == b"-")
    check_inodes(paths[:-1], inodes)
    if not inodes:
        targets = _targets(sources, dest)
    if version is not None:
        if deleted or inodes:
            raise UsageError(
                "--version is that of a file by its path", hint="leave --deleted and --inode out"
            )
        catalog, found, sources[0] = image_of_version(console, image, sources, version)
    else:
        catalog, found = choose_image(console, image, browse=True)
    with open_disk(catalog, found, console=console) as disk:
        reader = shown_disk(disk, unreadable="zeros")
        try:
            entries = _chosen(
                Places(console, disk, tree=Recoverable), sources, deleted=deleted, inodes=inodes
            )
            if inodes:
                targets = _targets(distinct_names([place.entry for place in entries]), dest)
            if options.resume and _is_begun(entries, dest):
                console.note(f"imagefs: going on in {quote(dest)}, which holds what is in this PATH")
                targets = [dest]
            report = ExtractReport()
            with _recorded(manifest, algorithms, options) as record:
                if dest != b"-":
                    jobs = list(zip(entries, targets, strict=True))
                    _to_folder(console, jobs, options, record, report)
                elif kind:
                    _to_archive(
                        console, list(zip(entries, targets, strict=True)), kind, options, record, report
                    )
                else:
                    _to_stdout(console, entries, record, report)
            tell_deleted(entries, report)
        finally:
            reader.close()
    _say(console, report, manifest, silent=dest == b"-")


def tell_deleted(places: list[Place], report: ExtractReport) -> None:
    """Say of deleted files that were taken how whole they are, and which were left out."""
    for here in _by_volume([(place, b"") for place in places]):
        for finding in deleted_findings(here[0][0].fs, [place.entry for place, _ in here]):
            report.add(finding)


def _targets(names: list[bytes], dest: bytes) -> list[bytes]:
    """Where each goes: on this machine, or in an archive on stdout."""
    return plan_targets(names, b"" if dest == b"-" else dest, is_dir=dest == b"-" or os.path.isdir(dest))


def _chosen(places: Places, sources: list[bytes], *, deleted: bool, inodes: Sequence[str]) -> list[Place]:
    if inodes:
        return [places.at(sources[0], address) for address in inodes]
    return [places.entry(source, deleted=deleted) for source in sources]


def _algorithms(hashes: str | None, manifest: str | None) -> tuple[str, ...]:
    if hashes is None:
        return ("sha256",)
    if manifest is None:
        raise UsageError("--hashes goes into a manifest", hint="add --manifest FILE")
    found = tuple(dict.fromkeys(part.strip().lower() for part in hashes.split(",")))
    for each in found:
        if each not in ALGORITHMS:
            raise UsageError(
                f"{each!r} is not a digest of a manifest", hint=f"take of {', '.join(ALGORITHMS)}"
            )
    return found


def _check(console: Console, options: ExtractOptions, kind: str | None, *, to_stdout: bool) -> None:
    """What does not go together. Raises UsageError."""
    if not to_stdout:
        if kind:
            raise UsageError(f"--format {kind} writes to stdout", hint=f"write - --format {kind} > FILE")
        if options.owners and os.geteuid() != 0:
            raise UsageError("only root can restore owners", hint="run it with sudo, or leave --owners out")
        return
    if console.json_mode:
        raise UsageError("standard output takes the file, so --json cannot go with it")
    if options.resume or options.verify:
        word = "resumed" if options.resume else "read back"
        raise UsageError(f"what goes to stdout cannot be {word}", hint="name a file or folder as DEST")
    if kind and console.on_terminal:
        raise UsageError(f"a {kind} is nothing for a terminal", hint="send it to a file or a pipe")
    if options.xattrs and kind != "tar":
        raise UsageError("only a tar or a folder holds extended attributes", hint="take --format tar")


def _recorded(
    manifest: str | None, algorithms: tuple[str, ...], options: ExtractOptions
) -> Manifest | nullcontext[None]:
    if manifest is None:
        return nullcontext()
    path = os.fsencode(manifest)
    return Manifest(path, algorithms, overwrite=options.overwrite, resume=options.resume)


def _is_begun(entries: list[Place], dest: bytes) -> bool:
    """Whether DEST is the copy of PATH itself that an earlier run began: a folder that is not empty and
    holds nothing but names of PATH. By ``cp``'s rule it would mean "into it", and all would be copied once more."""
    if len(entries) != 1 or entries[0].entry.type is not EntryType.DIRECTORY or not os.path.isdir(dest):
        return False
    there = os.listdir(dest)
    if not there or entries[0].entry.name in there:
        return False
    names = {child.name for child in entries[0].fs.children(entries[0].entry)}
    return all(_made_for(name) & names for name in there)


def _made_for(name: bytes) -> set[bytes]:
    """The names in an image for which ``name`` may have been made."""
    if name.startswith(b".") and name.endswith(b".imagefs.partial"):
        name = name[1:].removesuffix(b".imagefs.partial")
    return {name, name.rpartition(b"~")[0], name.partition(b":")[0], _unquoted(name)}


def _unquoted(name: bytes) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(name)


def _by_volume(jobs: list[Job]) -> Iterator[list[Job]]:
    for volume in dict.fromkeys(place.volume for place, _ in jobs):
        yield [job for job in jobs if job[0].volume == volume]


def _to_folder(
    console: Console, jobs: list[Job], options: ExtractOptions, record: Manifest | None, report: ExtractReport
) -> None:
    with _kept(console, report), console.progress() as progress:
        take(
            jobs,
            options,
            progress=progress,
            report=report,
            manifest=record,
            count_first=console.shows_progress,
        )


def take(
    jobs: list[Job],
    options: ExtractOptions,
    *,
    progress: Progress,
    report: ExtractReport,
    manifest: Manifest | None = None,
    count_first: bool,
) -> None:
    """Extract, volume by volume."""
    for here in _by_volume(jobs):
        extract(
            here[0][0].fs,
            [(place.entry, target) for place, target in here],
            options=options,
            progress=progress,
            manifest=manifest,
            report=report,
            count_first=count_first,
        )


@contextmanager
def _kept(console: Console, report: ExtractReport) -> Iterator[None]:
    """Of a run that ends early, say what stays and how to go on."""
    try:
        yield
    except BaseException:
        if report.files or report.directories:
            console.kept = f"{_count(report.files, 'file')} taken before stay, each of them whole"
            words = [*sys.argv[1:], *(["--resume"] if "--resume" not in sys.argv else [])]
            console.resume = shlex.join(["imagefs", *words])
        raise


def _to_archive(
    console: Console,
    jobs: list[Job],
    kind: str,
    options: ExtractOptions,
    record: Manifest | None,
    report: ExtractReport,
) -> None:
    with console.progress() as progress, archive_writer(kind, console.write) as writer:
        for here in _by_volume(jobs):
            archive(
                here[0][0].fs,
                [(place.entry, name) for place, name in here],
                writer,
                options=options,
                progress=progress,
                manifest=record,
                report=report,
                count_first=console.shows_progress,
            )


def _to_stdout(console: Console, places: list[Place], record: Manifest | None, report: ExtractReport) -> None:
    """One file's bytes. Raises before anything is written when it is no file."""
    if len(places) > 1:
        raise UsageError("- takes one file's bytes", hint="name one PATH, a folder as DEST, or --format tar")
    fs, entry = places[0].fs, places[0].entry
    if entry.type is not EntryType.FILE:
        shown = quote(places[0].shown(entry))
        hint = "take --format tar" if entry.type is EntryType.DIRECTORY else ""
        raise BrowseError(f"{shown} is a {entry.type}, not a file", hint=hint, path=shown)
    hashes = new_hashes(record.algorithms if record else ())
    reader = fs.open(entry)
    try:
        for data in pieces(reader, 0, reader.size):
            for each in hashes:
                each.update(data)
            console.write(data)
        report.unread(entry, plan(reader)[1])
    finally:
        reader.close()
    if record:
        record.add(entry.name, [each.hexdigest() for each in hashes])


def _say(console: Console, report: ExtractReport, manifest: str | None, *, silent: bool) -> None:
    """Tell what was made and what was left out."""
    rows = [
        {"severity": each.severity, "code": each.code, "message": each.message} for each in report.findings
    ]
    console.document(
        {
            "files": report.files,
            "directories": report.directories,
            "symlinks": report.symlinks,
            "nodes": report.nodes,
            "kept": report.kept,
            "bytes": report.bytes,
            "manifest": manifest,
            "findings": rows,
            "more_findings": report.dropped,
        }
    )
    for finding in report.findings:
        console.warn(finding.message)
    if report.dropped:
        console.warn(f"and {report.dropped} more like these")
    if report.severities - {"note"}:
        console.exit_code = 4 if "verify" in report.codes else 3
    if not silent:
        console.line(taken_words(report))


def taken_words(report: ExtractReport) -> str:
    """What was made, in a line."""
    kept = f"; there already: {report.kept} files and links" if report.kept else ""
    return f"{_count(report.files, 'file')}, {size_text(report.bytes)}{kept}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"
