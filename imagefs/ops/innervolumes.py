"""Volumes inside volumes: what LVM, RAID 1, LUKS and BitLocker hold, shadow copies of NTFS, snapshots of APFS.

Each is a Volume with a Reader over the Readers of those it lies in, found round by round: what is encrypted first,
then mirrors, then volume groups, since each may lie in the others. Maps and headers are read here; what needs a library
or much memory (keys, BitLocker, shadow copies), or is a file system (APFS), runs in a worker process. Readers of a kind
are loaded when a disk has it: most have none, and every ``info`` and ``mount`` comes through here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from imagefs.block.joined import LostReader, SureReader, lost_in
from imagefs.block.views import RefusingReader, SliceReader
from imagefs.errors import BrowseError, ImagefsError, Locked, UsageError
from imagefs.interfaces import Reader, Volume
from imagefs.ops.located import Located, anywhere, locate
from imagefs.ops.pairing import natural
from imagefs.volume import probe, read_table
from imagefs.volume.facts import Window
from imagefs.volume.shadow import has_shadows

if TYPE_CHECKING:
    from imagefs.ops.volumeparser import VolumeParser
    from imagefs.volume.luks import LuksHeader
    from imagefs.volume.lvm import PhysicalVolume
    from imagefs.volume.mdraid import Member

#: ``waiting("unlocking p3")`` is entered while something takes long that cannot tell how far it is.
Waiting = Callable[[str], AbstractContextManager[object]]
#: More volumes than this, or deeper ones, are no disk that somebody uses.
_MAX_VOLUMES, _MAX_DEPTH = 256, 6
#: What a worker may have beside the memory that making a key takes.
_KEY_MEMORY = 1 << 30
_TOO_MANY = "more volumes lie in it than are shown"


@dataclass(slots=True)
class Secret:
    """What opens an encrypted volume: what was typed or came from a descriptor, or a key file at ``path``.

    It remembers what became of it, for other images of the disk: the keys that it gave by LUKS header, or why it gave
    none; whether it ``opened`` a volume, and the last refusal.
    """

    data: bytes = field(repr=False)
    path: str = ""
    keys: dict[LuksHeader, bytes | ImagefsError] = field(default_factory=dict, repr=False)
    opened: bool = False
    refusal: Locked | None = None


def check_secrets(secrets: Mapping[str, Secret]) -> None:
    """Each opened something. Raises Locked for one that is wrong, UsageError where there is nothing to be unlocked."""
    for name, secret in sorted(secrets.items()):
        if secret.opened:
            continue
        if secret.refusal is not None:
            raise secret.refusal
        hint = "`imagefs ls IMAGE` shows which volumes are locked"
        raise UsageError(f"there is no locked volume {name}", hint=hint)


@dataclass(frozen=True, slots=True)
class Container:
    """What a volume is that holds others. ``state`` is ``open``, ``locked``, ``member`` (what it holds is shown in
    another) or ``refused``; ``message`` is a sentence about it, ``needs`` what would open it."""

    kind: str
    state: str
    message: str
    needs: tuple[str, ...] = ()

    @property
    def is_file_system(self) -> bool:
        """Whether it is looked into itself: it has points in time, or is encrypted file by file."""
        return self.kind in ("ntfs", "apfs")


@dataclass(frozen=True, slots=True)
class Inner:
    """``reader`` is None where the volume is known and cannot be read; ``container`` says why then."""

    volume: Volume
    reader: Reader | None
    made_ns: int | None = None


class InnerVolumes:
    """All volumes inside ``partitions``, which are (volume, its bytes). ``secrets`` are by the id of what they open;
    one that is wrong is Locked, or with ``lenient`` leaves its volume locked. ``waiting`` is entered with a word for
    what may take long."""

    def __init__(
        self,
        partitions: Sequence[tuple[Volume, Reader]],
        secrets: Mapping[str, Secret],
        *,
        lenient: bool = False,
        waiting: Waiting = nullcontext,
    ) -> None:
        self._secrets = dict(secrets)
        self._lenient = lenient
        self._waiting = waiting
        self._read_from = partitions  # as long as they are known by their id()
        self._places = {id(reader): (volume.start, reader.size) for volume, reader in partitions}
        self._children: dict[str, list[Inner]] = {}
        self._members: dict[str, list[tuple[str, Reader, Member]]] = {}
        self._physical: dict[str, list[tuple[str, PhysicalVolume]]] = {}
        self._parsers: list[VolumeParser] = []
        self._count = 0
        self._queue: list[tuple[str, Reader]] = []
        self.containers: dict[str, Container] = {}
        self._keys: dict[str, dict[str, bytes]] = {}
        self._roots = [volume.id for volume, _ in partitions]
        try:
            self._find([(volume.id, reader) for volume, reader in partitions])
        except BaseException:
            self.close()
            raise

    @property
    def made(self) -> dict[str, int | None]:
        """When shadow copies and snapshots were made, in ns since 1970, by id."""
        return {each.volume.id: each.made_ns for found in self._children.values() for each in found}

    def inside(self, volume_id: str) -> Iterator[Inner]:
        """The volumes in one volume, each before those in it."""
        for each in self._children.get(volume_id, ()):
            yield each
            yield from self.inside(each.volume.id)

    def reader(self, volume_id: str) -> Reader | None:
        """The bytes of a volume inside others; None where it cannot be read."""
        outermost = volume_id.partition(".")[0].partition("@")[0]
        return next((each.reader for each in self.inside(outermost) if each.volume.id == volume_id), None)

    def keys_of(self, volume_id: str) -> dict[str, bytes]:
        """What opens the encrypted volumes of an APFS container, now and at its snapshots; see ``open_filesystem``."""
        return self._keys.get(volume_id.partition("@")[0], {})

    def located(self, volume_id: str) -> Located:
        """Where on the disk its bytes lie."""
        reader = self.reader(volume_id)
        return anywhere(self._places) if reader is None else locate(reader, self._places)

    def close(self) -> None:
        for parser in self._parsers:
            parser.close()
        self._parsers.clear()

    # -- rounds ------------------------------------------------------------------------------------

    def _find(self, volumes: list[tuple[str, Reader]]) -> None:
        self._queue = volumes
        while self._queue:
            while self._queue:
                self._look(*self._queue.pop(0))
            self._assemble_mirrors()
            if not self._queue:
                self._assemble_groups()

    def _look(self, name: str, reader: Reader) -> None:
        """What one volume is; damage makes it a container that cannot be opened, never an error."""
        kind = ""
        try:
            kind = probe(reader).kind
            looks: dict[str, Callable[[str, Reader], None]] = {
                "raid": self._raid,
                "lvm2": self._lvm,
                "luks": self._luks,
                "bitlocker": self._bitlocker,
                "ntfs": self._shadows,
                "apfs": self._apfs,
                "": self._partitions,
            }
            if kind in looks:
                looks[kind](name, reader)
        except Locked as error:
            if not self._lenient:
                raise
            self.containers[name] = Container(kind, "locked", error.message)
        except Exception as error:  # a parser's bug costs one container, not the whole disk
            self._refuse(name, kind, error)

    def _refuse(self, name: str, kind: str, error: Exception) -> None:
        if not isinstance(error, ImagefsError):
            error = BrowseError(f"its parser failed ({type(error).__name__}: {error})")
        if kind in _NAMES:
            hint = f"; {error.hint}" if error.hint else ""
            message = f"{name} ({_NAMES[kind]}) cannot be opened: {error.message}{hint}"
            self.containers[name] = Container(kind, "refused", message)

    def _add(self, volume: Volume, reader: Reader | None, made_ns: int | None = None) -> None:
        self._count += not volume.moment
        if self._count > _MAX_VOLUMES or volume.inside.count(".") >= _MAX_DEPTH:
            raise BrowseError(_TOO_MANY)
        self._children.setdefault(volume.inside, []).append(Inner(volume, reader, made_ns))
        if reader is not None and not volume.moment:
            self._queue.append((volume.id, reader))

    def _partitions(self, name: str, reader: Reader) -> None:
        """A mirror or a logical volume may be a disk of its own, with a table."""
        if name in self._roots:
            return
        for each in read_table(reader).volumes:
            if each.number:
                volume = Volume(
                    each.number, 0, each.length, each.type, each.uuid, each.name, each.role, inside=name
                )
                self._add(volume, SliceReader(reader, each.start, each.length))

    # -- mirrors -----------------------------------------------------------------------------------

    def _raid(self, name: str, reader: Reader) -> None:
        from imagefs.volume.mdraid import read_member

        member = read_member(Window(reader))
        if member is None:
            raise BrowseError("its superblock is damaged")
        self._members.setdefault(member.array, []).append((name, reader, member))

    def _assemble_mirrors(self) -> None:
        for members in self._members.values():
            members.sort(key=lambda each: natural(each[0]))
            try:
                self._assemble_mirror(members)
            except Exception as error:
                self._refuse(members[0][0], "raid", error)
        self._members.clear()

    def _assemble_mirror(self, members: list[tuple[str, Reader, Member]]) -> None:
        from imagefs.volume.mdraid import freshest, is_stale

        best = freshest([member for _, _, member in members])
        first = members[0][0]
        what = members[0][2]
        why = ""
        if what.level != 1:
            why = f"it is a part of {what.level_text}, of which only mirrors (RAID 1) can be read"
        elif best is None:
            why = "no member of this mirror is known to be whole"
        elif best.reshaping:
            why = "the mirror was being reshaped when the image was made"
        if best is None or why:
            for name, _, _ in members:
                self.containers[name] = Container(
                    "raid", "refused", f"{name} (Linux RAID) cannot be opened: {why}"
                )
            return
        number = next(i for i, each in enumerate(members) if each[2] is best)
        source = members[number][0]
        for name, _, member in members:
            stale = ", and is out of date" if is_stale(member, best) else ""
            if name == first:
                read = "" if source == first else f", read from {source}"
                message = (
                    f"{name} is a member of a mirror (RAID 1, {len(members)} of {member.members} here){stale}"
                )
                self.containers[name] = Container(
                    "raid", "open", f"{message}; what it holds is {first}.1{read}"
                )
            else:
                message = f"{name} is a member of the mirror that is shown as {first}.1{stale}"
                self.containers[name] = Container("raid", "member", message)
        content: Reader = SliceReader(members[number][1], best.start, best.size)
        if best.bad:
            firsts, ends = zip(*best.bad, strict=True)
            content = RefusingReader(
                content, firsts, ends, "are known to be bad on this member of the mirror"
            )
        self._add(Volume(1, 0, content.size, "", what.array, what.name, "raid", inside=first), content)

    # -- volume groups -----------------------------------------------------------------------------

    def _lvm(self, name: str, reader: Reader) -> None:
        from imagefs.volume.lvm import read_physical

        found = read_physical(reader)
        if found is None:
            raise BrowseError("its label is damaged")
        group = found.group_id or f"none but {found.id}"
        self._physical.setdefault(group, []).append((name, found))

    def _assemble_groups(self) -> None:
        groups = self._physical
        self._join_bare(groups)
        self._physical = {}
        for members in groups.values():
            members.sort(key=lambda each: natural(each[0]))
            first, group = members[0][0], next((each.group_name for _, each in members if each.group), "")
            if not group:
                message = f"{first} is a physical volume of LVM without a volume group"
                self.containers[first] = Container("lvm2", "member", message)
                continue
            for name, _ in members:
                where = "" if name == first else f", which is shown below {first}"
                state = "open" if name == first else "member"
                message = f"{name} is a physical volume of the volume group {group} (LVM){where}"
                self.containers[name] = Container("lvm2", state, message)
            try:
                self._add_logical(first, [each for _, each in members])
            except Exception as error:
                self._refuse(first, "lvm2", error)

    @staticmethod
    def _join_bare(groups: dict[str, list[tuple[str, PhysicalVolume]]]) -> None:
        """Physical volumes without metadata of their own belong to the group that names them."""
        for key in [key for key, members in groups.items() if members[0][1].group is None]:
            bare = groups[key][0][1].id
            for other, members in groups.items():
                group = members[0][1].group
                disks = group.get("physical_volumes", {}) if group else {}
                ids = [
                    str(each.get("id", "")).replace("-", "")
                    for each in disks.values()
                    if isinstance(each, dict)
                ]
                if other != key and bare in ids:
                    members.extend(groups.pop(key))
                    break

    def _add_logical(self, first: str, members: list[PhysicalVolume]) -> None:
        from imagefs.volume.lvm import logical_volumes

        for number, each in enumerate(logical_volumes(members), 1):
            volume = Volume(number, 0, each.size, "", each.id, each.name, "lvm", inside=first)
            self._add(volume, each.reader)
            if each.reader is None:
                message = f"{volume.id} ({each.name}) cannot be opened: {each.refused}"
                self.containers[volume.id] = Container("lvm2", "refused", message)

    # -- encrypted ---------------------------------------------------------------------------------

    def _luks(self, name: str, reader: Reader) -> None:
        from imagefs.volume.luks import read_header

        header = read_header(reader)
        kind = f"LUKS{header.version}"
        secret = self._secret(name)
        if header.refused:
            raise BrowseError(header.refused)
        if secret is None:
            needs = ("passphrase", "key file")
            self._lock(name, "luks", kind, needs)
            return
        key = self._unlocked(name, kind, secret, partial(_luks_key, reader, header, secret))
        plain = self._decrypted(reader, header, key)
        self.containers[name] = Container(
            "luks", "open", f"{name} is encrypted ({kind}); what it holds is {name}.1"
        )
        self._add(Volume(1, 0, plain.size, "", header.uuid, header.label, "luks", inside=name), plain)

    @staticmethod
    def _decrypted(reader: Reader, header: LuksHeader, key: bytes) -> Reader:
        from imagefs.block.sectorcipher import DecryptedReader, SectorCipher

        size = reader.size if header.size is None else header.size
        plain = DecryptedReader(
            reader,
            SectorCipher(header.cipher, key),
            start=header.start,
            size=size,
            sector=header.sector,
            sector_size=header.sector_size,
        )
        body = SliceReader(reader, header.start, plain.size)
        return LostReader(plain, partial(lost_in, body, header.sector_size))

    def _bitlocker(self, name: str, reader: Reader) -> None:
        parser = self._parser(reader, "bitlocker")
        protectors = [str(each) for each in parser.ask("protectors")]
        secret = self._secret(name)
        if secret is None and protectors:
            self._lock(name, "bitlocker", "BitLocker", tuple(protectors))
            return
        given = secret or Secret(b"")
        work = partial(parser.ask, "unlock", [given.data], given.path)
        content = self._unlocked(name, "BitLocker", given, work)
        plain = LostReader(content, partial(lost_in, reader, 4096), reader)
        self.containers[name] = Container(
            "bitlocker", "open", f"{name} is encrypted (BitLocker); what it holds is {name}.1"
        )
        self._add(Volume(1, 0, content.size, "", "", "", "bitlocker", inside=name), plain)

    def _secret(self, name: str) -> Secret | None:
        return self._secrets.get(name)

    def _lock(self, name: str, kind: str, said: str, needs: tuple[str, ...]) -> None:
        message = f"{name} is locked ({said}): --unlock {name} asks for its {' or '.join(needs)}"
        self.containers[name] = Container(kind, "locked", message, needs)

    def _unlocked(self, name: str, kind: str, secret: Secret, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, or why not: the user gave a secret and must hear of it."""
        try:
            with self._waiting(f"unlocking {name}"):
                found = work()
        except ImagefsError as error:
            said = f"{name} ({kind}) cannot be unlocked: {error.message}"
            secret.refusal = Locked(said, hint=error.hint, volume=name)
            raise secret.refusal from error
        secret.opened = True
        return found

    # -- points in time ----------------------------------------------------------------------------

    def _shadows(self, name: str, reader: Reader) -> None:
        if not has_shadows(reader):
            return
        from imagefs.ops.volumeparser import LaterReader, lost_of_shadow

        sure = SureReader(reader, "of the volume, which a shadow copy needs, are not in this image")
        try:
            parser = self._parser(sure, "shadows")
            stores = parser.ask("stores")
        except ImagefsError as error:
            hint = f"; {error.hint}" if error.hint else ""
            message = f"{name} may have shadow copies that cannot be read: {error.message}{hint}"
            self.containers[name] = Container("ntfs", "open", message)
            return
        moment = _moments()
        for number, made_ns, size, unique in stores:
            content = LaterReader(int(size), partial(parser.ask, "open", number))
            kept = partial(lost_of_shadow, reader, partial(parser.ask, "kept", number), int(size))
            volume = Volume(
                number + 1,
                0,
                int(size),
                "",
                str(unique),
                "",
                "shadow copy",
                inside=name,
                moment=moment(number, made_ns),
            )
            self._add(volume, LostReader(content, kept, reader), made_ns)

    # -- APFS --------------------------------------------------------------------------------------

    def _apfs(self, name: str, reader: Reader) -> None:
        """What is encrypted in a container, and its snapshots. It is browsed as what it is: nothing lies inside it."""
        from imagefs.ops.volumeparser import VolumeParser

        with VolumeParser(reader, "apfs") as parser:
            try:
                self._snapshots(name, reader, *parser.ask("snapshots"))
            except ImagefsError as error:
                said = f"{name} may have snapshots that cannot be read: {error.message}"
                self.containers[name] = Container("apfs", "open", said)
            encrypted = parser.ask("encrypted")
        before = self.containers.get(name)
        if encrypted:
            self._apfs_keys(name, reader)
        after = self.containers.get(name)
        if before is not None and after is not None and after is not before:  # both are to be told
            said = "; ".join(filter(None, (after.message, before.message)))
            self.containers[name] = replace(after, message=said)

    def _apfs_keys(self, name: str, reader: Reader) -> None:
        from imagefs.ops.volumeparser import VolumeParser

        secret = self._secret(name)
        with VolumeParser(reader, "apfs keys") as parser:
            try:
                locked = {str(uuid) for uuid in parser.ask("locked")}
                if not locked:
                    raise BrowseError("it is encrypted with a key that only the Mac's chip has")
            except ImagefsError as error:
                self._refuse(name, "apfs", error)
                if secret is not None:
                    secret.refusal = Locked(self.containers[name].message, volume=name)
                return
            if secret is None:
                self._lock(name, "apfs", "APFS", ("password", "recovery key"))
                return
            keys = self._unlocked(name, "APFS", secret, partial(parser.ask, "key", [secret.data]))
        self._keys[name] = {str(uuid): bytes(key) for uuid, key in keys}
        left = len(locked - self._keys[name].keys())
        if left:
            said = f"{name} is encrypted (APFS): {left} of its volumes have other secrets, and stay locked"
            self.containers[name] = Container("apfs", "locked", said)
        else:
            self.containers[name] = Container("apfs", "open", "")

    def _snapshots(self, name: str, reader: Reader, lost: list[str], found: list[Any]) -> None:
        from imagefs.browse.apfssnapshots import as_of

        moment = _moments()
        for number, (transaction, title, made_ns, changes) in enumerate(found, 1):
            content = as_of(reader, [(int(place), bytes(raw)) for place, raw in changes])
            volume = Volume(
                number,
                0,
                content.size,
                "",
                "",
                str(title),
                "snapshot",
                inside=name,
                moment=moment(int(transaction), int(made_ns)),
            )
            self._add(volume, content, int(made_ns))
        if lost:
            said = f"{name} has snapshots that cannot be read ({len(lost)}): {lost[0]}"
            self.containers[name] = Container("apfs", "open", said)

    def _parser(self, reader: Reader, parser: str) -> VolumeParser:
        from imagefs.ops.volumeparser import VolumeParser

        self._parsers.append(VolumeParser(reader, parser))
        return self._parsers[-1]


def _moments() -> Callable[[int, int], str]:
    """Gives each point in time of a volume its name, by its number and its time in ns since 1970."""
    seen = set[str]()

    def moment(number: int, made_ns: int) -> str:
        found = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(made_ns // 10**9))
        found += f"~{number}" if found in seen else ""
        seen.add(found)
        return found

    return moment


def _luks_key(reader: Reader, header: LuksHeader, secret: Secret) -> bytes:
    """The key that ``secret`` gives, made once for each header: that may take seconds. Raises Locked, BrowseError."""
    from imagefs.ops.volumeparser import VolumeParser

    if header not in secret.keys:
        memory = max((slot.kdf.memory for slot in header.slots), default=0) << 10
        try:
            with VolumeParser(reader, "luks", memory=_KEY_MEMORY + memory) as parser:
                key = parser.ask("key", [secret.data])
        except ImagefsError as error:
            key = error
        if not isinstance(key, bytes | ImagefsError):
            key = BrowseError("its key cannot be had")
        secret.keys[header] = key
    found = secret.keys[header]
    if isinstance(found, ImagefsError):
        raise found
    return found


_NAMES = {"raid": "Linux RAID", "lvm2": "LVM", "luks": "LUKS", "bitlocker": "BitLocker", "apfs": "APFS"}
