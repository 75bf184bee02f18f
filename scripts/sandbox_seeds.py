"""The sandbox over several world seeds: ``python scripts/sandbox_seeds.py`` writes docs/results/sandbox-seeds.*.

World and encoders were committed before any method was tried on them; see docs/sandbox.md. A method beats another
where the mean difference of their R@1 over the worlds is more than two standard errors of that mean, and where it is so
within every single world too, by the paired difference over the queries. Asked of C-MCR, and of weave against every
other method. The row "true pairs" is C-MCR's projectors fitted on pairs: a yardstick, no bound.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import cmcr
import numpy as np
from cmcr.pipeline.demo.results import TaskResult
from cmcr.pipeline.demo.tasks import TRUE_PAIRS

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
BASELINES = ("identity", "procrustes", "ridge", "bridge")
RIVALS = {"c-mcr": BASELINES, "weave": (*BASELINES, "c-mcr", TRUE_PAIRS)}


def main() -> None:
    """Run every world, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="keep the demo folders here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        worlds = [cmcr.demo(work / f"world-{seed}", seed=seed, say=print).tasks for seed in range(arguments.seeds)]
    record = {tasks[0].task.name: summary(list(tasks)) for tasks in zip(*worlds, strict=True)}
    text = page(record, arguments.seeds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sandbox-seeds.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "sandbox-seeds.md").write_text(text, encoding="utf-8")
    print(text)


def summary(results: list[TaskResult]) -> dict[str, Any]:
    """R@1 of every method in every world, and how far C-MCR and weave are ahead of each rival, in standard errors."""
    methods = [row.method for row in results[0].rows]
    recall = {m: [r.of(m).figures["R@1"] for r in results] for m in methods}
    ahead = {method: {rival: _lead(results, method, rival) for rival in RIVALS[method]} for method in RIVALS}
    shares = {method: [r.share(method) for r in results] for method in RIVALS}
    return {
        "R@1": recall,
        "ahead": ahead,
        "share_of_true_pairs": shares,
        "true_pairs": [r.of(TRUE_PAIRS).rows for r in results],
        "weave_chose": [r.of("weave").chose for r in results],
    }


def _lead(results: list[TaskResult], method: str, rival: str) -> dict[str, float]:
    """Mean lead in R@1, in standard errors over the worlds, and the least within one of them."""
    gaps = np.array([r.of(method).figures["R@1"] - r.of(rival).figures["R@1"] for r in results])
    return {
        "mean": float(gaps.mean()),
        "standard_errors_over_worlds": float(gaps.mean() / (gaps.std(ddof=1) / len(gaps) ** 0.5)),
        "least_standard_errors_within_a_world": min(_within(r, method, rival) for r in results),
    }


def _within(result: TaskResult, method: str, rival: str) -> float:
    """Paired difference of R@1 over the queries of one world, in its standard errors."""
    ours, theirs = (result.of(m).report for m in (method, rival))
    assert ours is not None
    assert theirs is not None
    gaps = ours.there.per_query.recall[:, 0] - theirs.there.per_query.recall[:, 0]  # (Q,) R@1
    return float(gaps.mean() / (gaps.std(ddof=1) / len(gaps) ** 0.5))


def page(record: dict[str, dict[str, Any]], seeds: int) -> str:
    """The table as Markdown."""
    lines = [f"# Sandbox, {seeds} world seeds", "", "Made by `python scripts/sandbox_seeds.py`. R@1 in percent.", ""]
    lines += [
        "The row true pairs is the projectors and the overlap loss of C-MCR on true pairs of the two outer modalities:",
        "few pairs, raw vectors, no bank. It is a yardstick and no bound; nothing in another row sees a pair.",
        "",
    ]
    for name, task in record.items():
        lines += [f"## {name}", "", "| method | " + " | ".join(f"world {s}" for s in range(seeds)) + " | mean |"]
        lines += ["|---|" + "---|" * (seeds + 1)]
        for method, values in task["R@1"].items():
            cells = " | ".join(f"{100 * v:.1f}" for v in (*values, float(np.mean(values))))
            shown = f"{method} ({task['true_pairs'][0]:,})" if method == TRUE_PAIRS else method
            lines.append(f"| {shown} | {cells} |")
        for method, share in task["share_of_true_pairs"].items():
            cells = " | ".join(f"{100 * v:.0f}%" for v in (*share, float(np.mean(share))))
            lines.append(f"| {method} / {TRUE_PAIRS} | {cells} |")
        lines.append("")
        for method, rivals in task["ahead"].items():
            lines += [_lead_line(method, rival, gap) for rival, gap in rivals.items()]
            lines.append("")
        chosen = Counter(task["weave_chose"])
        lines += ["weave chose: " + ", ".join(f"{c} in {n} worlds" for c, n in chosen.most_common()) + ".", ""]
    return "\n".join(lines)


def _lead_line(method: str, rival: str, gap: dict[str, float]) -> str:
    """One lead in words."""
    mean, over, within = gap.values()
    name = {"c-mcr": "C-MCR"}.get(method, method)
    return (
        f"- {name} against {rival}: {100 * mean:+.1f} points, {over:.1f} standard errors over the worlds;"
        f" at least {within:.1f} within each world."
    )


if __name__ == "__main__":
    main()
