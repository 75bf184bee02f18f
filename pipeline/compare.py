"""Methods side by side: each fitted with several seeds from one recipe, evaluated on its sets, in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache._version import __version__
from ..cache.errors import ConnectorError, FitError, RecipeError
from ..cache.fsio import write_atomic
from ..trainer.connector import Connector
from ..trainer.device import resolve_device
from ..trainer.fit import fit, fit_identity
from ..trainer.methods import get_method
from ..trainer.methods.base import is_seeded
from ..trainer.recipe import Recipe, load_recipe, make_recipe
from ..trainer.recipe_checks import check_evals
from ..trainer.rendezvous import refuse_several
from ..trainer.run_folder import Progress, RunFolder
from .compare_figures import Figures, figures_of
from .compare_tables import csv_text, latex, tables, text
from .eval_sets import EvalSet, readable
from .recipe_evals import RecipeReport, measure_recipe

FORMAT, VERSION = "cmcr-comparison", 2  # pipeline/reporting reads it
TEXT, CSV, LATEX, JSON = "comparison.txt", "comparison.csv", "comparison.tex", "comparison.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One fit of a comparison: the row that it belongs to, its seed, its recipe and its folder."""

    name: str
    seed: int
    recipe: Recipe
    folder: Path


@dataclass(frozen=True)
class Failure:
    """A fit or an evaluation that did not succeed."""

    name: str
    seed: int
    what: str

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}, failed: {self.what}"


@dataclass
class Comparison:
    """Methods side by side.

    Parameters
    ----------
    folder : Path
        Connectors and tables.
    seeds : mapping of str to list of int
        By row: the seeds whose figures are there.
    reports : mapping of str to list of RecipeReport
        By row, one a seed.
    failures : list of Failure
    missing : int
        Fits that are still to do.
    """

    folder: Path
    seeds: dict[str, list[int]] = field(default_factory=dict)
    reports: dict[str, list[RecipeReport]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    missing: int = 0

    @property
    def ok(self) -> bool:
        """Whether every fit and evaluation succeeded."""
        return not self.failures and not self.missing

    @property
    def figures(self) -> Figures:
        """Mean, deviation and interval of every measure."""
        return figures_of(self.reports)

    @property
    def notes(self) -> tuple[str, ...]:
        """Seeds, failures, and what is still to do."""
        counts = sorted({len(seeds) for seeds in self.seeds.values() if seeds})
        several = f"± is over seeds ({', '.join(map(str, counts))}); " if counts and counts[-1] > 1 else ""
        lines = [f"{several}[ ] is the 95% bootstrap interval over queries"] if counts else []
        lines += [str(failure) for failure in self.failures]
        return tuple(lines + ([f"{self.missing} fits are still to do"] if self.missing else []))

    def tables(self) -> list[Any]:
        """Tables and lines for a terminal."""
        return [*tables(self.figures), *self.notes]

    def to_json(self, figures: Figures | None = None) -> dict[str, Any]:
        """The content of ``comparison.json``: no times, no paths; ``figures`` where they are at hand."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "cmcr": __version__,
            "seeds": self.seeds,
            "connectors": {name: [report.connector[0] for report in found] for name, found in self.reports.items()},
            **(figures or self.figures).to_json(),
            "failures": [vars(failure) for failure in self.failures],
            "missing": self.missing,
        }

    def write(self) -> None:
        """Replace the four files of the folder, each atomically."""
        figures = self.figures
        record = json.dumps(self.to_json(figures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for name, content in (
            (TEXT, text(figures, self.notes)),
            (CSV, csv_text(figures)),
            (LATEX, latex(figures)),
            (JSON, record),
        ):
            write_atomic(self.folder / name, content.encode("utf-8"))


def compare(
    recipe: Recipe | str | Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Comparison:
    """Fit methods with several seeds and evaluate each on the sets of the recipe.

    Run again, it reuses every fit whose settings, caches and version are the same, and goes on with an interrupted one.
    A method that fails is a line of the result; the others go on.

    Parameters
    ----------
    recipe : Recipe or path
        With ``[[eval]]`` sets, ``[[damage]]`` tables, or both.
    methods : sequence of str, optional
        Rows: names of methods, or of ``[compare.NAME]`` tables; those tables, else the recipe's own method, if not
        said.
    seeds : int or sequence of int
        So many seeds from 0, or these. A method that says that its seed decides nothing is fitted with the first one.
    output : path, optional
        Folder of connectors (``<row>-<seed>/``) and tables; ``compare`` beside the recipe, if not said.
    overwrite : bool
        Replace fits in the folder that were made with other settings; those with the same ones are reused even so.
    progress, say : callable, optional
        As for :func:`cmcr.fit`.

    Raises
    ------
    RecipeError
        There is nothing to evaluate on, or a method or setting is not known; nothing was fitted then.
    """
    refuse_several("a comparison")
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(output) if output is not None else plan.base / "compare"
    if not plan.eval and not plan.damage:
        raise RecipeError(
            "the recipe names nothing to compare on", where="[[eval]]", todo="add an [[eval]] table: docs/recipes.md"
        )
    runs = plan_runs(plan, folder, methods, seeds)
    check_evals(plan)
    sets = [EvalSet.open(plan, one) for one in plan.eval]
    folder.mkdir(parents=True, exist_ok=True)
    made = Comparison(folder, {run.name: [] for run in runs}, {run.name: [] for run in runs}, missing=len(runs))
    tell = say or (lambda line: None)
    for number, run in enumerate(runs, 1):
        try:
            connector, how = _fitted(run, overwrite=overwrite, progress=progress)
            report = measure_recipe(plan, sets, connector)
        except Exception as error:  # anything that one method raises must not cost the others their hours
            made.failures.append(Failure(run.name, run.seed, _what(error)))
            tell(f"{number}/{len(runs)} {made.failures[-1]}")
        else:
            made.seeds[run.name].append(run.seed)
            made.reports[run.name].append(report)
            tell(f"{number}/{len(runs)} {run.name}, seed {run.seed}: {how}{_headline(report)}")
        made.missing -= 1
        made.write()
    return made


def plan_runs(plan: Recipe, folder: Path, methods: Sequence[str] | None, seeds: int | Sequence[int]) -> list[Run]:
    """Every fit of a comparison, in order; settings are checked here, nothing is read or written.

    Raises
    ------
    RecipeError
    """
    names = list(methods) if methods else list(plan.compare) or [plan.fit.method]
    wanted = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not wanted or len(set(wanted)) < len(wanted) or len(set(names)) < len(names):
        raise RecipeError("methods and seeds are given once each, and at least one", where="--methods, --seeds")
    slugs = {name: re.sub(r"[^\w.-]+", "_", name) for name in names}
    if len(set(slugs.values())) < len(names):
        raise RecipeError(f"two methods would share a folder: {', '.join(names)}", where="--methods")
    runs = []
    for name in names:
        first = _row_recipe(plan, name, wanted[0])
        for seed in wanted if is_seeded(get_method(first.method)) else wanted[:1]:
            runs.append(Run(name, seed, _row_recipe(plan, name, seed), folder / f"{slugs[name]}-{seed}"))
    return runs


def _row_recipe(plan: Recipe, name: str, seed: int) -> Recipe:
    """The recipe of one row: the ``[fit]`` table, then ``[compare.NAME]``; options belong to the method they name."""
    table: Mapping[str, Any] = plan.compare.get(name, {})
    settings = {**plan.fit.model_dump(exclude_none=True, exclude={"output"}), **table}
    settings["method"] = table.get("method", name)
    inherited = plan.fit.options if settings["method"] == plan.fit.method else {}
    settings |= {"seed": seed, "options": {**inherited, **table.get("options", {})}}
    record = plan.model_dump(exclude_none=True, exclude={"eval", "damage", "compare"})
    return make_recipe({**record, "fit": settings}, base=plan.base, where=f"compare.{name}")


def _fitted(run: Run, *, overwrite: bool, progress: Progress | None) -> tuple[Connector, str]:
    """The connector of a run, reused, resumed or fitted; and which of them."""
    try:
        found: Connector | None = Connector.load(run.folder)
    except ConnectorError:
        found = None  # not there, or not finished: what lies there is for the fit to judge
    if found is not None:
        if found.info.made_from.get("identity") == fit_identity(run.recipe):
            return found.to(resolve_device(run.recipe.fit.device)), "reused"
        if not overwrite:
            raise FitError(
                "a fit with other settings, caches or another version of cmcr is in its folder",
                where=str(run.folder),
                todo="choose another --output, or --overwrite",
            )
    replace = found is not None
    if overwrite and not replace:
        try:
            RunFolder.check(run.folder, run.recipe.resolved(run.folder))
        except FitError:
            replace = True
    result = fit(run.recipe, output=run.folder, overwrite=replace, progress=progress)
    connector = result.connector.to(resolve_device(run.recipe.fit.device))
    return connector, f"fitted in {result.seconds:.1f} s"


def _headline(report: RecipeReport) -> str:
    """The first figure of the first set."""
    if not report.sets:
        return ""
    first = report.sets[0].there
    measure = first.measures[0]
    return f"; {report.sets[0].set.recipe.name} {readable(measure)} {100 * first.metrics.to_json()[measure]:.1f}"


def _what(error: Exception) -> str:
    """One line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = "; ".join(lines[:3]) or "no message"
    return said if isinstance(error, FitError | RecipeError) else f"{type(error).__name__}: {said}"
