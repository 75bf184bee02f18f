"""Audit of a tar before it is read: one pass over the headers gives the samples, and where and why the archive ends.

A common reader ends silently at the first header that it cannot read; here the end is looked at, and said.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import BinaryIO, Literal

from ...cache.remote import Place
from .digest import CHUNK
from .names import AUDIO, CAPTION, IMAGE, POINTS, RECORD

BLOCK = 512
# what webdataset's default decoding would unpickle, or load by a library of its own
NEEDS_DECODING = frozenset({"pyd", "pickle", "pkl", "pth", "pt", "ten", "tb", "mp", "msg", "msgpack", "cbor"})
_DAMAGE = (tarfile.TarError, ValueError, OSError, EOFError, OverflowError, LookupError, TypeError)
KeyRule = Literal["first-dot", "last-dot"]


@dataclass(frozen=True)
class Member:
    """A regular file of an archive; ``cut`` if the archive ends inside its data."""

    name: str
    suffix: str
    offset: int
    size: int
    cut: bool = False

    @property
    def kind(self) -> str:
        """``image``, ``audio``, ``pointcloud``, ``caption``, ``record``, or the suffix itself."""
        ext = self.suffix.rpartition(".")[2].lower()
        for kind, known in (
            ("image", IMAGE),
            ("audio", AUDIO),
            ("pointcloud", POINTS),
            ("caption", CAPTION),
            ("record", RECORD),
        ):
            if ext in known:
                return kind
        return f".{ext}"


@dataclass
class Sample:
    """The members of one key; ``repeats`` is the offset of the sample that had the key before."""

    key: str
    offset: int
    members: dict[str, Member] = field(default_factory=dict)
    repeats: int | None = None

    @property
    def kept(self) -> int:
        """Offset of the sample that keeps the key."""
        return self.offset if self.repeats is None else self.repeats

    def of(self, kind: str) -> list[Member]:
        """Members of one kind."""
        return [member for member in self.members.values() if member.kind == kind]

    @property
    def cut(self) -> Member | None:
        """The member inside which the archive ends, if it is one of these."""
        return next((member for member in self.members.values() if member.cut), None)


@dataclass
class Audit:
    """What is in an archive: samples in order, how it ends (None: as it should), and what is no sample."""

    samples: list[Sample] = field(default_factory=list)
    end: str | None = None
    ignored: Counter[str] = field(default_factory=Counter)

    def expected(self) -> set[str]:
        """Kinds that more than half of the samples have."""
        counts = Counter(kind for sample in self.samples for kind in {m.kind for m in sample.members.values()})
        return {kind for kind, count in counts.items() if 2 * count > len(self.samples)}

    def whole(self) -> int:
        """Samples that are not cut, repeat no key, and lack nothing that most have."""
        expected = self.expected()
        return sum(
            sample.cut is None and sample.repeats is None and expected <= {m.kind for m in sample.members.values()}
            for sample in self.samples
        )


def audit_tar(place: Place, rule: KeyRule = "first-dot", pattern: str | None = None) -> Audit:
    """Pass over the headers of an archive and group its members into samples."""
    split = split_first_dot() if rule == "first-dot" else split_last_dot
    audit = Audit()
    current: dict[str, Sample] = {}
    with place.open("rb") as handle:
        size = place.stat().st_size
        for info in _headers(handle, size, audit):
            name = _clean(info.name)
            if reason := _no_sample(info, name, pattern):
                audit.ignored[reason] += reason != "folder"
                continue
            key, suffix = split(name)
            if not key or suffix is None:
                audit.ignored["without extension"] += 1
                continue
            member = Member(name, suffix, info.offset_data, info.size, info.offset_data + info.size > size)
            _place(audit, current, key, member, info.offset)
    return audit


def _place(audit: Audit, current: dict[str, Sample], key: str, member: Member, offset: int) -> None:
    """Add a member to the sample of its key; a type that the sample has begins a second sample of that key."""
    sample = current.get(key)
    if sample is None or member.suffix in sample.members:
        sample = Sample(key, offset, repeats=None if sample is None else sample.kept)
        current[key] = sample
        audit.samples.append(sample)
    sample.members[member.suffix] = member


def _headers(handle: BinaryIO, size: int, audit: Audit) -> Iterator[tarfile.TarInfo]:
    """Headers in order; writes into ``audit.end`` how the archive ends if not as it should."""
    if size == 0:
        audit.end = "the file is empty (zero bytes)"
        return
    offset = 0
    try:
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
                if archive.offset <= offset:
                    break
                offset = archive.offset
                yield info
    except _DAMAGE as error:
        audit.end = _ending(handle, offset, size) or f"the archive cannot be read from byte {offset} on: {error}"
        return
    audit.end = _ending(handle, offset, size)


def _ending(handle: BinaryIO, offset: int, size: int) -> str | None:
    """Why the archive ends at ``offset``; None for an end-of-archive block with nothing after it."""
    if offset > size:
        return f"the archive is truncated: it ends at byte {size}, inside the data of a member"
    handle.seek(offset)
    block = handle.read(BLOCK)
    if not block:
        return f"the archive is truncated: it ends at byte {size} without the end-of-archive blocks"
    if block.strip(b"\0"):
        if offset == 0:
            packed = block[:2] == b"\x1f\x8b" or block[:3] == b"BZh" or block[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX")
            return "the file is compressed; unpack it first" if packed else f"the file is no tar archive ({size} bytes)"
        if len(block) < BLOCK:
            return f"the archive is truncated: it ends at byte {size}, inside a header"
        return f"the header at byte {offset} is damaged; what follows it is not read"
    if len(block) < BLOCK:
        return f"the archive is truncated: it ends at byte {size}, inside the end-of-archive blocks"
    while chunk := handle.read(CHUNK):
        if chunk.strip(b"\0"):
            return f"there is data after the end-of-archive block at byte {offset}; it is not read"
    return None


def _no_sample(info: tarfile.TarInfo, name: str, pattern: str | None) -> str | None:
    """Why a member is no file of a sample, or None."""
    if info.isdir():
        return "folder"
    if not info.isreg():
        return "links and special files"
    if info.issparse():
        return "sparse files"
    base = name.rpartition("/")[2]
    if base.startswith(".") or ("/" not in name and name.startswith("__") and name.endswith("__")):
        return "hidden files"
    if pattern is not None and not fnmatchcase(name, pattern):
        kind = Member(name, base.rpartition(".")[2], 0, 0).kind
        return None if kind in ("caption", "record") else "files that do not match the pattern"
    return None


def _clean(name: str) -> str:
    """A member name as text without a leading ``./``; never used as a path."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    while text.startswith("./"):
        text = text[2:]
    return text


def split_first_dot() -> Callable[[str], tuple[str | None, str | None]]:
    """webdataset's own rule: the key is the folder and the basename up to its first dot."""
    from webdataset.tariterators import base_plus_ext

    def split(name: str) -> tuple[str | None, str | None]:
        key, suffix = base_plus_ext(name)
        return key, suffix

    return split


def split_last_dot(name: str) -> tuple[str | None, str | None]:
    """The key is everything up to the last dot of the basename."""
    folder, slash, base = name.rpartition("/")
    head, dot, suffix = base.rpartition(".")
    return (f"{folder}{slash}{head}", suffix) if dot and head else (None, None)
