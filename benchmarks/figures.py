"""The table of figures: what is measured, what is wanted of it, and how the two compare.

Each group is a function from the workshop to figures; ``GROUPS`` names them for ``--only``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import bare, ours, peers
from benchmarks.exports import Export, exports, qemu_export
from benchmarks.measure import BenchError, interleave, median, say, warm
from benchmarks.mounts import (
    Served,
    choose_offsets,
    imagefs_mount,
    random_rate,
    sequential_rate,
)
from benchmarks.past import past
from benchmarks.rows import Figure, LeftOut, Row
from benchmarks.scale import GiantSet, giant_set
from benchmarks.taking import taking
from benchmarks.trees import tar, trees
from benchmarks.workshop import Workshop
from imagefs.block.devices import open_source
from imagefs.ops.usedblocks import find_skips

Measure = Callable[[Served], float]

MEMORY_LIMIT = 400_000_000
#: MB that opening, listing and mounting a giant image may take.
SCALE_MEMORY = 300.0
_SEED = 42
_READS = {1: 20_000, 8: 40_000}
_READS_QUICK = {1: 2_000, 8: 8_000}


def capture(shop: Workshop) -> Iterator[Row]:
    """A full capture beside its peers and beside the limit of the machine."""
    settings, chunks = shop.settings, shop.chunks
    new, room = shop.work / "set", shop.work / "peer"

    def one_capture() -> float:
        return shop.timed("capture", ours.capture(shop.disk, ours.new_set(new), "--kind", "full"))

    values = interleave(
        shop.runs,
        ours=one_capture,
        qemu=lambda: peers.qemu_compress(shop.disk, room.with_suffix(".qcow2")).seconds,
        borg=lambda: peers.borg(shop.disk, room.with_suffix(".borg")).seconds,
        zstd=lambda: peers.zstd(shop.disk, room.with_suffix(".zst"), level=settings.level).seconds,
        bare=lambda: bare.compress_time(shop.disk, chunks, chunk=settings.chunk, level=settings.level),
    )
    row = _Rows("capture", "s", values)
    yield row("full capture, time", "qemu", "qemu-img convert -c -m 2, zstd", 0.5)
    yield row("full capture, time", "borg", "borg create --compression zstd,3", 0.4)
    yield row("full capture, time", "zstd", f"zstd -T2 -{settings.level}", 1.0)
    yield row("full capture, time", "bare", f"bare zstd -{settings.level} of the non-zero chunks", 1.25)
    sizes = [[path.stat().st_size / 1e6] for path in (shop.full, room.with_suffix(".qcow2"))]
    yield Figure("capture", "image, size", "qemu-img's qcow2", "MB", tuple(sizes[0]), tuple(sizes[1]), 1.0)


def incremental(shop: Workshop) -> Iterator[Row]:
    """An incremental with 1 % changed, beside reading and hashing what is allocated."""

    def one_capture() -> float:
        folder = ours.new_set(shop.work / "set", shop.full)
        run = ours.capture(shop.changed, folder, "--kind", "incr")
        return shop.timed("incremental capture", run)

    chunk, chunks = shop.settings.chunk, shop.chunks
    values = interleave(
        shop.runs, ours=one_capture, bare=lambda: bare.read_hash_time(shop.changed, chunks, chunk=chunk)
    )
    row = _Rows("incremental", "s", values)
    yield row("incremental, 1 % changed, time", "bare", "reading and BLAKE3 of the allocated data", 1.3)


def used(shop: Workshop) -> Iterator[Row]:
    """The used blocks of the ext4 partition, at the defaults and packed as tightly as the peer does."""
    peer, new = shop.work / "p2.pc.zst", shop.work / "set"
    packed = ", 4 MiB chunks, level 3"
    kinds = {"": (), packed: ("--chunk-size", "4M", "--compression", "3")}
    sizes: dict[str, float] = {}

    def one_capture(name: str) -> float:
        folder = ours.new_set(new)
        run = ours.capture(shop.linux, folder, "--kind", "full", *kinds[name], mode="used")
        sizes[name] = ours.images(folder)[-1].stat().st_size / 1e6
        return shop.timed("used-block capture", run)

    values = interleave(
        shop.runs,
        ours=lambda: one_capture(""),
        packed=lambda: one_capture(packed),
        partclone=lambda: peers.partclone(shop.linux, peer).seconds,
    )
    what, theirs = "partclone.ext4 -c | zstd -3 -T2", (peer.stat().st_size / 1e6,)
    for name, side in zip(kinds, ("ours", "packed"), strict=True):
        mine = tuple(values[side])
        yield Figure(
            "used", f"used blocks of ext4, time{name}", what, "s", mine, tuple(values["partclone"]), 0.5
        )
        yield Figure(
            "used", f"used blocks of ext4, image size{name}", what, "MB", (sizes[name],), theirs, 1.0
        )


def again(shop: Workshop) -> Iterator[Row]:
    """A second used-block capture with nothing changed, beside reading and hashing what is used."""
    first = shop.work / "first"
    ours.capture(shop.linux, ours.new_set(first), "--kind", "full", mode="used")
    (image,) = ours.images(first)
    chunk = ours.facts(image)["chunk_size"]
    offsets = _captured(shop.linux, chunk)

    def one_capture() -> float:
        folder = ours.new_set(shop.work / "set", image)
        return shop.timed("second capture", ours.capture(shop.linux, folder, mode="used"))

    values = interleave(
        shop.runs, ours=one_capture, bare=lambda: bare.read_hash_time(shop.linux, offsets, chunk=chunk)
    )
    row = _Rows("again", "s", values)
    yield row("nothing changed, used blocks, time", "bare", "reading and BLAKE3 of the used blocks", 1.3)


def _captured(part: Path, chunk: int) -> list[int]:
    """Offsets of the chunks that a used-block capture reads."""
    with contextlib.closing(open_source(str(part))) as source:
        skips, _ = find_skips(source, sector_size=512)
        wanted = np.ones(-(-source.size // chunk), bool)
        for first, end in skips.chunks(chunk, source.size):
            wanted[first:end] = False
    return [int(number) * chunk for number in np.flatnonzero(wanted)]


def forensic(shop: Workshop) -> Iterator[Row]:
    """What MD5, SHA-1 and SHA-256 add to a capture, beside the slowest of them alone."""
    new = shop.work / "set"

    def one_capture(*options: str) -> float:
        return ours.capture(shop.disk, ours.new_set(new), "--kind", "full", *options).seconds

    names = ("md5", "sha1", "sha256")
    sides = {name: partial(bare.digest_time, shop.disk, name) for name in names}
    values = interleave(
        shop.runs, plain=one_capture, hashed=lambda: one_capture("--hash", ",".join(names)), **sides
    )
    slowest = max(names, key=lambda name: median(values[name]))
    more = tuple(max(0.0, b - a) for a, b in zip(values["plain"], values["hashed"], strict=True))
    what = f"{slowest} alone, the slowest"
    yield Figure(
        "forensic", "what three linear digests add, time", what, "s", more, tuple(values[slowest]), 1.0
    )


def verify(shop: Workshop) -> Iterator[Row]:
    settings, chunks = shop.settings, shop.chunks
    values = interleave(
        shop.runs,
        ours=lambda: shop.timed("verify", ours.verify(shop.full)),
        restic=lambda: peers.restic_check(shop.restic).seconds,
        bare=lambda: bare.decode_hash_time(shop.disk, chunks, chunk=settings.chunk, level=settings.level),
    )
    row = _Rows("verify", "s", values)
    yield row("verify --level data, time", "restic", "restic check --read-data", 0.6)
    yield row("verify --level data, time", "bare", "bare zstd decode and BLAKE3", 1.4)


def restore(shop: Workshop) -> Iterator[Row]:
    image, qcow2 = shop.full, shop.qcow2
    values = interleave(
        shop.runs,
        ours=lambda: shop.timed("restore", ours.restore(image, shop.work / "ours.raw")),
        qemu=lambda: peers.qemu_restore(qcow2, shop.work / "qemu.raw").seconds,
    )
    for name in ("ours.raw", "qemu.raw"):
        (shop.work / name).unlink()
    yield _Rows("restore", "s", values)("restore to a sparse file, time", "qemu", "qemu-img convert", 0.7)


def read(shop: Workshop) -> Iterator[Row]:
    """Sequential and random reads, cold, beside the best of the peers; as root and without."""
    for nobody in _users():
        peers_here = exports(shop, nobody=nobody)
        for name, measure in _readings(shop).items():
            say(f"  {name}, {_who(nobody)}")
            best = _best(peers_here, _qualifying(shop)[name])
            values = interleave(
                shop.runs,
                ours=partial(_through_ours, shop, measure, nobody, chain=False),
                peer=partial(_through, best, measure),
            )
            among = "" if len(peers_here) == 1 else f", the best of {', '.join(peers_here)}"
            yield _reads("read", name, nobody, values, "peer", f"{best.name}{among}", _WANTED_READS[name])
            if name == SEQUENTIAL:
                yield _beside_the_machine(shop, nobody, values["ours"])


SEQUENTIAL = "sequential read, cold"
_WANTED_READS = {
    SEQUENTIAL: 2.0,
    "random 4 KiB read, cold, depth 1": 1.3,
    "random 4 KiB read, cold, depth 8": 1.0,
}
#: Random reads by which the best peer is chosen: some take a tenth of a second for each.
_TRIAL_READS = 300


def _best(found: dict[str, Export], measure: Measure) -> Export:
    """The quickest of several, by one short run of each."""
    if len(found) == 1:
        return next(iter(found.values()))
    rates = {}
    for key, export in found.items():
        try:
            rates[key] = _through(export, measure)
            say(f"  {export.name}: {rates[key]:.0f}")
        except BenchError as error:
            say(f"  {export.name} is left out: {error}")
    if not rates:
        raise BenchError("no peer serves the disk here")
    return found[max(rates, key=lambda key: rates[key])]


def _qualifying(shop: Workshop) -> dict[str, Measure]:
    offsets = choose_offsets(shop.pages.tolist(), _TRIAL_READS, seed=_SEED)
    some = {f"random 4 KiB read, cold, depth {depth}": _random(offsets, depth) for depth in _READS}
    return {SEQUENTIAL: partial(sequential_rate, share=0.25), **some}


def _through(export: Export, measure: Measure) -> float:
    with export.warmed() as served:
        return measure(served)


def _beside_the_machine(shop: Workshop, nobody: bool, mine: list[float]) -> Row:
    """The same read beside bare decoding on all cores and a copy of the plain disk through FUSE."""
    size, settings = shop.shape.size, shop.settings
    limits = []
    for _ in range(shop.runs):
        decode = bare.decode_time(shop.disk, shop.chunks, chunk=settings.chunk, level=settings.level)
        warm(shop.disk)
        with qemu_export(shop.disk, size=size, nobody=nobody, driver="raw") as served:
            limits.append(decode + size / 1e6 / sequential_rate(served))
    seconds = tuple(size / 1e6 / rate for rate in mine)
    what = "bare zstd decode and a FUSE copy of the plain disk"
    return Figure("read", f"{SEQUENTIAL}, {_who(nobody)}, time", what, "s", seconds, tuple(limits), 1.5)


def chain(shop: Workshop) -> Iterator[Row]:
    """The same reads through a full image and 30 incrementals, beside the full image alone."""
    for nobody in _users():
        for name, measure in _readings(shop).items():
            say(f"  {name}, {_who(nobody)}")
            values = interleave(
                shop.runs,
                ours=partial(_through_ours, shop, measure, nobody, chain=True),
                full=partial(_through_ours, shop, measure, nobody, chain=False),
            )
            yield _reads("chain", f"{name}, 30 incrementals", nobody, values, "full", "the full alone", 0.9)


def scale(shop: Workshop) -> Iterator[Row]:
    """An 8 TiB image and 1,000 incrementals of it, beside the bounds that were set."""
    giant = giant_set(shop.cache, shop.work / "home", quick=shop.shape.name == "quick")
    for name, image, first, then in (
        ("8 TiB", giant.full, 0.5, 0.5),
        ("8 TiB, 1,000 incrementals", giant.folder, 3.0, 0.5),
    ):
        values: dict[str, list[float]] = {}
        for _ in range(shop.runs):
            for key, value in _scale_run(giant, image, shop, name):
                values.setdefault(key, []).append(value)
        for key, mine in values.items():
            unit = "MB" if "memory" in key else "s"
            wanted = SCALE_MEMORY if unit == "MB" else first if "first time" in key else then
            yield Figure("scale", f"{name}: {key}", "the bound", unit, tuple(mine), (wanted,), 1.0)


def _scale_run(giant: GiantSet, image: Path, shop: Workshop, name: str) -> Iterator[tuple[str, float]]:
    """One round, first as a new user and then as one who was there before."""
    giant.forget()
    for when in (", first time", ""):
        yield f"open, interpreter running{when}", giant.open_seconds(image)
        if when:
            giant.forget()
        yield f"info{when}", shop.timed(f"info of {name}", giant.run("info", image))
    yield "ls", shop.timed(f"ls of {name}", giant.run("ls", image))
    yield "list", shop.timed(f"list of {name}", giant.run("list", image if image.is_dir() else image.parent))
    with giant.mounted(image) as (seconds, peak):
        yield "mount", seconds
        yield "memory of the mount", peak / 1e6
    yield "memory of the commands", shop.peaks[f"info of {name}"] / 1e6


def memory(shop: Workshop) -> Iterator[Row]:
    """Peak memory of all that was run so far."""
    for verb, peak in sorted(shop.peaks.items()):
        yield Figure(
            "memory", f"peak memory, {verb}", "400 MB", "MB", (peak / 1e6,), (MEMORY_LIMIT / 1e6,), 1.0
        )


Group = Callable[[Workshop], Iterator[Row]]

#: In the order they are run: memory is last, for it tells of the others.
GROUPS: dict[str, Group] = {
    "capture": capture,
    "incremental": incremental,
    "used": used,
    "again": again,
    "forensic": forensic,
    "verify": verify,
    "restore": restore,
    "read": read,
    "chain": chain,
    "trees": trees,
    "tar": tar,
    "get": taking,
    "past": past,
    "scale": scale,
    "memory": memory,
}


def _readings(shop: Workshop) -> dict[str, Measure]:
    counts = _READS_QUICK if shop.shape.name == "quick" else _READS
    found: dict[str, Measure] = {SEQUENTIAL: sequential_rate}
    for depth, count in counts.items():
        offsets = choose_offsets(shop.pages.tolist(), count, seed=_SEED + depth)
        found[f"random 4 KiB read, cold, depth {depth}"] = _random(offsets, depth)
    return found


def _random(offsets: list[int], depth: int) -> Measure:
    return lambda served: random_rate(served, offsets, jobs=depth)


def _through_ours(shop: Workshop, measure: Measure, nobody: bool, *, chain: bool) -> float:
    images = shop.chain if chain else [shop.full]
    with imagefs_mount(images, size=shop.shape.size, nobody=nobody) as served:
        value = measure(served)
        shop.note_peak("mount of a chain of 31" if chain else "mount", served.peak)
        return value


def _users() -> list[bool]:
    """Whether to go without rights: root measures both ways, anybody else as they are."""
    return [False, True] if os.geteuid() == 0 else [False]


def _reads(
    group: str, name: str, nobody: bool, values: dict[str, list[float]], side: str, peer: str, wanted: float
) -> Figure:
    unit = "MB/s" if name.startswith("sequential") else "IOPS"
    mine, theirs = tuple(values["ours"]), tuple(values[side])
    return Figure(group, f"{name}, {_who(nobody)}", peer, unit, mine, theirs, wanted, at_least=True)


def _who(nobody: bool) -> str:
    return "as root" if os.geteuid() == 0 and not nobody else "without root"


class _Rows:
    """Makes the rows of one interleaved measurement, in which smaller is better."""

    def __init__(self, group: str, unit: str, values: dict[str, list[float]]) -> None:
        self.group, self.unit, self.values = group, unit, values

    def __call__(self, name: str, side: str, peer: str, wanted: float) -> Figure:
        mine, theirs = tuple(self.values["ours"]), tuple(self.values[side])
        return Figure(self.group, name, peer, self.unit, mine, theirs, wanted)


def measure_groups(shop: Workshop, names: list[str]) -> Iterator[Row]:
    """All rows of the named groups; a group that fails becomes a row that says why."""
    for name in names:
        say(f"{name}:")
        try:
            yield from GROUPS[name](shop)
        except BenchError as error:
            say(f"  {error}")
            yield LeftOut(name, f"the rest of {name}", str(error))
