"""ISO 9660 (with Joliet) and UDF, on discs and on disks."""

from __future__ import annotations

from imagefs.volume.facts import FileSystemFacts, Window, text

_FIRST = 16  # the first descriptor, in sectors of 2,048 bytes
_MAX_DESCRIPTORS = 64
_RECOGNITION = frozenset({b"CD001", b"BEA01", b"NSR02", b"NSR03", b"TEA01", b"BOOT2", b"CDW02"})
_JOLIET = (b"%/@", b"%/C", b"%/E")


def probe_iso9660(window: Window) -> FileSystemFacts | None:
    primary = joliet = None
    for number in range(_FIRST, _FIRST + _MAX_DESCRIPTORS):
        block = window.at(number * 2048, 2048)
        if block[1:6] != b"CD001" or block[0] == 255:
            break
        if block[0] == 1 and primary is None:
            primary = block
        if block[0] == 2 and block[88:91] in _JOLIET and joliet is None:
            joliet = block
    if primary is None:
        return None
    block_size = int.from_bytes(primary[128:130], "little") or 2048
    return FileSystemFacts(
        kind="iso9660",
        label=_iso_label(primary, joliet),
        uuid=_iso_date(primary[830:847]) or _iso_date(primary[813:830]),
        size=int.from_bytes(primary[80:84], "little") * block_size,
        block_size=block_size,
    )


def _iso_label(primary: bytes, joliet: bytes | None) -> str:
    """Joliet's label, and where it is only the first 16 characters of the primary one, the rest too."""
    plain = text(primary[40:72])
    wide = text(joliet[40:72], "utf-16-be") if joliet is not None else ""
    if len(wide) == 16 and all(map(_same_letter, wide, plain)):
        return wide + plain[16:]
    return wide or plain


def _same_letter(wide: str, plain: str) -> bool:
    """The primary label holds an underscore for what it cannot write, and often capitals only."""
    return plain in ("_", wide, wide.upper())


def _iso_date(raw: bytes) -> str:
    """When it was changed (or made), as blkid writes it: that is its UUID."""
    digits = raw[:16].decode("ascii", "replace")
    if not digits.strip("0\0 ") and not raw[16]:
        return ""
    parts = (digits[:4], *(digits[i : i + 2] for i in range(4, 16, 2)))
    return "-".join(parts)


def probe_udf(window: Window) -> FileSystemFacts | None:
    # The recognition sequence has one descriptor in 2,048 bytes, or in a sector if that is larger.
    for step, block_sizes in ((2048, (512, 2048, 1024)), (4096, (4096,))):
        if _has_recognition(window, step):
            return _by_anchor(window, block_sizes) or FileSystemFacts("udf")
    return None


def _has_recognition(window: Window, step: int) -> bool:
    """BEA01 and NSR02 or NSR03 in an unbroken row of descriptors."""
    names = []
    for number in range(_MAX_DESCRIPTORS):
        name = window.at(32768 + number * step, 6)[1:]
        if name not in _RECOGNITION:
            break
        names.append(name)
    return b"BEA01" in names and (b"NSR02" in names or b"NSR03" in names)


def _by_anchor(window: Window, block_sizes: tuple[int, ...]) -> FileSystemFacts | None:
    """What the descriptors say to which the anchor in block 256 points."""
    for block_size in block_sizes:
        anchor = window.at(256 * block_size, 512)
        if anchor[:2] == b"\x02\0" and int.from_bytes(anchor[12:16], "little") == 256:
            first = int.from_bytes(anchor[20:24], "little")
            count = min(int.from_bytes(anchor[16:20], "little") // block_size, _MAX_DESCRIPTORS)
            return _udf_facts(window, range(first, first + count), block_size)
    return None


def _udf_facts(window: Window, blocks: range, block_size: int) -> FileSystemFacts:
    label = unique = ""
    for number in blocks:
        block = window.at(number * block_size, 512)
        tag, location = int.from_bytes(block[:2], "little"), int.from_bytes(block[12:16], "little")
        if tag in (0, 8) or location != number:
            break
        if tag == 1 and not unique:
            unique = _udf_uuid(block[72:200])
        if tag == 6 and not label:
            label = _dstring(block[84:212]).rstrip(" ")
    return FileSystemFacts("udf", label=label, uuid=unique, block_size=block_size)


def _dstring(raw: bytes) -> str:
    """OSTA's compressed Unicode: the first byte says how wide, the last one how long."""
    used = raw[1 : max(1, min(raw[-1], len(raw) - 1))]
    if raw[0] == 8:
        return used.decode("latin-1").split("\0", 1)[0]
    if raw[0] == 16:
        return used.decode("utf-16-be", "replace").split("\0", 1)[0]
    return ""


def _udf_uuid(raw: bytes) -> str:
    """Sixteen hex digits out of the volume set identifier, by the rules of libblkid and udftools."""
    data = _dstring(raw).encode()[:16]
    if len(data) < 8:
        return ""
    digits = 0
    while digits < len(data) and data[digits : digits + 1] in b"0123456789abcdefABCDEF":
        digits += 1
    if digits < 8:
        return data[:8].hex()
    if digits < 16:
        return data[:8].decode().lower() + data[8:12].ljust(4, b"\0").hex()
    return data.decode().lower()
