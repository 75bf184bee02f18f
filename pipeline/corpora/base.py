"""What a corpus is, what planning it returns, and the settings that decide how inputs are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...cache.ledger import Failure
from ...cache.plan import Piece, Plan, Unit
from ...cache.remote import Place
from ..encoders.base import Item, Modality
from .keys import KeyCheck
from .packing import Packer

KnownKeys = Callable[[Sequence[str]], Sequence[bool]]


@dataclass(frozen=True)
class CorpusSettings:
    """How inputs are read.

    Parameters
    ----------
    key_column, caption_column, path_column : str, optional
        Columns (or JSON fields) of a table; by default the first that the table has of the usual names.
    tar_key : str
        Where the key of a tar member ends: at the first dot of its basename (webdataset's rule) or at the last.
    pattern : str, optional
        Shell pattern on the path relative to the input (or on the name in the archive); other files are left out.
    max_item_bytes : int
        A file or member that is larger is a failure, not an allocation.
    """

    key_column: str | None = None
    caption_column: str | None = None
    path_column: str | None = None
    tar_key: Literal["first-dot", "last-dot"] = "first-dot"
    pattern: str | None = None
    max_item_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class PlanUpdate:
    """What planning found beside the earlier plans.

    Parameters
    ----------
    units : tuple of Unit
        New units alone: the next generation of the plan.
    known : int
        Items that earlier plans or the cache already have; a tar, whose items only reading counts, is one.
    changed, vanished : tuple of str
        Names of what is no longer as it was planned, or no longer there. Their rows stay as they are.
    remarks : tuple of str
        Sentences on what was left out and why.
    """

    units: tuple[Unit, ...]
    known: int = 0
    changed: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Corpus(Protocol):
    """Inputs of one modality, as units of work."""

    @property
    def modality(self) -> Modality:
        """What the items are."""
        ...

    @property
    def roots(self) -> Mapping[str, str]:
        """Source name to absolute folder or file."""
        ...

    def plan(
        self, plans: Sequence[Plan], shard_size: int, *, first_shard: int = 0, known_keys: KnownKeys | None = None
    ) -> PlanUpdate:
        """Units of new input. Depends on the inputs, the earlier plans and the shard size alone."""
        ...

    def read(self, unit: Unit) -> Iterator[Item | Failure]:
        """Items and failures of a unit, in order."""
        ...


@dataclass(frozen=True)
class Survey:
    """What one source says when it is planned; see :class:`PlanUpdate`."""

    known: int = 0
    changed: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a source needs for being planned: its earlier pieces, where new ones go, and how keys are checked."""

    earlier: Sequence[Piece]
    packer: Packer
    keys: KeyCheck
    known_keys: KnownKeys


class Source(Protocol):
    """One text file, table, tar or folder of a corpus.

    ``prefix`` is what every key of the source begins with where keys are numbered or named inside the source, and None
    where keys are paths or a column.
    """

    @property
    def name(self) -> str:
        """Name of the source in plans: relative to the input that was given."""
        ...

    @property
    def place(self) -> Place:
        """Absolute path."""
        ...

    @property
    def root(self) -> Place:
        """What the ``source`` of an item is relative to, or the source itself where items name it."""
        ...

    @property
    def prefix(self) -> str | None:
        """What all keys begin with, or None."""
        ...

    def survey(self, task: Task) -> Survey:
        """Compare with the earlier pieces, and pack what is new."""
        ...

    def explicit_keys(self) -> Iterator[tuple[str, str]]:
        """Every explicit key with the place that it comes from; scanned again only to name a duplicate."""
        ...

    def holds(self, key: str) -> bool:
        """Whether a key that begins with ``prefix`` is one of this source's."""
        ...

    def read(self, piece: Piece) -> Iterator[Item | Failure]:
        """Items and failures of one piece, in order; raises CorpusError where the piece is not as planned."""
        ...
