"""From the reports of several fits to the figures of a comparison: values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..trainer.bootstrap import bootstrap, grouped_mean
from .damage import Damage
from .eval_sets import Direction, SetReport, rule
from .recipe_evals import RecipeReport

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """One measure of one method.

    Parameters
    ----------
    mean : float
        Over the seeds.
    sd : float, optional
        Standard deviation over the seeds (n − 1); None for one seed.
    low, high : float
        95% bootstrap interval over the queries, each query's measure averaged over the seeds first.
    values : tuple of float
        Of each seed.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """One direction of one evaluation set: figures by method and measure, shares between 0 and 1.

    ``about`` says what is relevant and how ties count; ``side`` is there (queries to gallery) or back; ``subject`` is
    what was evaluated, contents of the caches included.
    """

    name: str
    title: str
    about: str
    queries: int
    items: int
    chance: Mapping[str, float]
    figures: Mapping[str, Mapping[str, Figure]]
    side: str
    subject: Mapping[str, Any]

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns."""
        return tuple(self.chance)

    def best(self, measure: str) -> float:
        """The largest mean of a measure."""
        return max(figures[measure].mean for figures in self.figures.values())


@dataclass(frozen=True)
class DamagePart:
    """One look at a source space: what it scored before any projection, and by method what it lost.

    ``after`` and ``change`` are by method; the interval of a change is paired over the queries. ``asked`` is what
    decides the figures beside the method.
    """

    name: str
    space: str
    task: str
    queries: int
    answers: int
    before: float
    chance: float
    after: Mapping[str, Figure]
    change: Mapping[str, Figure]
    asked: Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """All figures of a comparison."""

    parts: tuple[Part, ...]
    damage: tuple[DamagePart, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able records; equal reports give equal content."""
        return {"parts": [asdict(part) for part in self.parts], "damage": [asdict(part) for part in self.damage]}


def figures_of(reports: Mapping[str, Sequence[RecipeReport]]) -> Figures:
    """Figures by method from its reports, one a seed; methods without any are left out."""
    done = {name: found for name, found in reports.items() if found}
    if not done:
        return Figures((), ())
    first = next(iter(done.values()))[0]
    parts = [
        _part({name: [report.sets[number] for report in found] for name, found in done.items()}, side)
        for number in range(len(first.sets))
        for side in ("there", "back")
    ]
    damage = [
        _damage_part({name: [report.damage[number] for report in found] for name, found in done.items()})
        for number in range(len(first.damage))
    ]
    return Figures(tuple(parts), tuple(damage))


def _part(reports: Mapping[str, Sequence[SetReport]], side: str) -> Part:
    directions: dict[str, list[Direction]] = {
        name: [getattr(report, side) for report in found] for name, found in reports.items()
    }
    opened, direction = next(iter(reports.values()))[0].set, next(iter(directions.values()))[0]
    one = opened.recipe
    measures = direction.measures
    by_chance = direction.chance.to_json()
    return Part(
        name=one.name,
        title=direction.title,
        about=f"relevant = {rule(one)}, ties {one.ties}",
        queries=direction.metrics.queries,
        items=direction.metrics.gallery,
        chance={measure: float(by_chance[measure]) for measure in measures},
        figures={
            name: _figures([[one.per_query(m) for m in measures] for one in found], direction.groups, measures)
            for name, found in directions.items()
        },
        side=side,
        subject=opened.subject(),
    )


def _damage_part(found: Mapping[str, Sequence[Damage]]) -> DamagePart:
    first = next(iter(found.values()))[0]
    figures = {
        name: _figures([[one.after, one.after - one.before] for one in rows], None, ("after", "change"))
        for name, rows in found.items()
    }
    return DamagePart(
        name=first.name,
        space=first.space,
        task=first.task,
        queries=len(first.before),
        answers=first.answers,
        before=float(first.before.mean()),
        chance=first.chance,
        after={name: both["after"] for name, both in figures.items()},
        change={name: both["change"] for name, both in figures.items()},
        asked=first.asked,
    )


def _figures(seeds: Sequence[Sequence[Floats]], groups: Ints | None, names: Sequence[str]) -> dict[str, Figure]:
    """Figures of several measures from their values for each query, by seed."""
    table = np.array(seeds)  # (S, M, Q)
    low, high = bootstrap(table.mean(0).T, groups)  # (M,)
    out = {}
    for number, name in enumerate(names):
        values = tuple(grouped_mean(of_seed, groups) for of_seed in table[:, number])
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        out[name] = Figure(float(np.mean(values)), sd, float(low[number]), float(high[number]), values)
    return out
