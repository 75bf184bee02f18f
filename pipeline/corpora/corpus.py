"""A corpus over sources: plans them in order, reads units back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ...cache.errors import CorpusError
from ...cache.ledger import Failure
from ...cache.plan import Piece, Plan, Unit
from ..encoders.base import Item, Modality
from .base import KnownKeys, PlanUpdate, Source, Task
from .folders import FilesSource
from .keys import KeyCheck, admit
from .packing import Packer


def _nothing_known(keys: Sequence[str]) -> Sequence[bool]:
    return [False] * len(keys)


@dataclass(frozen=True)
class FileCorpus:
    """Sources of one modality, in the order of the inputs. Holds names only; every read opens its own files."""

    modality: Modality
    sources: tuple[Source, ...]
    remarks: tuple[str, ...] = ()

    @property
    def roots(self) -> Mapping[str, str]:
        """Source name to absolute folder or file."""
        return {source.name: str(source.root) for source in self.sources}

    def plan(
        self,
        plans: Sequence[Plan],
        shard_size: int,
        *,
        first_shard: int = 0,
        known_keys: KnownKeys | None = None,
    ) -> PlanUpdate:
        """Units of what earlier plans do not have.

        Parameters
        ----------
        plans : sequence of Plan
            The generations so far; none for a new cache.
        shard_size : int
            Rows a unit holds at most.
        first_shard : int
            Number of the first new unit.
        known_keys : callable, optional
            Tells for a block of keys which of them the cache already has.

        Raises
        ------
        DuplicateKeyError
            If two items would have one key; both places are named.
        """
        if shard_size < 1:
            raise CorpusError(f"the shard size is {shard_size}; it must be at least 1")
        keys = KeyCheck()
        for source in self.sources:
            keys.enter(source)
        earlier: dict[int, list[Piece]] = {id(source): [] for source in self.sources}
        absent: dict[str, None] = {}
        for piece in chain.from_iterable(unit.pieces for plan in plans for unit in plan.units):
            owner = self._owner(piece)
            if owner is None:
                absent[f"{piece.source} (not among the inputs given now)"] = None
            else:
                earlier[id(owner)].append(piece)
        packer = Packer(shard_size, first_shard)
        surveys = [
            source.survey(Task(earlier[id(source)], packer, keys, known_keys or _nothing_known))
            for source in self.sources
        ]
        keys.finish()
        packer.close()
        return PlanUpdate(
            units=tuple(packer.units),
            known=sum(survey.known for survey in surveys),
            changed=tuple(name for survey in surveys for name in survey.changed),
            vanished=(*(name for survey in surveys for name in survey.vanished), *absent),
            remarks=(*self.remarks, *(remark for survey in surveys for remark in survey.remarks)),
        )

    def read(self, unit: Unit) -> Iterator[Item | Failure]:
        """Items and failures of a unit, in order.

        Raises
        ------
        CorpusError
            If a source is gone, or its content is not what was planned.
        """
        for piece in unit.pieces:
            owner = self._owner(piece)
            if owner is None:
                raise CorpusError(
                    f"shard {unit.shard} is planned from {piece.source!r}, which is not among the inputs",
                    where=", ".join(source.name for source in self.sources),
                    todo=f"give the input that holds {piece.source!r} again",
                )
            for found in owner.read(piece):
                yield admit(found) if isinstance(found, Item) else found

    def _owner(self, piece: Piece) -> Source | None:
        """The source of a piece: by name, or the folder that has its files under another name."""
        named = [source for source in self.sources if source.name == piece.source]
        if named and not (piece.kind == "files" and len(self.sources) > 1):
            return named[0]
        if piece.kind == "files":
            path = piece.files[0][0]
            folders = [s for s in (*named, *self.sources) if isinstance(s, FilesSource)]
            return next((s for s in folders if path in s.known_paths), named[0] if named else None)
        return None
