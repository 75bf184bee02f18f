"""What a completion really does: temperature and search chosen where they are ``auto``, calibrated where approximate.

Everything here is decided once, from a seeded probe of the queries, and recorded in the cache; a run that goes on takes
what is recorded. Costs are multiply-adds by formula, never timings: equal inputs give equal choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..cache.bank import Bank
from ..cache.errors import FitError
from ..cache.faiss_index import has_faiss, hnsw_graph, inverted_lists, lists_for
from ..cache.reader import Cache
from .approximate import SAMPLE_ROWS, Approximated, bank_sample, complete_hnsw, complete_ivf
from .bf16 import MEASURED_ROWS, MeasuredError, complete_bf16, complete_float64, measured_error
from .completion import complete_rows
from .probe import Sharpness, measure_sharpness, probe_queries
from .settings import CompletionSettings
from .tau import choose_tau, target_neighbours
from .topk import LARGEST_SHARE

Mode = Literal["exact", "bf16", "topk", "ivf", "hnsw"]
CALIBRATION_ROWS = 256
_LEAST_SHARES = tuple(float(f"{10 ** (-n / 2):.1e}") for n in range(4, 31))  # 1e-2, 3.2e-3, ... 1e-15
_MARGIN = 0.5  # of the tolerance: the 99th percentile of 256 is itself a matter of the sample
_CANDIDATES = (64, 256, 1024, 4096, 16384)
_GATHERED = 64  # a row read by number and weighed in float64 costs as much as so many rows that stream by
_WORTH_IT = 0.4  # visiting more of the bank than this costs as much as all of it
_BATCH = 8192


@dataclass(frozen=True)
class CompletionPlan:
    """A completion with nothing left to choose.

    Parameters
    ----------
    tau : float
    mode : str
        ``exact``, ``bf16``, ``topk``, ``ivf`` or ``hnsw``.
    tolerance : float
        Of ``topk``.
    least_share : float, optional
        Of ``ivf``: lists predicted to hold a smaller share of what the best one holds are not visited.
    k : int, optional
        Of ``hnsw``: candidates a query.
    error : MeasuredError, optional
        What the mode was measured to be off, over a seeded sample of queries.
    why : tuple of str
        Lines for people.
    """

    tau: float
    mode: Mode = "exact"
    tolerance: float = 1e-3
    least_share: float | None = None
    k: int | None = None
    error: MeasuredError | None = None
    why: tuple[str, ...] = field(default=())

    def fields(self, settings: CompletionSettings) -> dict[str, Any]:
        """What decides a vector. An exact completion has the same fields, however it came to be exact."""
        plain = CompletionSettings(tau=self.tau, bank_rows=settings.bank_rows, seed=settings.seed)
        fields = plain.fingerprint_fields()
        if self.mode == "bf16":
            fields["precision"] = "bf16"
        elif self.mode != "exact":
            fields |= {"search": self.mode, "tolerance": self.tolerance, "seed": settings.seed}
            fields |= {name: value for name in ("least_share", "k") if (value := getattr(self, name)) is not None}
        return fields

    def record(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return {**asdict(self), "why": list(self.why)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CompletionPlan:
        """The plan of :meth:`record`."""
        error = record["error"]
        given = {**record, "error": None if error is None else MeasuredError(**error), "why": tuple(record["why"])}
        return cls(**given)


def plan_completion(query: Cache, bank: Bank, settings: CompletionSettings, device: str = "cpu") -> CompletionPlan:
    """Choose what the settings leave open.

    Raises
    ------
    FitError
        The query has no row to choose from.
    MissingExtraError
        An approximate index is asked for by name, and FAISS is not installed.
    """
    if settings.is_plain:
        return CompletionPlan(float(settings.tau))
    if len(query) == 0:
        raise FitError(
            "there is no query row to choose a temperature or a search by",
            where=str(query.path),
            todo="give tau a number and leave search and precision as they are, or complete a query that has rows",
        )
    sharpness = None
    if settings.tau == "auto" or settings.search in ("auto", "topk"):
        sharpness = measure_sharpness(probe_queries(query, settings.seed), bank, device=device)
    why: list[str] = []
    if settings.tau != "auto":
        tau = float(settings.tau)
    else:
        assert sharpness is not None
        tau = choose_tau(sharpness)
        why.append(f"tau {tau:g}: the median query averages {target_neighbours(len(bank)):.0f} bank rows there")
    if settings.precision == "bf16":
        return _bf16(query, bank, settings, tau, why, device)
    mode = settings.search
    if mode == "auto":
        assert sharpness is not None
        mode, reason = choose_search(sharpness, tau, settings.tolerance, len(query), faiss=has_faiss())
        why.append(reason)
    if mode == "topk" and sharpness is not None:
        needed = float(np.median(sharpness.certified(tau, settings.tolerance)))
        if needed > len(bank) / LARGEST_SHARE:
            why.append(
                f"exact: a certificate of {settings.tolerance:g} needs {needed / len(bank):.1%} of the bank for the "
                f"median query, and beyond {1 / LARGEST_SHARE:.0%} exact completion is cheaper"
            )
            mode = "exact"
    if mode in ("ivf", "hnsw"):
        return _calibrated(query, bank, settings, mode, tau, why, device)
    return CompletionPlan(tau, "topk" if mode == "topk" else "exact", settings.tolerance, why=tuple(why))


def search_costs(sharpness: Sharpness, tau: float, tolerance: float, queries: int) -> dict[str, float]:
    """Multiply-adds a query of each search, over those of exact completion (2 M D).

    ``topk`` scores the whole bank and reads its k rows by number; ``ivf`` scores L list means, the rows that it visits
    (taken as six times those that hold the mass) and the sample that its estimate is made of, and shares among all
    queries the training of its lists and the measurement against exact completion.
    """
    rows = sharpness.rows
    k = np.minimum(sharpness.certified(tau, tolerance), rows)
    beyond = k > rows / LARGEST_SHARE
    topk = 0.65 + 0.5 * _GATHERED * float(np.where(beyond, 0, k).mean()) / rows + float(beyond.mean())
    lists = lists_for(rows)
    visited = min(1.0, 6 * float(sharpness.massive(tau, tolerance / 4).mean()) / rows)
    each = lists / rows + 2 * visited + SAMPLE_ROWS / rows + 0.5 * _GATHERED / min(_BATCH, queries)
    once = 3 * lists**0.5 + 2 * CALIBRATION_ROWS
    return {"exact": 1.0, "topk": topk, "ivf": each + once / queries}


def choose_search(
    sharpness: Sharpness, tau: float, tolerance: float, queries: int, *, faiss: bool
) -> tuple[Literal["exact", "topk", "ivf"], str]:
    """The cheapest search, and a line that says why."""
    costs = search_costs(sharpness, tau, tolerance, queries)
    best = min(("exact", "topk", "ivf"), key=lambda name: costs[name])
    listed = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items())
    missing = best == "ivf" and not faiss
    if missing:
        best = min(("exact", "topk"), key=lambda name: costs[name])
    neighbours = float(np.median(sharpness.neighbours(tau)))
    why = (
        f"{best}: estimated cost {listed} of exact completion, for {queries:,} queries on {sharpness.rows:,} bank rows "
        f"of {sharpness.dim} dimensions, {neighbours:.1f} of which the median query averages"
    )
    if missing:
        why += "; ivf would be cheaper, but FAISS is not installed (pip install faiss-cpu)"
    return ("topk" if best == "topk" else "ivf" if best == "ivf" else "exact"), why


def _bf16(
    query: Cache, bank: Bank, settings: CompletionSettings, tau: float, why: Sequence[str], device: str
) -> CompletionPlan:
    """Measure the mode against float64."""
    probe = probe_queries(query, settings.seed, MEASURED_ROWS)
    done = complete_bf16(probe, bank, tau, device=device)
    error = measured_error(done.vectors, complete_float64(probe, bank, tau), "float64")
    return CompletionPlan(tau, "bf16", error=error, why=tuple(why))


def _calibrated(
    query: Cache,
    bank: Bank,
    settings: CompletionSettings,
    mode: Literal["ivf", "hnsw"],
    tau: float,
    why: Sequence[str],
    device: str,
) -> CompletionPlan:
    """The cheapest setting of an approximate search that keeps 99% of a probe within half the tolerance."""
    probe = probe_queries(query, settings.seed, CALIBRATION_ROWS)
    truth = complete_rows(probe, bank, tau, device=device).vectors
    sample, limit = bank_sample(bank, settings.seed), _MARGIN * settings.tolerance
    levels: Sequence[float]
    attempt: Callable[[float], Approximated]
    if mode == "ivf":
        lists, levels = inverted_lists(bank, seed=settings.seed), _LEAST_SHARES

        def attempt(level: float) -> Approximated:
            return complete_ivf(probe, bank, lists, sample, tau, level, device=device)
    else:
        graph = hnsw_graph(bank, seed=settings.seed)
        levels = [k for k in _CANDIDATES if k <= _WORTH_IT * len(bank)] or [1]

        def attempt(level: float) -> Approximated:
            return complete_hnsw(probe, bank, graph, sample, tau, int(level), device=device)

    found: tuple[float, Approximated, MeasuredError] | None = None
    low, high = 0, len(levels)
    while low < high:  # the error falls from level to level
        middle = (low + high) // 2
        done = attempt(levels[middle])
        error = measured_error(done.vectors, truth, "exact")
        if error.p99 <= limit:
            found, high = (levels[middle], done, error), middle
        else:
            low = middle + 1
    if found is None or float(found[1].k.mean()) > _WORTH_IT * len(bank):
        share = "no share of the bank" if found is None else f"only {found[1].k.mean() / len(bank):.0%} of the bank"
        reason = f"exact: {share} that {mode} proposes keeps 99% of {len(probe)} queries within {limit:g}"
        return CompletionPlan(tau, "exact", settings.tolerance, why=(*why, reason))
    level, done, error = found
    share = f"{done.k.mean() / len(bank):.2%} of the bank proposed"
    reason = f"{mode}: {share} keep 99% of {len(probe)} queries within {limit:g}"
    given: dict[str, Any] = {"least_share": level} if mode == "ivf" else {"k": int(level)}
    return CompletionPlan(tau, mode, settings.tolerance, error=error, why=(*why, reason), **given)
