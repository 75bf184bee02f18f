"""The sandbox over several world seeds: ``python scripts/sandbox_seeds.py`` writes docs/results/sandbox-seeds.*.

World and encoders were committed before any method was tried on them; see docs/sandbox.md. A method beats another
where the mean difference of their R@1 over the worlds is more than two standard errors of that mean, and where it is so
within every single world too, by the paired difference over the queries.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import cmcr
import numpy as np
from cmcr.pipeline.demo.results import TaskResult

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RIVALS = ("identity", "procrustes", "ridge", "bridge")


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


def summary(results: list[TaskResult]) -> dict[str, object]:
    """R@1 of every method in every world, and how far C-MCR is ahead of each rival, in standard errors."""
    methods = [row.method for row in results[0].rows]
    recall = {m: [r.of(m).figures["R@1"] for r in results] for m in methods}
    ahead = {}
    for rival in RIVALS:
        gaps = np.array([a - b for a, b in zip(recall["c-mcr"], recall[rival], strict=True)])
        ahead[rival] = {
            "mean": float(gaps.mean()),
            "standard_errors_over_worlds": float(gaps.mean() / (gaps.std(ddof=1) / len(gaps) ** 0.5)),
            "least_standard_errors_within_a_world": min(_within(r, rival) for r in results),
        }
    return {"R@1": recall, "ahead": ahead, "share_of_upper_bound": [r.share_of_bound for r in results]}


def _within(result: TaskResult, rival: str) -> float:
    """Paired difference of R@1 over the queries of one world, in its standard errors."""
    ours, theirs = (result.of(m).report for m in ("c-mcr", rival))
    assert ours is not None
    assert theirs is not None
    gaps = ours.there.per_query.recall[:, 0] - theirs.there.per_query.recall[:, 0]  # (Q,) R@1
    return float(gaps.mean() / (gaps.std(ddof=1) / len(gaps) ** 0.5))


def page(record: dict[str, dict[str, object]], seeds: int) -> str:
    """The table as Markdown."""
    lines = [f"# Sandbox, {seeds} world seeds", "", "Made by `python scripts/sandbox_seeds.py`. R@1 in percent.", ""]
    for name, task in record.items():
        recall, ahead, share = task["R@1"], task["ahead"], task["share_of_upper_bound"]
        assert isinstance(recall, dict)
        assert isinstance(ahead, dict)
        assert isinstance(share, list)
        lines += [f"## {name}", "", "| method | " + " | ".join(f"world {s}" for s in range(seeds)) + " | mean |"]
        lines += ["|---|" + "---|" * (seeds + 1)]
        for method, values in recall.items():
            cells = " | ".join(f"{100 * v:.1f}" for v in (*values, float(np.mean(values))))
            lines.append(f"| {method} | {cells} |")
        cells = " | ".join(f"{100 * v:.0f}%" for v in (*share, float(np.mean(share))))
        lines += [f"| share of the upper bound | {cells} |", ""]
        for rival, gap in ahead.items():
            mean, over, within = gap.values()
            lines.append(
                f"- C-MCR against {rival}: {100 * mean:+.1f} points, {over:.1f} standard errors over the worlds;"
                f" at least {within:.1f} within each world."
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
