"""webdataset tars as sources: audited, then read by offset. Nothing is unpickled, nothing unpacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ...cache.errors import CorpusError
from ...cache.keys import caption_key, stem, tar_key
from ...cache.ledger import Failure
from ...cache.plan import Piece
from ...cache.remote import Place
from ..encoders.base import Item, Modality
from .audit import NEEDS_DECODING, Audit, Member, Sample, audit_tar
from .base import CorpusSettings, Survey, Task
from .caption_files import captions_in
from .columns import CAPTIONS, caption_problem, captions_of
from .digest import FilesDigest, read_ends
from .folders import caption_and_record
from .lines import stale


@dataclass(frozen=True)
class TarSource:
    """One archive, one unit; keys are ``<tar stem>/<__key__>``."""

    name: str
    place: Place
    modality: Modality
    settings: CorpusSettings

    @property
    def root(self) -> Place:
        """The archive itself."""
        return self.place

    @property
    def prefix(self) -> str:
        """``<tar stem>/``."""
        return f"{stem(self.name)}/"

    def explicit_keys(self) -> Iterator[tuple[str, str]]:
        """Nothing: keys are named inside the archive, under its prefix."""
        return iter(())

    def holds(self, key: str) -> bool:
        """Whether a sample has that key."""
        return any(self.prefix + sample.key == key for sample in self._audit().samples)

    def survey(self, task: Task) -> Survey:
        """A tar is planned once, whole."""
        identity = self._identity()
        if not task.earlier:
            task.packer.add(Piece("tar", self.name, None, identity))
            return Survey()
        if any(piece.identity == identity for piece in task.earlier):
            return Survey(known=1)
        return Survey(changed=(self.name,))

    def read(self, piece: Piece) -> Iterator[Item | Failure]:
        """Remarks on the archive, then its samples in order."""
        if self._identity() != piece.identity:
            raise stale(self.place, "its size, first or last bytes are other")
        audit = self._audit()
        yield from self._remarks(audit)
        kinds = {member.kind for sample in audit.samples for member in sample.members.values()}
        if not kinds & self._wanted():
            return
        expected = audit.expected()
        with self.place.open("rb") as handle:
            for sample in audit.samples:
                yield from self._sample(handle, sample, expected)

    def _wanted(self) -> set[str]:
        """Kinds of member that make an item."""
        return {"caption", "record"} if self.modality == "text" else {self.modality}

    def _audit(self) -> Audit:
        try:
            return audit_tar(self.place, self.settings.tar_key, self.settings.pattern)
        except OSError as error:
            raise CorpusError(f"the tar cannot be read: {error.strerror}", where=str(self.place)) from error

    def _identity(self) -> str:
        try:
            size = self.place.stat().st_size
            ends = read_ends(self.place, size)
        except OSError as error:
            raise CorpusError(f"the tar cannot be read: {error.strerror}", where=str(self.place)) from error
        digest = FilesDigest()
        digest.add(self.name, size, ends)
        return digest.hexdigest()

    def _remarks(self, audit: Audit) -> Iterator[Failure]:
        """Remarks on the whole archive: how it ends, what is not read, what it lacks."""
        tar = stem(self.name)
        if audit.end is not None:
            message = f"{self.name}: {audit.end}; {audit.whole()} whole samples"
            yield Failure(tar, "audit", "DamagedTar", message, lost=False)
        for reason, count in sorted(audit.ignored.items()):
            if count:
                message = f"{self.name}: {count} members are no samples: {reason}"
                yield Failure(tar, "audit", "NoSample", message, lost=False)
        kinds = Counter(member.kind for sample in audit.samples for member in sample.members.values())
        for kind, count in sorted(kinds.items()):
            if kind.startswith("."):
                why = "would need unpickling" if kind[1:] in NEEDS_DECODING else "are of a type that is not decoded"
                yield Failure(tar, "audit", "NotDecoded", f"{self.name}: {count} {kind} members {why}", lost=False)
        if audit.samples and not self._wanted() & kinds.keys():
            found = ", ".join(sorted(kinds))
            message = f"{self.name}: no {self.modality} member in {len(audit.samples)} samples (found {found})"
            yield Failure(tar, "audit", "NoMember", message, lost=False)
        elif not audit.samples and audit.end is None:
            yield Failure(tar, "audit", "EmptyTar", f"{self.name}: no samples", lost=False)

    def _sample(self, handle: BinaryIO, sample: Sample, expected: set[str]) -> Iterator[Item | Failure]:
        """Items and failures of one sample."""
        key = tar_key(stem(self.name), sample.key)
        own = self._own(sample)
        if sample.repeats is not None:
            message = f"the key comes again at byte {sample.offset}; kept is the sample at byte {sample.repeats}"
            yield Failure(key, "audit", "DuplicateKey", message, lost=bool(own))
            return
        if len(own) > 1:
            names = ", ".join(member.name for member in own)
            advice = "" if self.settings.tar_key == "last-dot" else "; --tar-key last-dot ends keys at the last dot"
            yield Failure(key, "audit", "SeveralMembers", f"{len(own)} {self.modality} members: {names}{advice}")
            return
        if not own:
            cut = sample.cut
            ending = f"; the archive ends inside {cut.name}" if cut else ""
            yield Failure(key, "audit", "NoMember", f"the sample has no {self.modality} member{ending}")
            return
        if own[0].cut:
            yield Failure(key, "audit", "TruncatedMember", f"the archive ends inside the data of {own[0].name}")
            return
        yield from self._incomplete(key, sample, expected)
        yield from self._items(handle, key, sample, own[0])

    def _own(self, sample: Sample) -> list[Member]:
        """Members that the item is made of; a record stands in for a caption."""
        if self.modality == "text":
            return sample.of("caption") or sample.of("record")
        return sample.of(self.modality)

    def _incomplete(self, key: str, sample: Sample, expected: set[str]) -> Iterator[Failure]:
        """A remark on a sample that lacks, or has only part of, what the others have."""
        missing = sorted(expected - {member.kind for member in sample.members.values()})
        cut = sample.cut
        if missing:
            message = f"the sample has no {' and no '.join(missing)} member; most samples have one"
            yield Failure(key, "audit", "IncompleteSample", message, lost=False)
        elif cut is not None:
            message = f"the archive ends inside the data of {cut.name}"
            yield Failure(key, "audit", "IncompleteSample", message, lost=False)

    def _items(self, handle: BinaryIO, key: str, sample: Sample, own: Member) -> Iterator[Item | Failure]:
        if own.size > self.settings.max_item_bytes:
            yield Failure(key, "read", "TooLarge", f"{own.name} has {own.size} bytes")
            return
        texts = {m.suffix.rpartition(".")[2].lower(): _data(handle, m) for m in self._beside(sample)}
        caption, meta = caption_and_record(texts)
        if self.modality == "text":
            yield from self._captions(key, own, _data(handle, own), meta)
            return
        yield Item(key, _data(handle, own), name=own.name, caption=caption, source=self.name, meta=meta)

    def _beside(self, sample: Sample) -> list[Member]:
        limit = self.settings.max_item_bytes
        beside = (*sample.of("caption"), *sample.of("record"))
        return [member for member in beside if not member.cut and member.size <= limit]

    def _captions(self, key: str, own: Member, data: bytes, meta: dict[str, Any] | None) -> Iterator[Item | Failure]:
        """One item for each caption of the sample: a line of its caption file, or an entry of its record's list."""
        model = Item(key, "", name=own.name, source=self.name, meta=meta)
        if own.kind == "caption":
            yield from captions_in(data, model)
            return
        captions = captions_of(next((meta[n] for n in CAPTIONS if meta.get(n)), None) if meta else None)
        for number, one in enumerate(captions):
            full = key if len(captions) == 1 else caption_key(key, number)
            if problem := caption_problem(one):
                yield Failure(full, "read", "BadCaption", f"{own.name}: {problem}")
            else:
                yield replace(model, key=full, data=one, caption=one)


def _data(handle: BinaryIO, member: Member) -> bytes:
    handle.seek(member.offset)
    return handle.read(member.size)
