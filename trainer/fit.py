"""``fit``: caches and a recipe in, a connector folder out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache._version import __version__
from ..cache.errors import FitError, RecipeError
from ..cache.fsio import host_name, write_atomic
from ..cache.manifest import CacheManifest
from ..cache.plugins import recorded_name
from ..cache.reader import open_cache
from .artefacts import model_card, write_curve, write_events
from .connector import Connector
from .connector_info import ConnectorInfo, SpaceInfo
from .early_stop import make_validator
from .methods import get_method
from .methods.base import Method, wants_completion
from .pairs import Pairs, load_pairs
from .projectors import Projector
from .recipe import Recipe, load_recipe, make_recipe
from .recipe_checks import check_evals
from .recipe_tables import ValidationRecipe
from .run_folder import EVENTS, METRICS, Progress, RunFolder
from .settings import DECIDES_NOTHING

CARD, CURVE = "README.md", "curve.png"
NOT_STATED = "not stated"
_NO_ENCODER = "imported"  # what an import records where nobody says which encoder made the vectors


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
    plan = recipe_of(recipe, settings, space)
    folder = Path(output) if output is not None else plan.output
    if folder is None:
        raise RecipeError("no folder for the connector is named", where="fit.output", todo="give output, or --output")
    method = get_method(plan.method)
    RunFolder.check(folder, plan.resolved(folder), overwrite=overwrite)  # before the hours of a completion
    check_evals(plan)
    told = None if progress is None else _completion_progress(progress)
    pairs = load_pairs(plan, complete=wants_completion(method), say=say, progress=told)
    validator = make_validator(plan, pairs)
    identity = _identity(_settings(plan, method), pairs)
    run = RunFolder.open(folder, plan.resolved(folder), identity, overwrite=overwrite, progress=progress)
    run.validator = validator
    started = time.time()
    try:
        heads = method.fit(pairs, plan.fit, run)
    finally:
        run.close()
    _check_kept(plan, heads)
    info = _info(_settings(plan, method), pairs, {"identity": identity, "chosen": run.chosen})
    connector = Connector(heads, info)
    metrics = _write_artefacts(folder, connector)
    ended = time.time()
    _log_run(folder, {"start": started, "end": ended, "resumed_at": run.resumed_at, "threads": torch.get_num_threads()})
    connector.save(folder)
    run.finished()
    return FitResult(connector, folder, pairs, metrics, ended - started, plan)


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
    return _identity(_settings(recipe, get_method(recipe.method)), load_pairs(recipe, complete=False))


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


def _settings(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The settings that decide a fit, without places; a method from a file by its name and the hash of the file."""
    record = recipe.fit.model_dump(mode="json", exclude=set(DECIDES_NOTHING), exclude_none=True)
    record["method"] = recorded_name(recipe.fit.method)
    if recipe.validation is not None:
        record["validation"] = _validation(recipe, recipe.validation)
    source = getattr(method, "source_hash", None)
    return record if source is None else {**record, "method_source": source}


def _validation(recipe: Recipe, plan: ValidationRecipe) -> dict[str, Any]:
    """What a validation pair holds: content ids, the hash of a file of pairs."""
    record: dict[str, Any] = {
        "query": open_cache(recipe.path(plan.query)).content_id(),
        "gallery": open_cache(recipe.path(plan.gallery)).content_id(),
    }
    if plan.pairs is not None:
        record["pairs"] = hashlib.blake2b(recipe.path(plan.pairs).read_bytes(), digest_size=16).hexdigest()
    return record if plan.label is None else {**record, "label": plan.label}


def _identity(settings: Mapping[str, Any], pairs: Pairs) -> str:
    """Digest of everything that decides a fit: settings, the content of the caches, this version of the package."""
    record = {"version": __version__, "fit": settings, "made_from": _contents(pairs)}
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _contents(pairs: Pairs) -> dict[str, Any]:
    """Content ids of the caches, by space."""
    banks = {name: None if bank is None else bank.content_id() for name, bank in pairs.bank.items()}
    return {
        name: {"overlap": pairs.overlap[name].cache.content_id(), "bank": banks[name]} for name in sorted(pairs.names)
    }


def _info(settings: Mapping[str, Any], pairs: Pairs, found: Mapping[str, Any]) -> ConnectorInfo:
    """The description that travels with the connector: no paths, no times. ``found`` is what the fit itself adds."""
    spaces = {name: _space_info(_manifests(pairs, name)) for name in pairs.names}
    made_from: dict[str, Any] = {
        "caches": _contents(pairs),
        "settings": dict(settings),
        "rows": pairs.N,
        "join": {
            "matched": pairs.report.matched,
            "left_only": pairs.report.left_only,
            "right_only": pairs.report.right_only,
        },
        "bank_rows": {name: len(bank) for name, bank in pairs.bank.items() if bank is not None},
        "neighbours": {name: round(done.neighbours, 2) for name, done in pairs.completions.items()},
        **{name: value for name, value in found.items() if value},
    }
    encoders = {encoder for space in spaces.values() for encoder in space.encoders.values()}
    return ConnectorInfo(
        spaces=spaces,
        method=settings["method"],
        made_from=made_from,
        versions={"cmcr": __version__, "numpy": np.__version__, "torch": torch.__version__},
        licences=dict.fromkeys(sorted(encoders), NOT_STATED),
    )


def _manifests(pairs: Pairs, name: str) -> list[CacheManifest]:
    """Manifests of a space's caches, the overlap first."""
    bank = pairs.bank[name]
    return [pairs.overlap[name].cache.manifest, *(cache.manifest for cache in (bank.caches if bank else ()))]


def _space_info(manifests: list[CacheManifest]) -> SpaceInfo:
    """One space from the caches that stand for it; the first cache of a modality names its encoder."""
    first = {manifest.modality: manifest for manifest in reversed(manifests)}
    modalities = tuple(sorted(first))
    return SpaceInfo(
        id=manifests[0].space_id,
        modalities=modalities,
        encoders={name: first[name].encoder for name in modalities if first[name].encoder != _NO_ENCODER},
        fingerprints={modality: first[modality].fingerprint for modality in modalities},
    )


def _write_artefacts(folder: Path, connector: Connector) -> dict[str, Any]:
    """Curve, event file and model card from the metrics; the last line of them."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    if lines:
        title = f"{connector.info.method}: {' and '.join(connector.spaces)}"
        write_curve(folder / METRICS, folder / CURVE, title=title)
        write_events(folder / METRICS, folder / EVENTS)
    write_atomic(folder / CARD, model_card(connector).encode("utf-8"))
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return last


def _log_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Times and the host of this run, in the one place where they may stand."""
    (folder / "runs").mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    line = json.dumps({"command": "fit", "host": host_name(), **record}, sort_keys=True)
    (folder / "runs" / f"{stamp}-{host_name()}-{os.getpid()}.jsonl").write_text(line + "\n", encoding="utf-8")
