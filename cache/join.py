"""Joining two caches by key, never by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import DuplicateKeyError, JoinError
from .mapped import Indices
from .reader import Cache

_BLOCK = 1 << 16
_EXAMPLES = 3


@dataclass(frozen=True)
class JoinReport:
    """How many keys two caches share, with examples of those that they do not."""

    matched: int
    left_only: int
    right_only: int
    left_examples: tuple[str, ...] = ()
    right_examples: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        """Matched keys as a share of the larger cache; 0 if both are empty."""
        return self.matched / max(1, self.matched + max(self.left_only, self.right_only))

    def __str__(self) -> str:
        return f"{self.matched} keys matched, {self.left_only} only on the left, {self.right_only} only on the right"


@dataclass(frozen=True)
class Join:
    """Row numbers of the matched keys, (N,) int64 each, in the left cache's order."""

    left: Indices
    right: Indices
    report: JoinReport


def join(left: Cache, right: Cache, *, min_join: float = 0.99) -> Join:
    """Match the rows of two caches by key.

    Parameters
    ----------
    left, right : Cache
    min_join : float
        Least share of the larger cache that must be matched.

    Returns
    -------
    Join
        Rows in the order of ``left``.

    Raises
    ------
    JoinError
        Nothing or less than ``min_join`` is matched, or a matched key stands for different captions.
    DuplicateKeyError
        A key stands twice in one of the caches.
    """
    lefts, rights = _match(left, right)
    report = _report(left, right, lefts, rights)
    where = f"{left.path} (left), {right.path} (right)"
    if not len(lefts):
        raise JoinError(
            f"The two caches share no key. Left: {_shown(left)}. Right: {_shown(right)}.",
            where=where,
            todo="encode both from the same input, or import both with the same --keys",
        )
    _refuse_duplicates(left, lefts, rights)
    if report.fraction < min_join:
        raise JoinError(
            f"{report}: {report.fraction:.2%} of the larger cache, less than the {min_join:.2%} asked for. "
            f"Only on the left: {_listed(report.left_examples)}. Only on the right: {_listed(report.right_examples)}.",
            where=where,
            todo="encode what is missing, or allow it with a smaller --min-join",
        )
    _refuse_other_captions(left, right, lefts, rights, where)
    return Join(lefts, rights, report)


def _match(left: Cache, right: Cache) -> tuple[Indices, Indices]:
    """Rows of the shared keys, in the order of ``left``: (N,), (N,)."""
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(left), _BLOCK):
        found = right.index_of(left.key_range(start, min(start + _BLOCK, len(left))))
        hits = np.flatnonzero(found >= 0)
        lefts.append(start + hits)
        rights.append(found[hits])
    return np.concatenate(lefts), np.concatenate(rights)


def _report(left: Cache, right: Cache, lefts: Indices, rights: Indices) -> JoinReport:
    return JoinReport(
        matched=len(lefts),
        left_only=len(left) - len(lefts),
        right_only=len(right) - len(np.unique(rights)),
        left_examples=_unmatched(left, lefts),
        right_examples=_unmatched(right, rights),
    )


def _unmatched(cache: Cache, matched: Indices) -> tuple[str, ...]:
    alone = np.ones(len(cache), bool)
    alone[matched] = False
    return tuple(cache.keys(np.flatnonzero(alone)[:_EXAMPLES]))


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(map(repr, keys)) or "none"


def _shown(cache: Cache) -> str:
    return _listed(tuple(cache.key_range(0, min(_EXAMPLES, len(cache))))) if len(cache) else "no rows"


def _refuse_duplicates(left: Cache, lefts: Indices, rights: Indices) -> None:
    """Two rows of ``left`` that match one row of ``right`` have one key."""
    order = np.argsort(rights, kind="stable")
    twins = np.flatnonzero(np.diff(rights[order]) == 0)
    if len(twins):
        first, second = (int(lefts[order[int(twins[0]) + step]]) for step in (0, 1))
        raise DuplicateKeyError(
            f"Rows {first} and {second} have the same key {left.keys([first])[0]!r}.",
            where=str(left.path),
            todo="rename one of the two items, or choose another key column, and encode again",
        )


def _refuse_other_captions(left: Cache, right: Cache, lefts: Indices, rights: Indices, where: str) -> None:
    if not (left.has_column("caption") and right.has_column("caption")):
        return
    for start in range(0, len(lefts), _BLOCK):
        ours, theirs = lefts[start : start + _BLOCK], rights[start : start + _BLOCK]
        for row, one, other in zip(ours.tolist(), left.captions(ours), right.captions(theirs), strict=True):
            if one is not None and other is not None and one != other:
                raise JoinError(
                    f"The key {left.keys([row])[0]!r} stands for different captions: "
                    f"{one!r} on the left, {other!r} on the right.",
                    where=where,
                    todo="encode both caches from the same file",
                )
