"""The evaluations that a recipe names, run on the connector that was fitted from it."""

from __future__ import annotations

import json
from pathlib import Path

from ..cache.errors import CmcrError
from ..cache.fsio import write_atomic
from ..trainer.connector import Connector
from ..trainer.recipe import Recipe, load_recipe
from ..trainer.run_folder import EVALS
from .evaluate import RetrievalReport, evaluate
from .shared import as_connector

FORMAT, VERSION = "cmcr-recipe-evaluation", 1


def evaluate_recipe(
    recipe: Recipe | str | Path,
    connector: Connector | str | Path,
    *,
    output: str | Path | None = None,
    device: str | None = None,
) -> list[tuple[str, RetrievalReport]]:
    """Run each ``[[eval]]`` of a recipe and write all figures to ``eval.json``.

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
    list of (name, RetrievalReport)
        In the order of the recipe; empty, with nothing written, for a recipe without evaluations.

    Raises
    ------
    CmcrError
        A cache is missing, empty or of another space; nothing is relevant; there is no folder to write to.
    """
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not plan.eval:
        return []
    folder = output or (plan.output if isinstance(connector, Connector) else connector)
    if folder is None:
        raise CmcrError("No folder for the figures is named.", todo="give output=, or the folder of the connector")
    loaded = as_connector(connector, device or plan.fit.device)
    reports = [
        (
            one.name,
            evaluate(
                query=plan.path(one.query),
                gallery=plan.path(one.gallery),
                connector=loaded,
                pairs=None if one.pairs is None else plan.path(one.pairs),
                label=one.label,
            ),
        )
        for one in plan.eval
    ]
    evals = [{"name": name, **report.to_json()} for name, report in reports]
    record = {"format": FORMAT, "version": VERSION, "evals": evals}
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(Path(folder) / EVALS, text.encode())
    return reports
