"""What a method trains on: joined overlap rows of two spaces, their completions and the memory banks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ..cache.bank import Bank
from ..cache.errors import CacheError, FitError
from ..cache.join import JoinReport, join
from ..cache.reader import Cache, open_cache
from .recipe import Recipe, load_recipe
from .spaces import check_space, describe_space

if TYPE_CHECKING:
    from .completed_cache import CompletionReport

Indices = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Say = Callable[[str], None]
Progress = Callable[[int, int], None]
_BLOCK = 1 << 13


@dataclass(frozen=True)
class RowSource:
    """Rows of a cache for the joined items, gathered through its memory map: at most a batch of them is in memory.

    Parameters
    ----------
    cache : Cache
    places : int64 array (N,), optional
        Row of the cache for each joined item; the same number when None.
    normalize : bool
        Unit rows; False gives completed rows as the completion left them.
    """

    cache: Cache
    places: Indices | None = None
    normalize: bool = True

    def __len__(self) -> int:
        return len(self.cache) if self.places is None else len(self.places)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return self.cache.dim

    def rows(self, indices: npt.ArrayLike) -> Vectors:
        """Rows (B, D) float32 of these joined items."""
        wanted = np.asarray(indices)
        return self.cache.rows(wanted if self.places is None else self.places[wanted], normalize=self.normalize)


@dataclass(frozen=True)
class Pairs:
    """The training data of a connector, keyed by space name.

    Parameters
    ----------
    names : (str, str)
        The two spaces, in the order of the recipe.
    overlap : mapping of str to RowSource
        Unit rows; row i of both is the same item.
    completed : mapping of str to RowSource or None
        The completion of the same items; None in a space without a bank, or where the method needs none.
    bank : mapping of str to Bank or None
    report : JoinReport
        How many keys the two overlap caches share; left is the first space.
    completions : mapping of str to CompletionReport
        What each completion did, and how many bank rows a completed row averages.
    """

    names: tuple[str, str]
    overlap: Mapping[str, RowSource]
    completed: Mapping[str, RowSource | None]
    bank: Mapping[str, Bank | None]
    report: JoinReport
    completions: Mapping[str, CompletionReport] = field(default_factory=dict)

    @property
    def N(self) -> int:
        """Joined items."""
        return len(self.overlap[self.names[0]])

    def __len__(self) -> int:
        return self.N

    def temperature(self, name: str, tau1: float | Literal["auto"]) -> float:
        """τ1 of one space: the number given, or what the completion of that space chose where it is ``auto``.

        Raises
        ------
        FitError
            It is ``auto``, and this space was not completed.
        """
        if tau1 != "auto":
            return tau1
        if name not in self.completions:
            raise FitError(
                f"tau1 is auto, and {name!r} has no completion to take it from",
                where=f"space {name!r}",
                todo="give the space a bank, or tau1 a number",
            )
        return self.completions[name].tau

    def keys(self, indices: npt.ArrayLike | None = None) -> list[str]:
        """Keys of joined items, or of all of them."""
        source = self.overlap[self.names[0]]
        wanted = np.arange(self.N) if indices is None else np.asarray(indices)
        return source.cache.keys(wanted if source.places is None else source.places[wanted])


def load_pairs(
    recipe: Recipe | str | Path,
    *,
    complete: bool = True,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Open, join and complete the caches of a recipe.

    Parameters
    ----------
    recipe : Recipe or path
    complete : bool
        Make the completions, or reuse them where the same query, bank and settings were completed before.
    say : callable, optional
        Gets one line a step, for people.
    progress : callable, optional
        Gets (rows done, rows to do) while a completion is made; each space counts from its own beginning.

    Raises
    ------
    JoinError
        The overlap caches share too few keys, or a key stands for different captions.
    FitError
        Both overlaps are of one encoder, or a bank is not of its space.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    first, second = recipe.space
    caches = {name: open_cache(recipe.path(space.overlap)) for name, space in recipe.space.items()}
    banks = {name: _open_bank(recipe, name, caches[name]) for name in recipe.space}
    _refuse_one_space(first, caches[first], second, caches[second])
    joined = join(caches[first], caches[second], min_join=recipe.fit.min_join)
    if say is not None:
        say(_joined_line(joined.report, first, second))
    places = {first: _compact(joined.left, caches[first]), second: _compact(joined.right, caches[second])}
    overlap = {name: RowSource(caches[name], places[name]) for name in caches}
    completed: dict[str, RowSource | None] = dict.fromkeys(caches)
    reports: dict[str, CompletionReport] = {}
    for name, bank in banks.items():
        if complete and bank is not None:
            completed[name], reports[name] = _completed(recipe, overlap[name], bank, progress)
            if say is not None:
                say(f"{name}: {reports[name].line()}")
                for line in reports[name].details():
                    say(f"{name}: {line}")
    return Pairs((first, second), overlap, completed, banks, joined.report, reports)


def _open_bank(recipe: Recipe, name: str, overlap: Cache) -> Bank | None:
    """The bank of one space, None where the recipe names none."""
    paths = [recipe.path(path) for path in recipe.space[name].bank]
    if not paths:
        return None
    caches = [open_cache(path) for path in paths]
    for cache in caches:
        check_space(overlap, cache)
    return Bank(caches, rows=recipe.fit.bank_rows, seed=recipe.fit.seed)


def _joined_line(report: JoinReport, first: str, second: str) -> str:
    """The join in a line, by the names of the spaces."""
    only = f"{report.left_only:,} only in {first}, {report.right_only:,} only in {second}"
    return f"joined {report.matched:,} rows by key ({only})"


def _refuse_one_space(first: str, one: Cache, second: str, other: Cache) -> None:
    """Two caches of one space share everything already; joining them is a mistake in the recipe."""
    if one.manifest.space_id == other.manifest.space_id:
        raise FitError(
            f"{first!r} and {second!r} are the same space, {describe_space(one)}: there is nothing to connect",
            where=f"{one.path} and {other.path}",
            todo="give overlap caches of two different encoders",
        )


def _compact(places: Indices, cache: Cache) -> Indices | None:
    """None where every row of the cache takes part in its own order: a million numbers less to hold."""
    whole = len(places) == len(cache) and (len(places) == 0 or bool((np.diff(places) == 1).all()))
    return None if whole else places


def _completed(
    recipe: Recipe, overlap: RowSource, bank: Bank, progress: Progress | None
) -> tuple[RowSource, CompletionReport]:
    """The completion of one space's overlap, made or reused, as rows of the joined items."""
    from .completed_cache import completed_cache
    from .device import resolve_device

    folder = None if recipe.fit.completions is None else recipe.path(recipe.fit.completions)
    device = str(resolve_device(recipe.fit.device))
    cache, report = completed_cache(
        overlap.cache, bank.caches, recipe.fit.completion(), folder, device=device, progress=progress
    )
    places = overlap.places if same_keys(overlap.cache, cache) else _by_key(overlap, cache)
    return RowSource(cache, places, normalize=False), report


def _by_key(overlap: RowSource, completed: Cache) -> Indices:
    """Rows of a completed cache by the keys of the joined items: (N,). A shard that came late stands at its end."""
    places = np.empty(len(overlap), np.int64)
    for start in range(0, len(overlap), _BLOCK):
        items = np.arange(start, min(start + _BLOCK, len(overlap)))
        keys = overlap.cache.keys(items if overlap.places is None else overlap.places[items])
        places[items] = completed.index_of(keys)
    if len(overlap.cache) != len(completed) or (places < 0).any():
        raise CacheError(
            "a completed cache has other keys than its query",
            where=str(completed.path),
            todo="delete that folder; the next fit makes it again",
        )
    return places


def same_keys(one: Cache, other: Cache) -> bool:
    """Whether two caches have the same keys in the same order; compared in blocks."""
    if len(one) != len(other):
        return False
    starts: Sequence[int] = range(0, len(one), _BLOCK)
    return all(
        one.key_range(start, min(start + _BLOCK, len(one))) == other.key_range(start, min(start + _BLOCK, len(one)))
        for start in starts
    )
