"""What a fit would do, without doing it: what is joined and completed, sizes, and a time from a few timed steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..cache.bank import Bank
from ..cache.derived import compare, parent_shards
from ..cache.join import JoinReport
from ..cache.keyindex import leaving_no_file
from ..cache.manifest import list_plans, read_manifest, read_plan, units_of
from ..cache.marker import find_marker
from ..cache.reader import Cache
from .batches import Batches
from .completed_cache import completion_place
from .completion import complete_rows
from .device import check_precision, resolve_device
from .fit import recipe_of
from .loop import Objective, train_step
from .losses import logits_bytes
from .methods import get_method
from .methods.base import Method, is_distributed, wants_completion
from .optim import make_optimiser
from .pairs import Pairs, load_pairs
from .recipe_checks import check_evals
from .rendezvous import current
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .recipe import Recipe
    from .settings import FitSettings

_TIMED_STEPS = 3
_TIMED_QUERIES, _TIMED_BANK = 1024, 16384
_ADAM = 4  # of each parameter: weight, gradient and two moments
_KEY_BYTES = 64  # key, caption pointer and record of a completed row: a guess on the safe side


@dataclass(frozen=True)
class SpacePlan:
    """One space of a planned fit.

    Parameters
    ----------
    name, modality, overlap : str
        The space, the overlapping modality, and the path of its cache.
    rows, dim : int
        Of the overlap cache.
    bank_rows, bank_caches : int
        Rows that take part, and caches that they come from; 0 without a bank.
    completion : str, optional
        ``make``, ``extend`` or ``reuse``; None where the method needs none or there is no bank.
    to_complete : int
        Rows that are not completed yet.
    head : str, optional
        Kind of the head, where the method can say it beforehand.
    """

    name: str
    modality: str
    overlap: str
    rows: int
    dim: int
    bank_rows: int
    bank_caches: int
    completion: str | None
    to_complete: int
    head: str | None


@dataclass(frozen=True)
class FitPlan:
    """What a fit would do.

    Parameters
    ----------
    method, output : str
        ``output`` is empty where none is named.
    resumes_at : int
        Steps that an interrupted fit in the output has done.
    joined : JoinReport
        Left is the first space.
    spaces : tuple of SpacePlan
    rows, batch_size, epochs, steps : int
        Joined rows, rows of a batch, passes, steps of the optimiser; 0 batches and steps for a method in closed form.
    dim : int, optional
        Width of the shared space, where the method can say it beforehand.
    parameters : int
        Trained numbers.
    memory_bytes, disk_bytes : int
        What the fit holds beside the process itself, by formula; what it writes, completions in it.
    completion_seconds, fit_seconds : float, optional
        None where nothing can be timed.
    basis : str
        Where the times come from.
    untimed : str
        What a method that does not say beforehand what it trains does, in its own words; empty for the others.
    processes, training : int
        How many torchrun has started, and how many of them train: all, or the first alone where the method does not
        share its batches. Sizes and times are those of a fit in one process.
    """

    method: str
    output: str
    resumes_at: int
    joined: JoinReport
    spaces: tuple[SpacePlan, ...]
    rows: int
    batch_size: int
    epochs: int
    steps: int
    dim: int | None
    parameters: int
    memory_bytes: int
    disk_bytes: int
    completion_seconds: float | None
    fit_seconds: float | None
    basis: str
    untimed: str = ""
    processes: int = 1
    training: int = 1

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)


def plan_fit(
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> FitPlan:
    """Plan a fit and write nothing.

    Parameters and errors are those of :func:`cmcr.fit`: what it would refuse is refused here. A trained method takes a
    few steps on real rows, with overlap rows in place of completed ones, to be timed.
    """
    plan = recipe_of(recipe, settings)
    folder = Path(output) if output is not None else plan.output
    method = get_method(plan.method)
    resumes_at = 0
    if folder is not None:
        RunFolder.check(folder, plan.resolved(folder), overwrite=overwrite)
        resumes_at = 0 if overwrite else RunFolder.steps_done(folder)
    check_evals(plan)
    device = resolve_device(plan.fit.device)
    check_precision(device, plan.fit.precision)
    with leaving_no_file():
        pairs = load_pairs(plan, complete=False)
    trial = _trial(method, pairs, plan.fit, device)
    spaces = tuple(_space(plan, pairs, name, method, trial) for name in pairs.names)
    ranks = current()
    ranks.check_device(device)
    batches = Batches(_trained_rows(method, pairs, plan.fit), plan.fit.batch_size, plan.fit.seed)
    if trial and is_distributed(method):
        ranks.sharing(batches.size)
    steps = plan.fit.epochs * batches.per_epoch if trial else 0
    parameters = sum(p.numel() for p in trial.model.parameters()) if trial else 0
    completing = sum(_completion_seconds(plan, pairs, space, str(device)) for space in spaces if space.to_complete)
    joined = Batches(pairs.N, plan.fit.batch_size, plan.fit.seed)  # what a trial holds
    step = _step_seconds(trial, joined, plan.fit) if trial else None
    untimed = _untimed(method, plan.fit)
    return FitPlan(
        method=plan.fit.method,
        output="" if folder is None else str(folder),
        resumes_at=resumes_at,
        joined=pairs.report,
        spaces=spaces,
        rows=pairs.N,
        batch_size=batches.size if trial else 0,
        epochs=plan.fit.epochs if trial else 0,
        steps=steps,
        dim=_dim(trial, pairs),
        parameters=parameters,
        memory_bytes=_memory(spaces, parameters, batches.size, plan.fit) if trial else 0,
        disk_bytes=_disk(spaces, parameters, watched=plan.validation is not None),
        completion_seconds=completing,
        fit_seconds=None if step is None else step * (steps - resumes_at),
        basis=_basis(spaces, device, trial is not None, untimed),
        untimed=untimed,
        processes=ranks.size,
        training=ranks.size if is_distributed(method) else 1,
    )


def _trial(method: Method, pairs: Pairs, settings: FitSettings, device: torch.device) -> Objective | None:
    """What the method would train, on overlap rows alone; None for a method that does not say it beforehand."""
    make: Callable[..., Objective] | None = getattr(method, "make_objective", None)
    if make is None:
        return None
    stand_in = {name: pairs.overlap[name] if pairs.bank[name] is not None else None for name in pairs.names}
    return make(replace(pairs, completed=stand_in), settings, device)


def _untimed(method: Method, settings: FitSettings) -> str:
    """What a method says of work that is not planned (``untimed``), as weave does; empty for others."""
    say: Callable[..., str] | None = getattr(method, "untimed", None)
    return "" if say is None else say(settings)


def _trained_rows(method: Method, pairs: Pairs, settings: FitSettings) -> int:
    """Rows of an epoch: the joined ones, unless the method says otherwise (``trained_rows``), as ex-mcr does."""
    count: Callable[..., int] | None = getattr(method, "trained_rows", None)
    return pairs.N if count is None else count(pairs, settings)


def _head_kind(trial: Objective, name: str, settings: FitSettings) -> str:
    """Kind of a space's head, from the trial where it holds the heads."""
    heads = getattr(trial, "heads", {})
    return str(heads[name].spec.kind) if name in heads else settings.head_kind(name)


def _space(plan: Recipe, pairs: Pairs, name: str, method: Method, trial: Objective | None) -> SpacePlan:
    cache, bank = pairs.overlap[name].cache, pairs.bank[name]
    completion, missing = None, 0
    if bank is not None and wants_completion(method):
        folder = None if plan.fit.completions is None else plan.path(plan.fit.completions)
        missing = missing_rows(cache, completion_place(cache, bank, plan.fit.completion(), folder))
        completion = "make" if missing == len(cache) else "extend" if missing else "reuse"
    return SpacePlan(
        name=name,
        modality=cache.modality,
        overlap=str(cache.path),
        rows=len(cache),
        dim=cache.dim,
        bank_rows=0 if bank is None else len(bank),
        bank_caches=0 if bank is None else len(bank.caches),
        completion=completion,
        to_complete=missing,
        head=_head_kind(trial, name, plan.fit) if trial else None,
    )


def missing_rows(query: Cache, place: Path) -> int:
    """Rows of a query that its completion at ``place`` does not hold yet, or holds from a shard that was rewritten."""
    if not (place / "cache.json").exists():
        return len(query)
    shards = parent_shards(query.shards, read_manifest(place).fingerprint)
    kept = compare(units_of([read_plan(file) for file in list_plans(place)]), shards).kept
    markers = [find_marker(place, unit.shard) for unit in kept]
    return len(query) - sum(marker.ok for marker in markers if marker is not None and marker.state == "done")


def _step_seconds(trial: Objective, batches: Batches, settings: FitSettings) -> float:
    """Median time of a step; the first one, which warms up, does not count."""
    optimiser = make_optimiser(trial.model, settings.lr, settings.weight_decay)
    trial.model.train()
    rows = batches.order(0)[: batches.size]
    seconds = []
    for step in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        train_step(trial, optimiser, rows, step, settings.lr, settings.clip_grad)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class _Head:
    """The first rows of a bank."""

    def __init__(self, bank: Bank, rows: int) -> None:
        self.dim = bank.dim
        self._rows = next(iter(bank.blocks(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self, size: int = _TIMED_BANK) -> Any:
        """Its rows in blocks (<= size, D)."""
        for start in range(0, len(self._rows), size):
            yield self._rows[start : start + size]


def _completion_seconds(plan: Recipe, pairs: Pairs, space: SpacePlan, device: str) -> float:
    """Time of an exact completion, from a tile of it: both grow as queries times bank rows."""
    bank = pairs.bank[space.name]
    if bank is None:
        return 0.0
    queries = pairs.overlap[space.name].rows(np.arange(min(_TIMED_QUERIES, pairs.N)))
    head = _Head(bank, min(_TIMED_BANK, len(bank)))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        complete_rows(queries, head, 0.01, device=device)  # the temperature costs no time
        seconds.append(time.perf_counter() - start)
    return min(seconds) * (space.to_complete / len(queries)) * (len(bank) / len(head))


def _memory(spaces: tuple[SpacePlan, ...], parameters: int, batch: int, settings: FitSettings) -> int:
    """Bytes by formula: weights, gradients, moments; inputs, noise and activations of a batch; logits that are kept."""
    out = settings.shared_dim({space.name: space.dim for space in spaces})
    activations = 0
    for space in spaces:
        rows = batch * (2 if space.bank_rows else 1)
        inner = {"mlp": 3 * settings.hidden + 2 * out, "half": 3 * out, "linear": out}.get(space.head or "", 0)
        activations += rows * (3 * space.dim + inner + 3 * out) * 4
    return 4 * _ADAM * parameters + activations + 2 * logits_bytes(batch, settings.chunk)


def _disk(spaces: tuple[SpacePlan, ...], parameters: int, *, watched: bool) -> int:
    """Bytes by formula: completed rows in float32, the connector, and a checkpoint of weights and moments."""
    completed = sum(space.to_complete * (4 * space.dim + _KEY_BYTES) for space in spaces)
    return completed + 4 * parameters * (1 + 3 + watched)


def _dim(trial: Objective | None, pairs: Pairs) -> int | None:
    heads: Any = None if trial is None else getattr(trial, "heads", trial.model)
    return None if heads is None else int(heads[pairs.names[0]].spec.dim_out)


def _basis(spaces: tuple[SpacePlan, ...], device: torch.device, trained: bool, untimed: str) -> str:
    parts = [f"{_TIMED_STEPS} timed steps"] if trained else []
    if any(space.to_complete for space in spaces):
        parts.append("a timed tile of the exact completion")
    if not parts:
        if untimed:
            return "nothing was timed"
        return "nothing was timed: the method is computed in closed form"
    return f"from {' and '.join(parts)} on {device}"
