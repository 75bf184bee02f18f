"""One batch of queries through whatever search a plan names; what ``/meta`` says of each row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..cache.bank import Bank
from ..cache.faiss_index import InvertedLists, hnsw_graph, inverted_lists
from .approximate import Approximated, Sample, bank_sample, complete_hnsw, complete_ivf
from .bf16 import complete_bf16
from .completion import Vectors, complete_rows
from .missing_mass import rounded_up
from .search_choice import CompletionPlan
from .topk import certificate_record, complete_topk


@dataclass
class BatchCompleter:
    """Completes batches of unit rows by a plan; indexes are opened when first needed.

    Parameters
    ----------
    bank : Bank
    plan : CompletionPlan
    seed : int
    device : str
    """

    bank: Bank
    plan: CompletionPlan
    seed: int
    device: str

    def __call__(self, queries: Vectors) -> tuple[Vectors, list[dict[str, Any]]]:
        """Vectors (B, D) float32 and a record for each row."""
        plan, tau = self.plan, self.plan.tau
        if plan.mode in ("exact", "bf16"):
            complete = complete_rows if plan.mode == "exact" else complete_bf16
            done = complete(queries, self.bank, tau, device=self.device)
            return done.vectors, [_neighbours(n) for n in done.neighbours.tolist()]
        if plan.mode == "topk":
            sure = complete_topk(queries, self.bank, tau, plan.tolerance, device=self.device)
            columns = zip(
                sure.neighbours.tolist(), sure.k.tolist(), sure.mass.tolist(), sure.error.tolist(), strict=True
            )
            return sure.vectors, [_neighbours(n) | certificate_record(k, m, e) for n, k, m, e in columns]
        found = self._approximate(queries)
        mass = found.mass
        rows = zip(
            found.neighbours.tolist(), found.k.tolist(), mass.estimate.tolist(), mass.low.tolist(), mass.high.tolist(),
            strict=True,
        )  # fmt: skip
        return found.vectors, [_neighbours(n) | _estimate_record(*rest) for n, *rest in rows]

    def _approximate(self, queries: Vectors) -> Approximated:
        plan, rest = self.plan, (self._sample, self.plan.tau)
        if plan.mode == "ivf":
            assert plan.least_share is not None
            return complete_ivf(queries, self.bank, self._lists, *rest, plan.least_share, device=self.device)
        assert plan.k is not None
        return complete_hnsw(queries, self.bank, self._graph, *rest, plan.k, device=self.device)

    @cached_property
    def _sample(self) -> Sample:
        return bank_sample(self.bank, self.seed)

    @cached_property
    def _lists(self) -> InvertedLists:
        return inverted_lists(self.bank, seed=self.seed)

    @cached_property
    def _graph(self) -> Any:
        return hnsw_graph(self.bank, seed=self.seed)


def _neighbours(count: float) -> dict[str, Any]:
    return {"neighbours": round(count, 3)}


def _estimate_record(k: int, estimate: float, low: float, high: float) -> dict[str, Any]:
    """Candidates and the estimate of the mass left out: to four digits, the interval rounded outwards."""
    return {"k": k, "mass_estimate": float(f"{estimate:.3e}"), "mass_high": rounded_up(high), "mass_low": _down(low)}


def _down(value: float) -> float:
    near = float(f"{value:.3e}")
    return near if near <= value else max(0.0, 2 * value - rounded_up(value))
