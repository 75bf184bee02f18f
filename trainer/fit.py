"""``fit``: caches and a recipe in, a connector folder out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cache.errors import ConnectorError, FitError, RecipeError
from ..cache.fsio import host_name, write_atomic
from .artefacts import model_card, write_curve, write_events
from .connector import Connector
from .device import resolve_device
from .early_stop import make_validator
from .fit_record import connector_info, fit_digest, settings_record
from .methods import get_method
from .methods.base import Method, is_distributed, wants_completion
from .pairs import Pairs, load_pairs
from .projectors import Projector
from .ranks import ALONE, Ranks
from .recipe import Recipe, load_recipe, make_recipe
from .recipe_checks import check_evals
from .rendezvous import joined
from .run_folder import EVENTS, METRICS, FollowedRun, Progress, RunFolder

CARD, CURVE = "README.md", "curve.png"
_IDENTITY = "what decides this fit (recipe, caches, version of cmcr)"
_SAME_FILES = "let every process see the same files, on a shared file system, and the same version of cmcr"
_APPEARS_SECONDS = 60.0


@dataclass(frozen=True)
class FitResult:
    """What a fit made.

    Parameters
    ----------
    connector : Connector
    folder : Path
    pairs : Pairs
        What it was fitted on, with join and completion reports.
    metrics : mapping
        The last line of the metrics; empty for a method that logs none.
    seconds : float
        Time of the fit itself.
    recipe : Recipe
        What was fitted, every override in it.
    """

    connector: Connector
    folder: Path
    pairs: Pairs
    metrics: Mapping[str, Any]
    seconds: float
    recipe: Recipe


def fit(
    recipe: Recipe | str | Path | None = None,
    *,
    space: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> FitResult:
    """Fit a connector on cached vectors and write its folder.

    Under torchrun every process is to call it with the same arguments; they train together (``docs/cluster.md``), the
    first one writes, and each returns the connector.

    Parameters
    ----------
    recipe : Recipe or path, optional
        A recipe file; without it ``space`` and ``method`` say what to fit.
    space : mapping, optional
        ``{"clap": {"overlap": path, "bank": path or paths}, ...}`` in place of a recipe file.
    output : path, optional
        Folder of the connector; overrides the recipe's.
    overwrite : bool
        Replace a connector, or an interrupted fit, that is in the folder.
    progress : callable, optional
        Gets (steps done, steps in all, newest line of the metrics with ``samples_per_second`` and ``seconds_left``);
        while a completion is made (rows done, rows to do, ``{"stage": "completion"}``).
    say : callable, optional
        Gets one line a step of the preparation, for people.
    **settings
        Fields of :class:`FitSettings`; they override the recipe's.

    Returns
    -------
    FitResult

    Raises
    ------
    RecipeError, JoinError, FitError
        The recipe is not valid, its caches do not fit together, the folder holds something else, or training diverged.
    """
    with joined() as ranks:
        plan = recipe_of(recipe, settings, space)
        folder = Path(output) if output is not None else plan.output
        if folder is None:
            raise RecipeError(
                "no folder for the connector is named", where="fit.output", todo="give output, or --output"
            )
        return _fit(ranks, plan, folder, overwrite, progress, say) if ranks.leads else _follow(ranks, plan, folder)


def _fit(
    ranks: Ranks,
    plan: Recipe,
    folder: Path,
    overwrite: bool,
    progress: Progress | None,
    say: Callable[[str], None] | None,
) -> FitResult:
    """:func:`fit` on the first process, which alone writes and tells; the other ones are in :func:`_follow`."""
    method = get_method(plan.method)
    RunFolder.check(folder, plan.resolved(folder), overwrite=overwrite)  # before the hours of a completion
    check_evals(plan)
    team = _team(ranks, plan, method)
    told = None if progress is None else _completion_progress(progress)
    pairs = load_pairs(plan, complete=wants_completion(method), say=say, progress=told)
    ranks.announce("completed")
    validator = make_validator(plan, pairs)
    identity = fit_digest(settings_record(plan, method), pairs)
    ranks.agree(_IDENTITY, identity, _SAME_FILES)
    run = RunFolder.open(folder, plan.resolved(folder), identity, overwrite=overwrite, progress=progress, ranks=team)
    run.validator = validator
    if run.note is not None and say is not None:
        say(run.note)
    ranks.announce("begun")
    started = time.time()
    try:
        heads = method.fit(pairs, plan.fit, run)
    finally:
        run.close()
    _check_kept(plan, heads)
    found = {"identity": identity, "chosen": run.chosen, "processes": team.size if team.size > 1 else None}
    connector = Connector(heads, connector_info(settings_record(plan, method), pairs, found))
    metrics = _write_artefacts(folder, connector)
    ended = time.time()
    record = {"resumed_at": run.resumed_at, "threads": torch.get_num_threads(), "processes": team.size}
    _log_run(folder, {"start": started, "end": ended, **record})
    connector.save(folder)
    run.finished()
    ranks.announce("finished")
    return FitResult(connector, folder, pairs, metrics, ended - started, plan)


def _follow(ranks: Ranks, plan: Recipe, folder: Path) -> FitResult:
    """:func:`fit` on another process: it trains along, reads what the first one wrote, and writes nothing."""
    method = get_method(plan.method)
    team = _team(ranks, plan, method)
    ranks.await_first("completed")
    pairs = load_pairs(plan, complete=wants_completion(method))
    validator = make_validator(plan, pairs)
    identity = fit_digest(settings_record(plan, method), pairs)
    ranks.agree(_IDENTITY, identity, _SAME_FILES)
    ranks.await_first("begun")
    started = time.time()
    if team.size > 1:
        run = FollowedRun(folder, identity, team)
        run.validator = validator
        method.fit(pairs, plan.fit, run)
    ranks.await_first("finished")
    ended = time.time()
    return FitResult(_appeared(folder), folder, pairs, _last_metrics(folder), ended - started, plan)


def _team(ranks: Ranks, plan: Recipe, method: Method) -> Ranks:
    """The processes that train: all of them, or the first alone for a method that does not share its work."""
    ranks.check_device(resolve_device(plan.fit.device))
    return ranks if is_distributed(method) else ALONE


def _appeared(folder: Path) -> Connector:
    """The connector that the first process has written; a network file system may show it a little later."""
    end = time.monotonic() + _APPEARS_SECONDS
    while True:
        try:
            return Connector.load(folder)
        except ConnectorError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)


def _completion_progress(progress: Progress) -> Callable[[int, int], None]:
    """A completion's progress told through that of the fit."""
    return lambda done, total: progress(done, total, {"stage": "completion"})


def _check_kept(recipe: Recipe, heads: Mapping[str, Projector]) -> None:
    """Whether the space that the recipe keeps has been kept; a method of one's own may not know the setting."""
    keep = recipe.fit.keep
    if keep is not None and heads[keep].spec.kind != "identity":
        raise FitError(
            f"the method {recipe.fit.method} does not keep {keep!r} as it is: it made a head "
            f"{heads[keep].spec.kind!r} for it",
            where="fit.keep",
            todo="drop keep, or take a method that honours it",
        )


def fit_identity(recipe: Recipe) -> str:
    """What the connector of a finished fit of ``recipe`` says under ``identity`` in its ``made_from``; fits nothing."""
    return fit_digest(settings_record(recipe, get_method(recipe.method)), load_pairs(recipe, complete=False))


def recipe_of(
    recipe: Recipe | str | Path | None, settings: Mapping[str, Any], space: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of a call in any of its forms, with the overrides in it."""
    given = {name: value for name, value in settings.items() if value is not None}
    if recipe is None:
        if space is None:
            raise RecipeError("there is nothing to fit", todo="give a recipe, or space= and method=")
        tables = {name: {k: _as_text(v) for k, v in dict(caches).items()} for name, caches in space.items()}
        return make_recipe({"space": tables, "fit": given}, where="arguments of fit")
    if space is not None:
        raise RecipeError("give a recipe or space=, not both", where="arguments of fit")
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not given:
        return plan
    tables = plan.model_dump(exclude_none=True)
    tables["fit"].update(given)
    return make_recipe(tables, base=plan.base, where="arguments of fit")


def _as_text(value: Any) -> Any:
    """Paths as the text that a recipe has."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return [os.fspath(one) for one in value]


def _write_artefacts(folder: Path, connector: Connector) -> dict[str, Any]:
    """Curve, event file and model card from the metrics; the last line of them."""
    last = _last_metrics(folder)
    if last:
        title = f"{connector.info.method}: {' and '.join(connector.spaces)}"
        write_curve(folder / METRICS, folder / CURVE, title=title)
        write_events(folder / METRICS, folder / EVENTS)
    write_atomic(folder / CARD, model_card(connector).encode("utf-8"))
    return last


def _last_metrics(folder: Path) -> dict[str, Any]:
    """The last line of the metrics; empty where there is none."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return last


def _log_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Times and the host of this run, in the one place where they may stand."""
    (folder / "runs").mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    line = json.dumps({"command": "fit", "host": host_name(), **record}, sort_keys=True)
    (folder / "runs" / f"{stamp}-{host_name()}-{os.getpid()}.jsonl").write_text(line + "\n", encoding="utf-8")
