"""What a recipe evaluates on, run on a connector: its ``[[eval]]`` sets, and the damage to the source spaces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache._version import __version__
from ..cache.errors import CmcrError
from ..cache.fsio import write_atomic
from ..trainer.connector import Connector
from ..trainer.recipe import Recipe, load_recipe
from ..trainer.run_folder import EVALS
from .damage import Damage, damage_table, measure_damage, neighbours_kept
from .eval_sets import EvalSet, SetReport
from .evaluation.intervals import HOW
from .shared import as_connector, connector_fingerprint

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "cmcr-recipe-evaluation", 3


@dataclass(frozen=True)
class RecipeReport:
    """Figures of the sets of a recipe, in its order, and what the projection did to each space.

    ``connector`` is its fingerprint and method.
    """

    sets: tuple[SetReport, ...]
    damage: tuple[Damage, ...]
    connector: tuple[str, str]

    def __bool__(self) -> bool:
        return bool(self.sets or self.damage)

    def tables(self) -> list[Table | str]:
        """What the terminal shows."""
        parts: list[Table | str] = []
        for report in self.sets:
            parts += [report.table(), *report.notes]
        return [*parts, damage_table(self.damage)] if self.damage else parts

    def to_json(self) -> dict[str, Any]:
        """The content of ``eval.json``: no times, no absolute paths; equal input gives equal content."""
        fingerprint, method = self.connector
        return {
            "format": FORMAT,
            "version": VERSION,
            "connector": {"fingerprint": fingerprint, "method": method},
            "intervals": HOW,
            "evals": [report.to_json() for report in self.sets],
            "damage": [one.to_json() for one in self.damage],
            "versions": {"cmcr": __version__, "torch": version("torch"), "numpy": version("numpy")},
        }


def evaluate_recipe(
    recipe: Recipe | str | Path,
    connector: Connector | str | Path,
    *,
    output: str | Path | None = None,
    device: str | None = None,
) -> RecipeReport:
    """Run each ``[[eval]]`` and ``[[damage]]`` of a recipe and write all figures to ``eval.json``.

    Parameters
    ----------
    recipe : Recipe or path
        Its caches are relative to its folder.
    connector : Connector or path
        What was fitted.
    output : path, optional
        Folder of ``eval.json``; the folder of the connector, else the output of the recipe, if not said.
    device : str, optional
        Where heads and scores are computed; that of the recipe, if not said.

    Returns
    -------
    RecipeReport
        Empty, with nothing written, for a recipe that evaluates nothing.

    Raises
    ------
    CmcrError
        A cache is missing, empty or of another space; nothing is relevant; there is no folder to write to.
    """
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not plan.eval and not plan.damage:
        return RecipeReport((), (), ("", ""))
    folder = output or (plan.output if isinstance(connector, Connector) else connector)
    if folder is None:
        raise CmcrError("No folder for the figures is named.", todo="give output=, or the folder of the connector")
    loaded = as_connector(connector, device or plan.fit.device)
    report = measure_recipe(plan, [EvalSet.open(plan, one) for one in plan.eval], loaded)
    text = json.dumps(report.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(Path(folder) / EVALS, text.encode())
    return report


def measure_recipe(plan: Recipe, sets: list[EvalSet], connector: Connector) -> RecipeReport:
    """Figures of open sets and every look at damage, on the device of the connector; writes nothing."""
    device = str(connector.device)
    damage = [measure_damage(plan, one, connector) for one in plan.damage]
    damage += [found for name in plan.space if (found := neighbours_kept(plan, name, connector)) is not None]
    return RecipeReport(
        tuple(one.measure(connector, device) for one in sets),
        tuple(damage),
        (connector_fingerprint(connector), connector.info.method),
    )
