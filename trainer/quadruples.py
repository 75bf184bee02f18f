"""Pseudo-quadruples centred on each modality in turn: the training data of Ex-MCR.

"Various modality-centric data" of arXiv 2310.08884. A row has four vectors of one meaning: the overlapping modality
and the other modality, in the leaf space and in the base space. Whichever modality the row starts from, the other
vectors are softmax-weighted averages over banks; docs/method.md gives the equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .completion import complete_rows

if TYPE_CHECKING:
    from ..cache.bank import Bank
    from .pairs import Pairs, RowSource
    from .settings import FitSettings

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Centre = Literal["overlap", "leaf", "base"]
CENTRES: tuple[Centre, ...] = ("overlap", "leaf", "base")
_QUERIES = 8192


class Rows(Protocol):
    """Rows by number, of any length: a cache, a bank, or an array."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def rows(self, indices: Indices) -> Vectors:
        """Rows (B, D) float32."""
        ...


class Held:
    """Rows of an array (N, D) float32."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    @property
    def dim(self) -> int:
        """Width of a row."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, indices: Indices) -> Vectors:
        """Rows (B, D)."""
        out: Vectors = self.vectors[indices]
        return out


class Stacked:
    """Several sources of one width, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])  # (P + 1,)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.parts[0].dim

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, indices: Indices) -> Vectors:
        """Rows (B, D) in the order asked for."""
        out = np.empty((len(indices), self.dim), np.float32)  # (B, D)
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        for number, part in enumerate(self.parts):
            mine = owners == number
            if mine.any():
                out[mine] = part.rows(indices[mine] - self.starts[number])
        return out


class _Beside:
    """The overlap in both spaces side by side, as a bank of rows (N, D1 + D2)."""

    def __init__(self, first: RowSource, second: RowSource) -> None:
        self.first, self.second = first, second
        self.dim = first.dim + second.dim

    def __len__(self) -> int:
        return len(self.first)

    def blocks(self, size: int = 16384) -> Iterator[Vectors]:
        """All rows in order."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            yield np.concatenate([self.first.rows(rows), self.second.rows(rows)], axis=1)


def carry(queries: Vectors, first: RowSource, second: RowSource, tau: float, *, device: str = "cpu") -> Vectors:
    """Queries of one space (B, D1) to their average over the overlap, seen in both spaces: (B, D1 + D2).

    The softmax weights are those of the first space, exactly: a query padded with zeros has the same scores against
    rows [t1, t2] as against t1, and the weighted sum of those rows holds both averages.
    """
    padded = np.pad(queries, ((0, 0), (0, second.dim)))
    return complete_rows(padded, _Beside(first, second), tau, device=device).vectors


@dataclass(frozen=True)
class Quadruples:
    """Rows of training, N of them.

    Parameters
    ----------
    leaf, base : Rows
        The overlapping modality in the two spaces; not of unit length where averaged.
    leaf_other, base_other : Rows or None
        The other modality of each space; None in a space without a bank.
    parts : tuple of (str, int)
        What the rows are centred on, and how many they are, in order.
    """

    leaf: Rows
    base: Rows
    leaf_other: Rows | None
    base_other: Rows | None
    parts: tuple[tuple[Centre, int], ...]

    def __len__(self) -> int:
        return len(self.leaf)


def centred_rows(pairs: Pairs, leaf: str, base: str, centres: Sequence[Centre]) -> dict[Centre, int]:
    """How many rows each centre gives; none where the space has no bank."""
    banks = {"leaf": pairs.bank[leaf], "base": pairs.bank[base]}
    counts: dict[Centre, int] = {}
    for centre in CENTRES:
        bank = banks.get(centre)
        rows = pairs.N if centre == "overlap" else 0 if bank is None else len(bank)
        if centre in centres and rows:
            counts[centre] = rows
    return counts


def overlap_rows(pairs: Pairs, leaf: str, base: str) -> Quadruples:
    """The rows centred on the overlap, which the completions of the pairs are: nothing is computed."""
    return Quadruples(
        pairs.overlap[leaf],
        pairs.overlap[base],
        pairs.completed[leaf],
        pairs.completed[base],
        (("overlap", pairs.N),),
    )


def quadruples(pairs: Pairs, leaf: str, base: str, settings: FitSettings, centres: Sequence[Centre]) -> Quadruples:
    """Rows centred on every modality asked for.

    Parameters
    ----------
    pairs : Pairs
        With the completions of both overlaps.
    leaf, base : str
        The space to be led into the other, and the one that is kept.
    settings : FitSettings
        ``tau1`` and ``device``; a bank sampled by ``bank_rows`` gives as many rows. All averages are exact, whatever
        ``search`` says of the completions of the overlap. ``auto`` is the temperature that the completion of the space
        chose whose similarities are weighed.
    centres : sequence of str
        ``overlap``, ``leaf`` (each row of the leaf's bank), ``base`` (each row of the base's bank).
    """
    parts = [
        overlap_rows(pairs, leaf, base) if centre == "overlap" else _bank_centred(pairs, leaf, base, settings, centre)
        for centre in centred_rows(pairs, leaf, base, centres)
    ]
    return Quadruples(
        Stacked([part.leaf for part in parts]),
        Stacked([part.base for part in parts]),
        _stacked([part.leaf_other for part in parts]),
        _stacked([part.base_other for part in parts]),
        tuple(count for part in parts for count in part.parts),
    )


def _stacked(parts: Sequence[Rows | None]) -> Rows | None:
    """The parts as one source; None in a space without a bank, where every part lacks these rows."""
    there = [part for part in parts if part is not None]
    return Stacked(there) if there else None


def _bank_centred(pairs: Pairs, leaf: str, base: str, settings: FitSettings, centre: Centre) -> Quadruples:
    """M rows centred on the bank of the leaf or of the base, whose vectors are taken as they are."""
    near, far = (leaf, base) if centre == "leaf" else (base, leaf)
    bank, other = pairs.bank[near], pairs.bank[far]
    assert bank is not None  # centred_rows names no centre without a bank
    width = pairs.overlap[near].dim
    both = np.empty((len(bank), width + pairs.overlap[far].dim), np.float32)  # (M, D1 + D2)
    completed = None if other is None else np.empty((len(bank), other.dim), np.float32)  # (M, D2)
    tau = pairs.temperature(near, settings.tau1)
    for start, queries in _blocks(bank):
        rows = slice(start, start + len(queries))
        # equations 8 and 9: the weights of the near space average the overlap in both
        both[rows] = carry(queries, pairs.overlap[near], pairs.overlap[far], tau, device=settings.device)
        if completed is not None and other is not None:
            completed[rows] = _complete(
                both[rows, width:], other, pairs.temperature(far, settings.tau1), settings.device
            )  # equation 10
    here, there = Held(np.ascontiguousarray(both[:, :width])), Held(np.ascontiguousarray(both[:, width:]))
    made = None if completed is None else Held(completed)
    parts = ((centre, len(bank)),)
    return (
        Quadruples(here, there, bank, made, parts) if centre == "leaf" else Quadruples(there, here, made, bank, parts)
    )


def _complete(rows: Vectors, bank: Bank, tau: float, device: str) -> Vectors:
    """Completion of averaged rows, brought to unit length first: τ1 is meant for cosines."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return complete_rows(units, bank, tau, device=device).vectors


def _blocks(bank: Bank) -> Iterator[tuple[int, Vectors]]:
    start = 0
    for rows in bank.blocks(_QUERIES):
        yield start, rows
        start += len(rows)
