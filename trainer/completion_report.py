"""What a completion did and how it looks, for people and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.bank import Bank, sample_rows
from ..cache.reader import Cache
from .bf16 import MeasuredError
from .completion import readable_neighbours
from .search_choice import CompletionPlan

_GAP_ROWS = 16384  # of each side: a mean of unit rows is then known to 1%
_META_ROWS = 4096
_BLOCK = 4096


@dataclass(frozen=True)
class CompletionReport:
    """What a completion did.

    Parameters
    ----------
    folder : Path
        The completed cache.
    rows, shards, skipped : int
        Rows of the whole cache; shards that this run made, and that were done before.
    neighbours : float
        Median over all rows of the effective number of bank rows averaged: exp of the entropy of the softmax weights.
    query, bank : str
        Modalities.
    bank_rows : int
        Rows of the bank.
    renewed : int
        Of ``shards``, those made again because the query's shard was rewritten (retried, repaired).
    vanished : int
        Shards taken back because the query no longer has theirs.
    unfinished : int
        Shards left for another run because this one was asked to stop.
    neighbours_p10, neighbours_p90 : float
        Percentiles of the same number.
    gap, gap_cosine : float
        Modality gap: ‖mean query − mean bank‖ of unit rows, and the cosine between the two means (Liang et al. 2022,
        arXiv 2203.02053); over seeded samples of at most 16,384 rows. NaN of an empty query.
    tau : float
        Temperature.
    mode : str
        ``exact``, ``bf16``, ``topk``, ``ivf`` or ``hnsw``.
    certificate : mapping
        ``topk``: median and largest ``k_share`` (k/M), largest ``mass_bound`` and ``vector_bound``, ``exact_rows``.
    estimate : mapping
        ``ivf`` and ``hnsw``: median and largest share of candidates; median ``mass_estimate``, 99th percentile of
        ``mass_high``. No bounds.
    error : MeasuredError, optional
        What the mode was measured to be off before the first row was made.
    why : tuple of str
        What was chosen, and why.
    """

    folder: Path
    rows: int
    shards: int
    skipped: int
    neighbours: float
    query: str
    bank: str
    bank_rows: int
    renewed: int = 0
    vanished: int = 0
    unfinished: int = 0
    neighbours_p10: float = float("nan")
    neighbours_p90: float = float("nan")
    gap: float = float("nan")
    gap_cosine: float = float("nan")
    tau: float = float("nan")
    mode: str = "exact"
    certificate: Mapping[str, float] = field(default_factory=dict)
    estimate: Mapping[str, float] = field(default_factory=dict)
    error: MeasuredError | None = None
    why: tuple[str, ...] = ()

    def line(self) -> str:
        """The readable line."""
        return readable_neighbours(self.neighbours, self.query, self.bank)

    def details(self) -> list[str]:
        """Spread, gap, what was chosen and what is known of the error: lines for people."""
        lines = [
            f"effective neighbours {self.neighbours_p10:,.1f} to {self.neighbours_p90:,.1f} (10th to 90th percentile) "
            f"of {self.bank_rows:,}; modality gap {self.gap:.2f}, cosine of the means {self.gap_cosine:.2f}"
        ]
        lines += self.why
        if self.certificate:
            c = self.certificate
            lines.append(
                f"topk: k/M {c['k_share']:.2%} (median), mass left out at most {c['mass_bound']:.1e}, "
                f"unit vectors off by at most {c['vector_bound']:.1e}; "
                f"{c['exact_rows']:.0%} of the rows were completed exactly"
            )
        if self.estimate:
            e = self.estimate
            lines.append(
                f"{self.mode}: {e['k_share']:.2%} of the bank (median), mass left out estimated at "
                f"{e['mass_estimate']:.1e} (median; 95% interval below {e['mass_high_p99']:.1e} for 99% of the rows)"
            )
        if self.error is not None:
            m = self.error
            lines.append(
                f"{self.mode}: unit vectors off by {m.median:.1e} (median), {m.p99:.1e} (99%), "
                f"{m.largest:.1e} (largest), measured against {m.against} on {m.rows} queries"
            )
        return lines


def make_report(
    result: Cache, query: Cache, bank: Bank, plan: CompletionPlan, seed: int, counts: Mapping[str, int]
) -> CompletionReport:
    """The report of a completed cache; ``counts`` are shards, skipped, renewed, vanished and unfinished."""
    records = _records(result)
    spread = _values(records, "neighbours")
    tenth, median, ninetieth = np.percentile(spread, [10, 50, 90]) if len(spread) else [float("nan")] * 3
    gap, cosine = modality_gap(query, bank, seed)
    return CompletionReport(
        folder=result.path,
        rows=len(result),
        neighbours=float(median),
        query=query.modality,
        bank=bank.caches[0].modality,
        bank_rows=len(bank),
        neighbours_p10=float(tenth),
        neighbours_p90=float(ninetieth),
        gap=gap,
        gap_cosine=cosine,
        tau=plan.tau,
        mode=plan.mode,
        certificate=_certificate(records, len(bank)) if plan.mode == "topk" else {},
        estimate=_estimate(records, len(bank)) if plan.mode in ("ivf", "hnsw") else {},
        error=plan.error,
        why=plan.why,
        **counts,
    )


def modality_gap(query: Cache, bank: Bank, seed: int = 0) -> tuple[float, float]:
    """‖mean query − mean bank‖ and the cosine between the means, over seeded samples of unit rows."""
    if len(query) == 0:
        return float("nan"), float("nan")
    one, other = _mean(query, seed), _mean(bank, seed)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.linalg.norm(one - other)), float(one @ other) / lengths if lengths else float("nan")


def _mean(source: Cache | Bank, seed: int) -> npt.NDArray[np.float64]:
    numbers = sample_rows(len(source), min(len(source), _GAP_ROWS), seed)
    total = np.zeros(source.dim)
    for start in range(0, len(numbers), _BLOCK):
        total += source.rows(numbers[start : start + _BLOCK]).sum(axis=0, dtype=np.float64)
    return total / len(numbers)


def _records(cache: Cache) -> list[dict[str, Any]]:
    """``/meta`` of the rows; of 4096 evenly spread rows of a large cache."""
    rows = np.unique(np.linspace(0, max(0, len(cache) - 1), min(len(cache), _META_ROWS)).astype(np.int64))
    return [record for record in cache.meta(rows) if record]


def _values(records: list[dict[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([record[name] for record in records if name in record], np.float64)


def _certificate(records: list[dict[str, Any]], rows: int) -> dict[str, float]:
    k, mass, error = (_values(records, name) for name in ("k", "mass_bound", "vector_bound"))
    if len(k) == 0:
        return {}
    return {
        "k_share": float(np.median(k)) / rows,
        "k_share_max": float(k.max()) / rows,
        "mass_bound": float(mass.max()),
        "vector_bound": float(error.max(initial=0.0)),
        "exact_rows": float((k == rows).mean()),
    }


def _estimate(records: list[dict[str, Any]], rows: int) -> dict[str, float]:
    k, mass, high = (_values(records, name) for name in ("k", "mass_estimate", "mass_high"))
    if len(k) == 0:
        return {}
    return {
        "k_share": float(np.median(k)) / rows,
        "k_share_max": float(k.max()) / rows,
        "mass_estimate": float(np.median(mass)),
        "mass_high_p99": float(np.percentile(high, 99)),
    }
