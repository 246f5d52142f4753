"""``IMAGE.txt``: what an examiner keeps beside an image, in the order known from FTK Imager."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from imagefs.cli.facts import CONSISTENCY
from imagefs.cli.text import one_line
from imagefs.image.catalog import ImageInfo

#: What of the host is kept is cut to so many bytes.
_LONGEST = 1024
#: Option of the command line, key of the facts, and the words of the report.
CASE_WORDS = {
    "case": "Case Number",
    "evidence": "Evidence Number",
    "description": "Unique Description",
    "examiner": "Examiner",
    "notes": "Notes",
}
#: What is said beside digests of a disk that could not be read in whole.
ZEROS_IN_DIGESTS = "zeros, in the image and in the hashes"
DIGEST_WORDS = {"md5": "MD5", "sha1": "SHA1", "sha256": "SHA256", "sha512": "SHA512"}


def describe_host(*, read_only: bool | None, hidden: Mapping[str, str]) -> dict[str, str]:
    """Machine, system, user and command line of this run; ``read_only`` is the source's state,
    ``hidden`` what the disk keeps from everybody."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    behind = os.environ.get("SUDO_USER")
    facts = {
        "host": platform.node(),
        "os": platform.platform(),
        "user": f"{user} (sudo by {behind})" if behind else user,
        "command": command_line(),
        "read_only": {True: "yes", False: "no", None: "not a device"}[read_only],
        **hidden,
    }
    return {
        name: value.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
        for name, value in facts.items()
    }


def command_line() -> str:
    return shlex.join(["imagefs", *sys.argv[1:]])


def resume_command(folder: str, *, named: bool) -> str:
    """This run's command line as it goes on with what it left; ``named`` says that ``folder`` is in it."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    options = words.index("--") if "--" in words else len(words)
    words[options:options] = ["--resume"]
    sudo = ["sudo"] if os.environ.get("SUDO_USER") else []
    return shlex.join([*sudo, "imagefs", *words, *([] if named else [folder])])


def report_text(
    info: ImageInfo, verified: Mapping[str, bool] | None, *, verify_ended: int = 0, pending: bool = False
) -> str:
    """The report on a finished image. ``verified`` is what re-reading it showed of each digest; ``pending``
    says that it is only about to be read again."""
    header, summary = info.header, info.summary
    case, source = _dict(header.facts.get("case")), _dict(header.facts.get("source"))
    host, digests = _dict(header.facts.get("host")), _dict(summary.facts.get("digests"))
    sectors, rest = divmod(summary.disk_size, header.sector_size)
    blocks = [
        ("Case Information", [(words, case.get(key, "")) for key, words in CASE_WORDS.items()]),
        ("Source", [(words, source.get(key, "")) for key, words in _SOURCE_WORDS.items()]),
        (
            "Drive Geometry",
            [
                ("Bytes per Sector", header.sector_size),
                ("Bytes per Physical Sector", source.get("physical_sector_size", "unknown")),
                ("Sector Count", f"{sectors}" + (f" and {rest} bytes" if rest else "")),
                ("Size in Bytes", summary.disk_size),
                ("Hidden by HPA", host.get("hpa", "unknown")),
                ("Hidden by DCO", host.get("dco", "unknown")),
                ("Source Read-Only (blockdev --getro)", host.get("read_only", "")),
            ],
        ),
        (
            "Acquisition",
            [
                ("Host", host.get("host", "")),
                ("Operating System", host.get("os", "")),
                ("User", host.get("user", "")),
                ("Command Line", host.get("command", "")),
                ("Tool", header.facts.get("tool", "")),
                ("Started", _both_times(summary.started)),
                *_resumed(info),
                ("Finished", _both_times(summary.ended)),
                ("Source Consistency", CONSISTENCY.get(summary.consistency, "none")),
            ],
        ),
        ("Image", [("File", info.name), ("Image ID", info.id), ("Kind", header.kind.name.lower()),
                   ("Mode", header.mode.name.lower()), ("Seal (BLAKE3)", info.tail.seal.hex())]),
        (
            "Sectors",
            [
                ("In the Image", f"{sectors}" + (f" and {rest} bytes" if rest else "")),
                *_errors(info),
            ],
        ),
        ("Computed Hashes", [(DIGEST_WORDS.get(name, name), value) for name, value in digests.items()]),
        ("Image Verification", _verification(digests, verified, verify_ended, pending=pending)),
    ]  # fmt: skip
    lines: list[str] = []
    for title, rows in blocks:
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [f"  {words}: {one_line(value)}".rstrip() for words, value in rows]
    return "\n".join(lines) + "\n"


_SOURCE_WORDS = {
    "path": "Source",
    "model": "Drive Model",
    "serial": "Drive Serial Number",
    "wwn": "World Wide Name",
    "partition": "Partition",
    "disk_id": "Disk ID",
}


def _dict(value: Any) -> dict[str, Any]:
    """What an image says is only believed to be what it should be."""
    return value if isinstance(value, dict) else {}


def _both_times(moment_ns: int) -> str:
    moment = datetime.fromtimestamp(moment_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({moment.astimezone():%Y-%m-%d %H:%M:%S %z})"


def _resumed(info: ImageInfo) -> list[tuple[str, str]]:
    found = _dict(info.summary.facts.get("resumed"))
    if not found:
        return []
    return [("Last Resumed", f"{_both_times(int(found.get('at', 0)))}, at byte {found.get('byte', 0)}")]


def _errors(info: ImageInfo) -> list[tuple[str, str]]:
    """What could not be read, how hard that was tried, and what it counts as."""
    errors, size = _dict(info.summary.facts.get("errors")), info.header.sector_size
    if not errors:
        return [("Unreadable", "0")]
    untried, again = int(errors.get("untried", 0)), errors.get("retries", 0)
    around = f"{errors.get('reads', 0)} reads around bad places"
    since = ", since it was last resumed" if info.summary.facts.get("resumed") else ""
    rows = [
        ("Unreadable", f"{-(-int(errors.get('bytes', 0)) // size)}"),
        ("Error Granularity", f"1 sector of {size} bytes"),
        ("Retries", f"each bad sector {again} more, {around}{since}"),
        ("Read as", ZEROS_IN_DIGESTS),
    ]
    return rows + ([("Not Tried", f"{-(-untried // size)} of them, as the mapfile says")] if untried else [])


def _verification(
    digests: Mapping[str, Any], verified: Mapping[str, bool] | None, ended: int, *, pending: bool
) -> list[tuple[str, str]]:
    if verified is None:
        return [("Result", "not finished" if pending else "not run")]
    said = {True: "MATCH", False: "MISMATCH"}
    rows = [(DIGEST_WORDS.get(name, name), said[verified.get(name, False)]) for name in digests]
    return [("Finished", _both_times(ended)), *rows]
