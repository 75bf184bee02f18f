"""Source-space damage: how well a space still does its own job after projection; see ``docs/evaluation.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ..cache.bank import Bank, sample_rows
from ..cache.errors import CacheError, RecipeError
from ..cache.reader import Cache, open_cache
from ..trainer.bootstrap import bootstrap
from ..trainer.connector import Connector
from ..trainer.metrics import chance, retrieval_metrics
from ..trainer.ranking import Relevance
from ..trainer.recipe import Recipe
from ..trainer.recipe_tables import DamageRecipe
from .eval_sets import rows_of
from .evaluation.results import digest_of_file
from .relevance import read_labels, relevance_of
from .shared import SharedView, Vectors, as_connector

if TYPE_CHECKING:
    from rich.table import Table

Floats = npt.NDArray[np.float64]
ZERO_SHOT, RETRIEVAL, NEIGHBOURS = "zero-shot top-1", "retrieval R@1", "nearest before, among 10 first after"
# Rows that the look at neighbours takes, seeded; a head may cost thousands of operations a row.
_ASKED, _ANSWERS = 1000, 4096


@dataclass(frozen=True)
class Damage:
    """A task inside one space, before projection and after.

    Parameters
    ----------
    name, space, task : str
    before, after : (Q,) float64
        Share of success of each query; ties count their expectation under random order.
    chance : float
        What a random order would score.
    answers : int
        Classes or gallery items to choose from.
    asked : mapping
        What decides the figures beside the connector: contents of the caches, and what is right. Equal in two results
        that may be compared.
    """

    name: str
    space: str
    task: str
    before: Floats
    after: Floats
    chance: float
    answers: int
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> float:
        """Mean after minus mean before; negative is damage."""
        return float(self.after.mean() - self.before.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of the change, over the queries, paired."""
        low, high = bootstrap(self.after - self.before)
        return float(low[0]), float(high[0])

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; equal input gives equal content."""
        low, high = self.interval
        return {
            "name": self.name,
            "space": self.space,
            "task": self.task,
            "queries": len(self.before),
            "answers": self.answers,
            "before": float(self.before.mean()),
            "after": float(self.after.mean()),
            "change": self.change,
            "interval": [low, high],
            "chance": self.chance,
            "asked": dict(self.asked),
        }


def damage(
    before: tuple[Vectors, Vectors], after: tuple[Vectors, Vectors], relevance: Relevance, *, k: int = 1
) -> tuple[Floats, Floats]:
    """Success at ``k`` of each query that has a relevant answer, before and after.

    Parameters
    ----------
    before, after : pairs of (Q, D) and (A, D)
        Queries and answers (class vectors, or a gallery) in the space itself, and projected.
    relevance : Relevance
        Which answers are right for each query.
    k : int
        A query succeeds with a right answer among the first k.

    Returns
    -------
    before, after : (Q',) float64
    """
    first, second = (
        retrieval_metrics(queries, answers, relevance, ks=(k,)).per_query.recall[:, 0]
        for queries, answers in (before, after)
    )
    return first, second


def measure_damage(plan: Recipe, one: DamageRecipe, connector: Connector) -> Damage:
    """What a ``[[damage]]`` table of a recipe asks for.

    Raises
    ------
    CacheError, CmcrError
        The caches are in different spaces, or nothing is relevant.
    """
    return _measure(one, plan.path, connector)


def _measure(one: DamageRecipe, path: Callable[[str], Path], connector: Connector) -> Damage:
    query = open_cache(path(one.query))
    answers = open_cache(path(one.classes or one.gallery or ""))
    pairs = None if one.pairs is None else path(one.pairs)
    if one.classes is None:
        relevance = relevance_of(query, answers, pairs=pairs, label=one.label)
    else:
        relevance = class_relevance(query, answers, one.label or "", one.class_label)
    task = RETRIEVAL if one.classes is None else ZERO_SHOT
    found = inside_one_space(one.name, task, query, answers, relevance, connector)
    right = {
        "label": one.label,
        "class_label": one.class_label,
        "pairs": None if pairs is None else digest_of_file(pairs),
    }
    return replace(found, asked={**found.asked, **right})


def evaluate_damage(
    connector: Connector | str | Path,
    query: str | Path,
    *,
    classes: str | Path | None = None,
    gallery: str | Path | None = None,
    label: str | None = None,
    class_label: str | None = None,
    pairs: str | Path | None = None,
) -> Damage:
    """One look at damage without a recipe; arguments as in a ``[[damage]]`` table.

    Raises
    ------
    RecipeError, CacheError, CmcrError
    """
    given = {"classes": classes, "gallery": gallery, "pairs": pairs, "label": label, "class_label": class_label}
    return _measure(damage_question(query, **given), Path, as_connector(connector))


def damage_question(query: str | Path, **given: str | Path | None) -> DamageRecipe:
    """A checked ``[[damage]]`` table from its fields; the name is the query's folder.

    Raises
    ------
    RecipeError
        Neither or both of classes and gallery are given, or fields that do not belong together.
    """
    record = {"name": Path(query).name, "query": str(query), **{k: str(v) for k, v in given.items() if v is not None}}
    try:
        return DamageRecipe.model_validate(record)
    except ValidationError as error:
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise RecipeError(what, where="evaluate damage", todo="for example --classes CACHE --label label") from None


def class_relevance(query: Cache, classes: Cache, label: str, class_label: str | None = None) -> Relevance:
    """A class is right for the queries that have its name as label; names are keys, or a field of /meta."""
    names = classes.keys() if class_label is None else read_labels(classes, class_label)
    labels = read_labels(query, label)
    relevance = Relevance.from_labels(
        ["\0no label of a query" if name is None else name for name in labels],
        ["\0no name of a class" if name is None else name for name in names],
    )
    if not relevance.counts().any():
        examples = ", ".join(sorted({name for name in labels if name is not None})[:5])
        known = ", ".join(sorted(name for name in names if name is not None)[:5])
        raise CacheError(
            f"No label {label!r} of the queries is the name of a class.",
            where=f"labels such as {examples}; classes such as {known}",
            todo="import the classes with their names as keys, or name their field: class_label",
        )
    return relevance


def inside_one_space(
    name: str, task: str, query: Cache, answers: Cache, relevance: Relevance, connector: Connector
) -> Damage:
    """Success at 1 of queries among answers of the same space, before and after projection."""
    if query.manifest.space_id != answers.manifest.space_id:
        raise CacheError(
            f"Damage is measured inside one space; these caches are in {query.manifest.space_name!r} and "
            f"{answers.manifest.space_name!r}.",
            where=f"{query.path}; {answers.path}",
        )
    bare, projected = (
        (rows_of(SharedView(query, used)), rows_of(SharedView(answers, used))) for used in (None, connector)
    )
    before, after = damage(bare, projected, relevance)
    space = connector.space_of(query.manifest)
    by_chance = chance(relevance, ks=(1,)).recall[1]
    asked = {"query": query.content_id(), "answers": answers.content_id()}
    return Damage(name, space, task, before, after, by_chance, len(answers), asked)


def neighbours_kept(plan: Recipe, space: str, connector: Connector, *, seed: int = 0) -> Damage | None:
    """Overlap to bank, without labels: is the bank item that was nearest before among the first ten after?

    Up to 1,000 overlap items and 4,096 bank rows take part, seeded samples of more. None in a space without a bank.
    """
    tables = plan.space[space]
    if not tables.bank:
        return None
    overlap = open_cache(plan.path(tables.overlap))
    bank = Bank([open_cache(plan.path(path)) for path in tables.bank], rows=_ANSWERS, seed=seed)
    queries = overlap.rows(sample_rows(len(overlap), min(_ASKED, len(overlap)), seed))  # (Q, D)
    gallery = bank.rows(np.arange(len(bank)))  # (A, D)
    nearest = (queries @ gallery.T).argmax(1)  # (Q,)
    relevance = Relevance.from_rows(np.arange(len(queries)), nearest, len(queries), len(gallery))
    head = connector.space_of(overlap.manifest)
    after = connector.project(queries, head), connector.project(gallery, head)
    was, now = damage((queries, gallery), after, relevance, k=10)
    by_chance = chance(relevance, ks=(10,)).recall[10]
    name, contents = f"{space}, overlap to bank", [cache.content_id() for cache in bank.caches]
    asked = {"query": overlap.content_id(), "answers": contents, "seed": seed, "most": [_ASKED, _ANSWERS]}
    return Damage(name, head, NEIGHBOURS, was, now, by_chance, len(gallery), asked)


def damage_table(rows: Sequence[Damage | Mapping[str, Any]]) -> Table:
    """What projection did to each space, or the records of it, for the terminal; shares in percent."""
    from rich.table import Table

    table = Table(title="Source-space damage: inside one space, percent", title_justify="left")
    for name in ("what", "space", "task"):
        table.add_column(name, overflow="fold")
    for name in ("queries", "before", "after", "change [95%]", "chance"):
        table.add_column(name, justify="right")
    for one in rows:
        row = one.to_json() if isinstance(one, Damage) else one
        low, high = row["interval"]
        change = f"{100 * row['change']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        shares = [f"{100 * row[name]:.1f}" for name in ("before", "after")]
        what = (row["name"], row["space"], row["task"], f"{row['queries']:,}")
        table.add_row(*what, *shares, change, f"{100 * row['chance']:.1f}")
    return table
