"""One file on the whole screen: as text or in hex, of any size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from imagefs.cli.text import size_text
from imagefs.errors import ImagefsError
from imagefs.interfaces import Reader
from imagefs.tui.content import (
    HEX_ROW,
    LINE,
    SAMPLE,
    TEXT_BYTES,
    digits_of,
    find_line,
    guess_encoding,
    hex_row,
    next_encoding,
    text_lines,
)
from imagefs.tui.dialogs import Ask, Text
from imagefs.tui.folder import Mark
from imagefs.tui.frame import FrameScreen
from imagefs.tui.jobs import Job
from imagefs.tui.names import middle, plain
from imagefs.tui.pane import Pane, text_cells, widest
from imagefs.tui.picture import Picture, look_at
from imagefs.tui.places import facts_of, place_of
from imagefs.tui.session import Point
from imagefs.tui.tables import Cell, count_words, point_words

#: Content is read in blocks of this size for hex, and so many are kept.
BLOCK, KEPT = 64 << 10, 64
#: What is searched at once in hex.
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that is being viewed, and the beginning of it."""

    reader: Reader
    head: bytes
    encoding: str
    picture: Picture | None


class ViewerScreen(FrameScreen):
    """Text where it seems to be text, else hex; ``x`` changes between them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,f3", "leave", "Back", key_display="Esc"),
        Binding("x,f4", "hex", "Hex/text", key_display="x"),
        Binding("c", "encoding", "Encoding"),
        Binding("w,f2", "wrap", "Wrap", key_display="w"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("n", "search_on", "Next"),
        Binding("colon,ctrl+g", "go", "Go to", key_display=":"),
        Binding("i", "facts", "Facts"),
        Binding("e,f5", "extract", "Extract", key_display="e"),
    ]

    def __init__(self, point: Point, target: Mark) -> None:
        super().__init__()
        self.point, self.target = point, target
        self.file: Opened | None = None
        self.encoding = ""
        self.as_hex = False
        self.wraps = False
        self.lines: list[str] = []
        self._wanted = ""
        self._found_at = -1
        self._blocks: OrderedDict[int, bytes | None] = OrderedDict()

    def main(self) -> ComposeResult:
        yield Pane(id="pane")

    @property
    def pane(self) -> Pane:
        return self.query_one(Pane)

    def on_mount(self) -> None:
        self.pane.focus()
        self.start("open", self._open)
        self._tell()

    def _open(self, job: Job) -> None:
        place = place_of(self.browser.opened(self.point), self.target)
        reader = place.fs.open(place.entry)
        try:
            head = reader.read_at(0, TEXT_BYTES if reader.size <= TEXT_BYTES else SAMPLE)
            encoding = guess_encoding(head[:SAMPLE])
            if encoding and len(head) < min(reader.size, TEXT_BYTES):
                head = reader.read_at(0, TEXT_BYTES)
            job.tell(self._have, Opened(reader, head, encoding, look_at(reader)))
        except BaseException:
            reader.close()
            raise

    def _have(self, file: Opened) -> None:
        self.file = file
        self.encoding = file.encoding
        self.as_hex = not file.encoding and file.reader.size > 0
        self._draw()

    def on_unmount(self) -> None:
        super().on_unmount()
        if self.file is not None:
            self.file.reader.close()

    def job_failed(self, group: str, error: ImagefsError) -> None:
        self.complain(error)
        if group == "open":
            self.dismiss()

    def job_ended(self, group: str) -> None:
        self._tell()

    # -- drawing ----------------------------------------------------------------------------------

    def _draw(self, *, top: int = 0) -> None:
        if self.file is None:
            return
        self._found_at = -1
        if self.as_hex:
            rows = -(-self.file.reader.size // HEX_ROW)
            self.pane.show(rows, self._hex_line, width=digits_of(self.file.reader.size) + 70, top=top)
        else:
            width = max(8, self.pane.size.width - 1) if self.wraps else LINE
            self.lines = text_lines(self.file.head, self.encoding or "utf-8", width=width)
            shown = 0 if self.wraps else widest(self.lines)
            self.pane.show(len(self.lines), self._text_line, width=shown, top=top)
        self._tell()

    def _text_line(self, number: int) -> Sequence[Cell]:
        return text_cells(self.lines[number]) if number < len(self.lines) else []

    def _hex_line(self, number: int) -> Sequence[Cell]:
        file = self.file
        assert file is not None
        offset = number * HEX_ROW
        block, data = self._block(offset), b""
        digits = digits_of(file.reader.size)
        if block is None:
            return [(f"{offset:0{digits}x}", "dim"), ("  cannot be read", "bad")]
        data = block[offset % BLOCK : offset % BLOCK + HEX_ROW]
        if not data:
            return [(f"{offset:0{digits}x}", "dim"), ("  …", "dim")]
        place, digit, shown = hex_row(offset, data, digits)
        return [(place, "dim"), (f"  {digit}  ", ""), (f"|{shown}|", "title")]

    def _block(self, offset: int) -> bytes | None:
        """The block with this offset: nothing while it is being read, None where it cannot be."""
        assert self.file is not None
        start = offset - offset % BLOCK
        if start + BLOCK <= len(self.file.head) or len(self.file.head) == self.file.reader.size:
            return self.file.head[start : start + BLOCK]
        if start in self._blocks:
            return self._blocks[start]
        self.start(f"block {start}", lambda job: self._fetch(job, start))
        self._keep(start, b"")
        return b""

    def _fetch(self, job: Job, start: int) -> None:
        assert self.file is not None
        try:
            data: bytes | None = self.file.reader.read_at(start, BLOCK)
        except ImagefsError as error:
            data = None
            job.tell(self.complain, error)
        job.tell(self._have_block, start, data)

    def _have_block(self, start: int, data: bytes | None) -> None:
        self._keep(start, data)
        self.pane.refresh()

    def _keep(self, start: int, data: bytes | None) -> None:
        self._blocks[start] = data
        self._blocks.move_to_end(start)
        while len(self._blocks) > KEPT:
            self._blocks.popitem(last=False)

    # -- keys -------------------------------------------------------------------------------------

    def action_leave(self) -> None:
        self.dismiss()

    def action_hex(self) -> None:
        if self.file is not None and self.file.reader.size:
            self.as_hex = not self.as_hex
            self._draw()

    def action_encoding(self) -> None:
        if self.file is not None:
            self.encoding = next_encoding(self.encoding)
            top = 0 if self.as_hex else self.pane.top
            self.as_hex = False
            self._draw(top=top)

    def action_wrap(self) -> None:
        if not self.as_hex:
            self.wraps = not self.wraps
            self._draw()

    def on_resize(self) -> None:
        if self.wraps and not self.as_hex:
            self._draw()
        self._tell()

    def action_facts(self) -> None:
        self.start("facts", self._read_facts)

    def _read_facts(self, job: Job) -> None:
        lines = facts_of(self.browser.opened(self.point), self.target)
        job.tell(lambda: self.app.push_screen(Text(plain(self.target.path), "\n".join(lines))))

    def action_extract(self) -> None:
        from imagefs.tui.taking import ask_to_extract

        ask_to_extract(self, self.point, [self.target])

    def action_go(self) -> None:
        def gone(answer: str | None) -> None:
            if answer is not None:
                number = int(answer, 0)
                self.pane.go_to(number // HEX_ROW if self.as_hex else number - 1)

        question = "Go to offset" if self.as_hex else "Go to line"
        hint = "bytes from the beginning, such as 4096 or 0x1000" if self.as_hex else "counted from 1"
        self.app.push_screen(Ask(question, hint=hint, check=_number_check), gone)

    def action_search(self) -> None:
        def asked(answer: str | None) -> None:
            if answer:
                self._wanted, self._found_at = answer, -1
                self.action_search_on()

        hint = "text, or bytes as 0xffd8ff" if self.as_hex else "text, upper and lower case alike"
        self.app.push_screen(Ask("Search for", self._wanted, hint=hint), asked)

    def action_search_on(self) -> None:
        if not self._wanted or self.file is None:
            return
        if self.as_hex:
            wanted, after = needle_of(self._wanted), self._found_at
            self.start("search", lambda job: self._search_bytes(job, wanted, after + 1))
            self._tell()
            return
        number = find_line(
            self.lines, self._wanted, self._found_at if self._found_at >= 0 else self.pane.top - 1
        )
        if number is None:
            self.say(f"'{self._wanted}' is not in this text", severity="warning")
        else:
            self._found_at = number
            self.pane.light(number)

    def _search_bytes(self, job: Job, wanted: bytes, start: int) -> None:
        assert self.file is not None
        reader = self.file.reader
        for offset in range(start, reader.size, _STEP):
            job.heed()
            at = reader.read_at(offset, _STEP + len(wanted) - 1).find(wanted)
            if at >= 0:
                job.tell(self._found_bytes, offset + at)
                return
        more = " from here on" if start else ""
        job.tell(lambda: self.say(f"'{self._wanted}' is not in this file{more}", severity="warning"))

    def _found_bytes(self, offset: int) -> None:
        self._found_at = offset
        self.pane.light(offset // HEX_ROW)

    # -- what it says -----------------------------------------------------------------------------

    def _tell(self) -> None:
        width = self.app.size.width - 2
        title = (
            f"{middle(self.browser.session.title, 24)}  {point_words(self.point, self.browser.session.zone)}"
        )
        self.write("title", title)
        self.write("path", middle(plain(self.target.path), width))
        self.write("status", middle(self._status(), width))

    def _status(self) -> str:
        if self.file is None:
            return "reading …"
        size = self.file.reader.size
        told = [f"{size_text(size)}" + (f" ({size:,} bytes)" if size >= 1024 else "")]
        if self.as_hex:
            told.append("hex")
            told += [f"{picture.words}, i tells more"] if (picture := self.file.picture) else []
        else:
            told += [f"text, {self.encoding or 'utf-8'}", count_words(len(self.lines), "line")]
            if len(self.file.head) < size:
                told.append(f"only the first {size_text(len(self.file.head))} of it: x shows all in hex")
        told += ["deleted"] if self.target.deleted else []
        told += ["searching …"] if self.busy("search") else []
        return " · ".join(told)


def needle_of(wanted: str) -> bytes:
    """Bytes that a user wrote: ``0xffd8ff``, else text."""
    if wanted.lower().startswith("0x"):
        try:
            return bytes.fromhex(wanted[2:])
        except ValueError:
            pass
    return wanted.encode("utf-8", "surrogateescape")


def _number_check(text: str) -> str:
    try:
        return "" if int(text, 0) >= 0 else "a number from 0 on"
    except ValueError:
        return f"'{text}' is not a number"
