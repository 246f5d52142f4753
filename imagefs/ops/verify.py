"""Verify: is what the set holds whole? Collects every finding and never stops at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from imagefs.block.views import extents_of
from imagefs.errors import ImagefsError, StoreError
from imagefs.format.codec import FRAME_SIZE, decode_frame_header, decompress, digest_of
from imagefs.format.index import Rows
from imagefs.format.trailer import KNOWN_SECTIONS
from imagefs.image.catalog import Catalog, ImageInfo
from imagefs.image.disk import VirtualDisk
from imagefs.image.reader import ImageReader
from imagefs.interfaces import Finding, NoProgress, Progress, Reader, State
from imagefs.ops.affected import find_affected, in_image
from imagefs.ops.diskimage import DiskImage
from imagefs.ops.linear import LinearDigests
from imagefs.ops.pump import BATCH_BYTES, default_threads, ordered_map
from imagefs.ops.skips import NOTHING, Skips

LEVELS = ("quick", "data", "deep")
#: Chunks that a worker gets at once, in bytes of the disk.
_BATCH_BYTES = 4 * BATCH_BYTES
#: More findings than this are counted, not kept.
MAX_FINDINGS = 10_000
#: Names of files that one finding tells.
MAX_FILES = 50


@dataclass(slots=True)
class VerifyReport:
    """``images`` are the ids looked at, leaf first; ``findings`` in the order they were made. ``closed`` are sentences
    about volumes in which files could not be named."""

    level: str
    images: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    dropped: int = 0
    closed: dict[str, None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def add(self, finding: Finding) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.dropped += 1


class Verifier:
    """Verifies images of one set; a layer that several chains share is looked at once."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        level: str = "data",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.report = VerifyReport(level)
        self._catalog = catalog
        self._threads = threads or default_threads()
        self._progress = progress or NoProgress()
        self._sound: dict[str, bool] = {}

    def look_into(self, info: ImageInfo, open_image: Callable[[Catalog, ImageInfo], DiskImage]) -> None:
        """What level deep adds for an image that was verified: its file systems, where the chain can be resolved."""
        from imagefs.ops.deep import look_into

        layers = [info, *self._catalog.ancestors(info)]
        if not all(self._sound.get(layer.id) for layer in layers):
            return
        try:
            with open_image(self._catalog, info) as disk:
                for finding in look_into(disk, progress=self._progress):
                    self.report.add(finding)
        except ImagefsError as error:
            self.report.add(_finding(error, image=info.id, code=error.code))

    def verify(self, info: ImageInfo) -> None:
        """The image, every layer below it, and the view they resolve to."""
        layers = [info, *self._catalog.ancestors(info)]
        fresh = [layer for layer in layers if layer.id not in self._sound]
        if self.report.level != "quick":
            self._progress.start("verify", sum(layer.summary.frame_bytes for layer in fresh))
        before = len(self.report.findings)
        for layer in fresh:
            self.report.images.append(layer.id)
            self._layer(layer)
        if all(self._sound[layer.id] for layer in layers):
            self._view(info, quiet=len(self.report.findings) > before)
        else:
            self._note_broken(info, layers)

    def damaged(self, name: str, error: ImagefsError) -> None:
        """An object of the set that is no readable image at all."""
        self.report.add(_finding(error, image=name, code=error.code))

    # -- one layer --------------------------------------------------------------------------------

    def _layer(self, info: ImageInfo) -> None:
        """Header, sections, index and, but at level quick, every stored chunk of one image."""
        self._sound[info.id] = False
        try:
            reader = self._catalog.open_image(info)
        except ImagefsError as error:
            self.report.add(_finding(error, image=info.id, code=error.code))
            return
        try:
            sound = self._sections(reader) & self._parent(reader, info)
            for number in range(len(reader.directory)):
                sound &= self._block(reader, number)
            self._sound[info.id] = sound
        finally:
            reader.close()

    def _sections(self, reader: ImageReader) -> bool:
        sound = True
        for type_ in reader.tail.sections:
            if type_ in KNOWN_SECTIONS:
                sound &= self._try(reader, partial(reader.section, type_))
        return sound and self._try(reader, lambda: (reader.extents(), reader.ranges(), reader.stands_for()))

    def _try(self, reader: ImageReader, work: Callable[[], object]) -> bool:
        try:
            work()
        except ImagefsError as error:
            self.report.add(_finding(error, image=reader.id, code=error.code))
            return False
        return True

    def _parent(self, reader: ImageReader, info: ImageInfo) -> bool:
        """The parent is there and is the one this image was sealed with."""
        if info.header.parent is None:
            return True
        return self._try(reader, lambda: self._catalog.check_parent(info))

    def _block(self, reader: ImageReader, number: int) -> bool:
        entry = reader.directory[number]
        try:
            rows = reader.block(number)
        except ImagefsError as error:
            self.report.add(
                _finding(error, image=reader.id, code="index", offset=entry.offset, length=entry.length)
            )
            return False
        if self.report.level != "quick":
            self._chunks(reader, rows)
        return True

    def _chunks(self, reader: ImageReader, rows: Rows) -> None:
        step = max(1, _BATCH_BYTES // reader.header.chunk_size)
        starts = range(0, len(rows), step)

        def work(start: int) -> tuple[int, list[Finding]]:
            return _check_frames(reader, rows, start, min(start + step, len(rows)))

        for read, findings in ordered_map(work, starts, threads=self._threads):
            self._progress.advance(read)
            for finding in findings:
                self.report.add(finding)

    # -- the chain --------------------------------------------------------------------------------

    def _view(self, info: ImageInfo, *, quiet: bool) -> None:
        """The resolved view has the digest that was sealed; a chunk's digest was checked before."""
        try:
            disk = self._catalog.open_disk(info)
        except ImagefsError as error:
            self.report.add(_finding(error, image=info.id, code=error.code))
            return
        try:
            if self.report.level != "quick" and disk.view_digest() != info.summary.view:
                self.report.add(
                    Finding("error", "view", f"{info.name}: the view digest does not match", info.id)
                )
        except ImagefsError as error:
            if not quiet:
                self.report.add(_finding(error, image=info.id, code=error.code))
        finally:
            disk.close()

    def _note_broken(self, info: ImageInfo, layers: list[ImageInfo]) -> None:
        broken = [layer.name for layer in layers if not self._sound[layer.id]]
        if broken != [info.name]:
            names = ", ".join(broken)
            message = f"{info.name} cannot be resolved: damage in {names}"
            self.report.add(Finding("error", "chain", message, info.id))


def verify_image(
    catalog: Catalog,
    info: ImageInfo,
    *,
    level: str = "data",
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Verify one image and its chain; see ``Verifier``."""
    verifier = Verifier(catalog, level=level, threads=threads, progress=progress)
    verifier.verify(info)
    return verifier.report


def name_files(
    report: VerifyReport,
    catalog: Catalog,
    info: ImageInfo,
    progress: Progress,
    open_image: Callable[[Catalog, ImageInfo], DiskImage],
) -> None:
    """Add to findings that have a place on the disk the files that lie there, where ``info`` shows it; and to
    ``closed`` which volumes there cannot be opened."""
    open_ones = [
        i
        for i, finding in enumerate(report.findings)
        if finding.length and not finding.files and _has_place(finding)
    ]
    if not open_ones:
        return
    try:
        disk = open_image(catalog, info)
    except ImagefsError:
        return
    with disk:
        shown = [i for i in open_ones if _is_shown(disk, report.findings[i])]
        ranges = [_range_of(report.findings[i]) for i in shown]
        found = find_affected(in_image(disk) if ranges else (), ranges, progress=progress)
        report.closed |= dict.fromkeys(found.closed)
        for i, (first, end) in zip(shown, ranges, strict=True):
            names = found.files_in(first, end)
            report.findings[i] = replace(report.findings[i], files=tuple(names[:MAX_FILES]))


def _has_place(finding: Finding) -> bool:
    return finding.chunk is not None or finding.code == "differs"


def _is_shown(disk: DiskImage, finding: Finding) -> bool:
    """Whether what the finding is about is what this image shows there."""
    if finding.chunk is None:
        return finding.image == disk.id
    layers = [layer.id for layer in disk.disk.chain.infos]
    run = disk.disk.run_of(finding.chunk) if finding.chunk * disk.disk.chunk_size < disk.size else None
    return run is not None and run.state is State.STORED and layers[run.layer] == finding.image


def _range_of(finding: Finding) -> tuple[int, int]:
    first = finding.offset or 0
    return first, first + (finding.length or 0)


def _check_frames(reader: ImageReader, rows: Rows, start: int, end: int) -> tuple[int, list[Finding]]:
    """(bytes looked at, findings) of the frames of rows ``start`` to before ``end``."""
    findings, read = [], 0
    for i, frame in enumerate(reader.frames(rows, start, end), start):
        chunk_no = rows.chunk_no.item(i)
        if isinstance(frame, StoreError):
            findings.append(_chunk_finding(reader, chunk_no, frame, "unreadable"))
            continue
        read += len(frame)
        try:
            _check_frame(reader, rows, i, frame)
        except ImagefsError as error:
            findings.append(_chunk_finding(reader, chunk_no, error, "chunk"))
    return read, findings


def _check_frame(reader: ImageReader, rows: Rows, i: int, frame: memoryview) -> None:
    """What the frame header does not tell rightly is damage too: who has lost the index needs it."""
    chunk_no, digest, codec = rows.chunk_no.item(i), rows.digest[i].tobytes(), rows.codec.item(i)
    header, stored = decode_frame_header(frame), frame[FRAME_SIZE:]
    plain_length = reader.plain_length(chunk_no)
    if digest_of(decompress(codec, stored, plain_length)) != digest:
        raise reader.bad(chunk_no, "its digest does not match")
    told = (header.chunk_no, header.digest, header.plain_length, header.stored_length, header.codec)
    if told != (chunk_no, digest, plain_length, len(stored), codec):
        raise reader.bad(chunk_no, "its frame header contradicts the index")


def _chunk_finding(reader: ImageReader, chunk_no: int, error: ImagefsError, code: str) -> Finding:
    size = reader.header.chunk_size
    prefix = "" if error.message.startswith(reader.name) else f"{reader.name}: chunk {chunk_no}: "
    return Finding(
        "error",
        code,
        prefix + error.message,
        reader.id,
        chunk_no,
        chunk_no * size,
        reader.plain_length(chunk_no),
    )


def _finding(
    error: ImagefsError, *, image: str, code: str, offset: int | None = None, length: int | None = None
) -> Finding:
    return Finding("error", code, error.message, image, None, offset, length)


def check_digests(
    disk: VirtualDisk,
    expected: Mapping[str, str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, bool]:
    """Read the whole view and say of each linear digest (hex, by name) whether it is the same."""
    progress = progress or NoProgress()
    progress.start("digests", disk.size)
    digests = LinearDigests(list(expected))
    starts = range(0, disk.size, _BATCH_BYTES)
    try:
        work = partial(_read_batch, disk)
        for data in ordered_map(work, starts, threads=threads or default_threads()):
            digests.feed(data)
            progress.advance(len(data))
        found = digests.finish()
    finally:
        digests.close()
    return {name: found[name] == hexed for name, hexed in expected.items()}


def _read_batch(disk: VirtualDisk, start: int) -> bytes:
    return disk.read_at(start, _BATCH_BYTES)


# -- against a source -----------------------------------------------------------------------------


def compare(
    disk: VirtualDisk | Reader,
    other: Reader,
    *,
    image: str,
    name: str,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Findings for every range in which ``other`` (called ``name``) differs from ``disk``.

    Skipped and unreadable ranges of ``disk`` are not compared. Neighbouring ranges are joined.
    """
    progress = progress or NoProgress()
    progress.start("compare", disk.size)
    if disk.size != other.size:
        message = f"{name} has {other.size} bytes, the image {disk.size}"
        yield Finding("error", "size", message, image)
    end = min(disk.size, other.size)
    batches = _ranges(disk, other, end)

    left_out = _left_out(disk)

    def work(batch: tuple[int, int]) -> tuple[int, list[tuple[int, int]] | ImagefsError]:
        offset, length = batch
        try:
            one, two = disk.read_at(offset, length), other.read_at(offset, length)
            return length, _differences(one, _blanked(two, offset, left_out), offset)
        except ImagefsError as error:
            return length, error

    held: tuple[int, int] | None = None
    for length, found in ordered_map(work, batches, threads=threads or default_threads()):
        progress.advance(length)
        if isinstance(found, ImagefsError):
            yield _finding(found, image=image, code=found.code)
            continue
        for start, stop in found:
            if held and held[1] == start:
                held = (held[0], stop)
                continue
            if held:
                yield _differs(held, image, name)
            held = (start, stop)
    if held:
        yield _differs(held, image, name)


def _left_out(disk: VirtualDisk | Reader) -> Skips:
    """What the image says it does not hold, to the byte: also inside stored chunks, where it is zeros."""
    if not isinstance(disk, VirtualDisk):
        return NOTHING
    ranges = disk.chain.leaf.ranges()
    return Skips(ranges.first, ranges.first + ranges.count)


def _blanked(data: bytes, offset: int, left_out: Skips) -> bytes:
    found = left_out.within(offset, offset + len(data)) if len(left_out) else []
    if not found:
        return data
    changed = bytearray(data)
    for first, end in found:
        changed[first - offset : end - offset] = bytes(end - first)
    return bytes(changed)


def _ranges(disk: VirtualDisk | Reader, other: Reader, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) pieces of at most a batch, without what was not captured or is a hole in both."""
    for extent in extents_of(disk, 0, end):
        if extent.state in (State.SKIPPED, State.UNREADABLE):
            continue
        beside = (
            (extent,) if extent.state is State.STORED else extents_of(other, extent.offset, extent.length)
        )
        for part in beside:
            if part.state is not State.STORED:
                continue
            stop = part.offset + part.length
            for offset in range(part.offset, stop, BATCH_BYTES):
                yield offset, min(BATCH_BYTES, stop - offset)


def _differences(one: bytes, other: bytes, offset: int) -> list[tuple[int, int]]:
    """Ranges of 512-byte sectors that differ, as (start, stop) on the disk."""
    if one == other:
        return []
    found: list[tuple[int, int]] = []
    for at in range(0, len(one), 512):
        if one[at : at + 512] != other[at : at + 512]:
            start, stop = offset + at, offset + min(at + 512, len(one))
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
    return found


def _differs(span: tuple[int, int], image: str, name: str) -> Finding:
    start, stop = span
    message = f"{name} differs from the image in bytes {start} to {stop - 1}"
    return Finding("error", "differs", message, image, None, start, stop - start)
