"""How well weave's label-free criterion ranks its candidates: ``python scripts/weave_study.py KIT WORK``.

Makes the caches of the data kit under WORK, fits every candidate of ``weave`` and some that it leaves out, over several
seeds, and writes docs/results/weave-study.md: criterion and test figures side by side, the candidate that was chosen,
and the rank correlation of both. Test sets are read here alone, after every candidate is made and scored.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from cmcr.trainer.pairs import Pairs, load_pairs
from cmcr.trainer.recipe import load_recipe
from cmcr.trainer.weave.criterion import choose, hold_out, score
from cmcr.trainer.weave.data import WeaveData, complete, weave_data
from cmcr.trainer.weave.experts import Expert, anchors, linear
from cmcr.trainer.weave.hubs import hub_rows
from cmcr.trainer.weave.trained import TrainingPlan, trained
from torch.nn import functional as F

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "weave-study.md"
GRID = {"powers": (0.0, 0.1, 0.25, 0.5, 1.0), "scales": (8.0, 12.0, 17.0, 25.0), "whitens": (0.0, 0.5, 1.0)}
IN_WEAVE = {"powers": (0.0, 0.1, 0.25, 0.5), "scales": (12.0, 17.0, 25.0), "whitens": (0.5, 1.0)}
INTRODUCTION = """\
Candidates are fitted on the rows that are not held out. *Criterion*: mean reciprocal rank, percent, of real bank items'
own overlap items across the spaces (docs/method.md 10); *completed rows*: the same of held-out completed rows, tried
first. Neither sees a label. *Corrects in*: seeds in which the banks show hubness that the correction reduces."""


class Silent:
    """A run that keeps nothing."""

    validator = None

    def log(self, record: Mapping[str, Any]) -> None: ...
    def resume(self) -> None: ...
    def save(self, *_: Any) -> None: ...
    def advance(self, *_: Any) -> None: ...
    def chose(self, **_: Any) -> None: ...


def candidates(data: WeaveData, pairs: Pairs, settings: Any) -> Iterator[Expert]:
    """Every candidate, those outside weave's own grid too."""
    yield trained(data, pairs, settings, TrainingPlan(), Silent())  # type: ignore[arg-type]
    for power in GRID["powers"]:
        yield linear(data, power)
    for scale in GRID["scales"]:
        for whiten in GRID["whitens"]:
            yield anchors(data, scale, whiten, 4096, settings.seed)


def of_weave(expert: Expert) -> bool:
    """Whether weave looks at this candidate by default."""
    found = expert.settings
    if expert.name == "linear":
        return found["power"] in IN_WEAVE["powers"]
    return expert.name == "trained" or (found["scale"] in IN_WEAVE["scales"] and found["whiten"] in IN_WEAVE["whitens"])


def completed_mrr(expert: Expert, data: WeaveData, held: torch.Tensor) -> float:
    """The criterion that was tried first and dropped: held-out *completed* rows find each other."""
    rows = [expert.rows(i, complete(side.overlap[held], side.bank, 12.0)) for i, side in enumerate(data.sides)]
    scores = rows[0] @ rows[1].T
    ranks = [(s > s.diagonal()[:, None]).sum(dim=1) + 1 for s in (scores, scores.T)]
    return float(sum((1 / r).mean() for r in ranks) / 2)


def test_scores(
    expert: Expert, data: WeaveData, queries: torch.Tensor, gallery: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Scores (Q, G) of the test sets, plain and with hubness corrected."""
    rows = []
    for index, vectors in enumerate((queries, gallery)):
        rows.append(expert.rows(index, F.normalize(vectors - data.sides[index].bank_mean, dim=1)))
    scores = rows[0] @ rows[1].T
    banks = [expert.rows(i, side.bank[:4096]) for i, side in enumerate(data.sides)]
    near = [(rows[i] @ banks[1 - i].T).topk(10, dim=1).values.mean(dim=1) for i in (0, 1)]
    return {"plain": scores, "corrected": scores - 0.5 * near[0][:, None] - 0.5 * near[1][None, :]}


def audio_image(
    kit: Path, reference: Any
) -> tuple[str, torch.Tensor, torch.Tensor, Callable[[Any], tuple[float, float]]]:
    """Test vectors of the kit's audio_image, and its measure: core and full macro mAP."""
    labels = [
        np.array([r["label"] for r in reference.rows("audio_image", f"test_{m}.jsonl")]) for m in ("audio", "image")
    ]
    core = labels[1] != "other"

    def measure(scores: Any) -> tuple[float, float]:
        return (
            100 * _macro(reference, scores[:, core], labels[0], labels[1][core]),
            100 * _macro(reference, scores, labels[0], labels[1]),
        )

    vectors = [
        torch.from_numpy(reference.unit(reference.load("audio_image", f"test_{m}.npy"))) for m in ("audio", "image")
    ]
    return "core, full macro mAP", vectors[0], vectors[1], measure


def _macro(reference: Any, scores: Any, queries: Any, gallery: Any) -> float:
    """Macro mAP of the kit from scores: its function multiplies, and scores times the identity are the scores."""
    unit, reference.unit = reference.unit, lambda rows: rows
    try:
        return float(reference.class_retrieval(scores, queries, np.eye(scores.shape[1]), gallery)["macro_mAP"])
    finally:
        reference.unit = unit


def clip_minilm(
    kit: Path, reference: Any
) -> tuple[str, torch.Tensor, torch.Tensor, Callable[[Any], tuple[float, float]]]:
    """Test vectors of the kit's clip_minilm, and its measure: R@1 both ways."""

    def measure(scores: Any) -> tuple[float, float]:
        own = np.diag(scores)
        return (
            100 * float((scores <= own[:, None]).all(1).mean()),
            100 * float((own[:, None] >= scores.T).all(1).mean()),
        )

    names = ("test_caption_minilm.npy", "test_image_clip.npy")
    vectors = [torch.from_numpy(reference.unit(reference.load("clip_minilm", name))) for name in names]
    return "R@1 t2i, i2t", vectors[0], vectors[1], measure


def study(recipe: Path, seed: int, test: Any) -> list[dict[str, Any]]:
    """One line for each candidate of one seed."""
    plan = load_recipe(recipe, [f"fit.seed={seed}", "fit.method=weave"])
    pairs = load_pairs(plan, complete=False)
    data = weave_data(pairs, 65536, 16384, seed)
    held = hold_out(data, seed)
    part = data.part(held.fitted)
    experts = list(candidates(part, pairs, plan.fit))
    found = [score(expert, data, held, seed) for expert in experts]
    ours = [i for i, expert in enumerate(experts) if of_weave(expert)]
    chosen = choose([experts[i] for i in ours], [found[i] for i in ours])
    _, queries, gallery, measure = test
    lines = []
    for expert, criterion in zip(experts, found, strict=True):
        scored = test_scores(expert, part, queries, gallery)
        lines.append(
            {
                "seed": seed,
                "name": " ".join([expert.name, *(f"{k} {v:g}" for k, v in expert.settings.items())]),
                "mrr": 100 * criterion.mrr,
                "completed": 100 * completed_mrr(expert, data, held.held_out),
                "plain": measure(scored["plain"].numpy()),
                "corrected": measure(scored["corrected"].numpy()),
                "hubs": hub_rows(expert, part) is not None,
                "chosen": expert is chosen,
                "in_weave": of_weave(expert),
            }
        )
    return lines


def spearman(one: Any, other: Any) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def page(name: str, what: str, lines: list[dict[str, Any]]) -> list[str]:
    """The table of one benchmark: means over the seeds, and how both criteria ranked the candidates."""
    seeds = sorted({line["seed"] for line in lines})
    text = [
        f"## {name}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; means ± standard deviation. Test: {what}; percent.",
        "",
    ]
    text += ["| candidate | criterion | completed rows | test | hubness corrected | corrects in | chosen in |"]
    text += ["|---|---|---|---|---|---|---|"]
    for candidate in dict.fromkeys(line["name"] for line in lines):
        mine = [line for line in lines if line["name"] == candidate]

        def cell(field: str, part: int | None = None, mine: list[dict[str, Any]] = mine) -> str:
            values = [line[field] if part is None else line[field][part] for line in mine]
            return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"

        star = "" if mine[0]["in_weave"] else " (not in weave)"
        both = [f"{cell(field, 0)} / {cell(field, 1)}" for field in ("plain", "corrected")]
        counts = [sum(line[field] for line in mine) for field in ("hubs", "chosen")]
        text.append(
            f"| {candidate}{star} | {cell('mrr')} | {cell('completed')} | {both[0]} | {both[1]} |"
            f" {counts[0]} of {len(mine)} | {counts[1]} of {len(mine)} |"
        )
    for field, title in (("mrr", "the criterion"), ("completed", "completed rows, the criterion dropped")):
        by_seed = [
            spearman(*zip(*((line[field], sum(line["plain"])) for line in lines if line["seed"] == seed), strict=True))
            for seed in seeds
        ]
        text += ["", f"Rank correlation of {title} with the mean of both test figures: {_listed(by_seed)}."]
    return [*text, ""]


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def main() -> None:
    """Make the caches, study both benchmarks, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("reference_metrics", arguments.kit / "reference_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    if not arguments.work.exists():
        script = Path(__file__).with_name("kit_caches.py")
        subprocess.run([sys.executable, str(script), str(arguments.kit), str(arguments.work)], check=True)
    text = [
        "# What weave chooses from, and how its criterion ranks it",
        "",
        "Made by `python scripts/weave_study.py KIT WORK`.",
    ]
    text += [INTRODUCTION, ""]
    for name, test in (("audio_image", audio_image), ("clip_minilm", clip_minilm)):
        opened = test(arguments.kit, reference)
        lines: list[dict[str, Any]] = []
        for seed in range(arguments.seeds):
            lines += study(arguments.work / name / f"{name}.toml", seed, opened)
            print(json.dumps(lines[-1]), flush=True)
        text += page(name, opened[0], lines)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
