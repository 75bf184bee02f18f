"""C-MCR against a plain restatement of the paper (Wang et al., arXiv 2305.14381), loss for loss, gradient for gradient.

``paper`` is written from the paper and from design.md section 4, dense and without a line of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.trainer.methods.cmcr import CmcrObjective, make_heads
from cmcr.trainer.noise import normal_rows
from cmcr.trainer.settings import FitSettings
from torch import Tensor

Tensors = Mapping[str, Tensor]


def paper(weights: Tensors, rows: Tensors, noise: Tensors, s: Mapping[str, Any]) -> dict[str, Tensor]:
    """One step: ``rows`` t1, t2 and, where there are banks, bank1, bank2; ``noise`` t1, t2, x1, x2."""

    def norm(z: Tensor) -> Tensor:
        return z / z.pow(2).sum(1, keepdim=True).sqrt()

    def batch_norm(z: Tensor, w: Tensors, name: str) -> Tensor:
        mean, variance = z.mean(0), z.var(0, unbiased=False)
        return (z - mean) / (variance + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]

    def project(z: Tensor, space: str) -> Tensor:
        w = {name[2:]: value for name, value in weights.items() if name[0] == space}
        if s["heads"][space] == "identity":
            return z
        if s["heads"][space] == "linear":
            return z @ w["weight"].T + w["bias"]
        hidden = batch_norm(z @ w["linear1.weight"].T, w, "bn1").clamp(min=0)
        return hidden if s["heads"][space] == "half" else batch_norm(hidden @ w["linear2.weight"].T, w, "bn2")

    def contrast(a: Tensor, b: Tensor, tau: float) -> Tensor:  # symmetric InfoNCE
        scores = (a @ b.T / tau).exp()
        return -0.5 * ((scores.diag() / scores.sum(1)).log() + (scores.diag() / scores.sum(0)).log()).mean()

    seen: dict[str, Tensor] = {}
    losses = {"intra": torch.zeros((), dtype=torch.float64)}
    for space in "12":
        t, bank = rows["t" + space], rows.get("bank" + space)
        z = [norm(t + s["sigma"][space] * noise["t" + space])]  # semantic completion: the perturbation
        if bank is not None:
            scores = (t @ bank.T / s["tau1"]).exp()
            x = scores / scores.sum(1, keepdim=True) @ bank  # semantic consistency: the completion
            x = norm(x) if s["renormalise_completed"] else x
            z.append(norm(x + s["sigma"][space] * noise["x" + space]))
        if s["bn_pass"] == "joint":
            z = list(project(torch.cat(z), space).split(len(t)))
        else:
            z = [project(part, space) for part in z]
        seen["t" + space], seen["x" + space] = norm(z[0]), norm(z[-1])
        if bank is not None:  # intra-MCR alignment
            squares = (seen["t" + space] - seen["x" + space]).pow(2).sum(1)
            losses["intra"] = losses["intra"] + 0.5 * (squares if s["intra"] == "squared" else squares.sqrt()).mean()
    losses["overlap"] = contrast(seen["t1"], seen["t2"], s["tau2"])
    losses["completed"] = contrast(seen["x1"], seen["x2"], s["tau3"])
    if "bank1" not in rows and "bank2" not in rows:
        return {"overlap": losses["overlap"], "total": losses["overlap"]}
    return {**losses, "total": losses["overlap"] + losses["completed"] + s["lambda_intra"] * losses["intra"]}


class Matrix:
    """Rows of a float64 matrix as a row source."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]


COUNT, STEP, TAU1 = 40, 11, 0.1
SWITCHES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "squared distances": {"intra": "squared"},
    "two batches": {"bn_pass": "separate"},
    "sums as they are": {"renormalise_completed": False},
    "all three": {"intra": "squared", "bn_pass": "separate", "renormalise_completed": False},
    "noise of one norm": {"noise_norm": 0.7},
    "no noise": {"noise_variance": 0.0},
    "half projectors": {"projector": "half"},
    "linear projectors": {"projector": "linear"},
    "an identity head": {"projector": {"1": "half", "2": "identity"}, "out_dim": 7},
    "a kept space": {"keep": "1"},
    "a kept space, two batches": {"keep": "2", "bn_pass": "separate", "intra": "squared"},
    "logits in chunks": {"chunk": 7},
    "a shared space wider than both": {"out_dim": 31, "hidden": 6},
    "no weight on the intra term": {"lambda_intra": 0.0},
    "no bank in one space": {"banks": "1"},
    "no bank in the other": {"banks": "2", "bn_pass": "separate"},
    "no bank": {"banks": ""},
}


def world(unit: Callable[..., np.ndarray], banks: str) -> tuple[Any, dict[str, Tensor]]:
    """Pairs whose completion is the dense one in float64, and the same vectors as ``paper`` takes them."""
    rows: dict[str, Tensor] = {}
    for space, dim in (("1", 9), ("2", 7)):
        rows["t" + space] = torch.nn.functional.normalize(torch.from_numpy(unit(COUNT, dim, int(space))).double())
        if space in banks:
            rows["bank" + space] = torch.from_numpy(unit(25, dim, 10 + int(space))).double()
    completed: dict[str, Matrix | None] = {}
    for space in "12":
        bank = rows.get("bank" + space)
        sharp = None if bank is None else torch.softmax(rows["t" + space] @ bank.T / TAU1, 1) @ bank
        completed[space] = None if sharp is None else Matrix(sharp.numpy())
    overlap = {space: Matrix(rows["t" + space].numpy()) for space in "12"}
    return SimpleNamespace(names=("1", "2"), overlap=overlap, completed=completed), rows


@pytest.mark.parametrize("name", SWITCHES)
def test_every_loss_and_gradient_is_the_papers(unit: Callable[..., np.ndarray], name: str) -> None:
    changes = dict(SWITCHES[name])
    pairs, rows = world(unit, changes.pop("banks", "12"))
    fixed = {"tau1": TAU1, "tau2": 0.05, "tau3": 0.07, "hidden": 12, "out_dim": 8, "lambda_intra": 0.3, "seed": 5}
    settings = FitSettings(method="c-mcr", **{**fixed, **changes})
    heads = {space: head.double() for space, head in make_heads(pairs, settings).items()}
    objective = CmcrObjective(pairs, settings, heads, torch.device("cpu"))
    objective.model.train()
    total, parts = objective.loss(np.arange(COUNT), STEP)
    ours = torch.autograd.grad(total, list(objective.model.parameters()))

    dims = {space: pairs.overlap[space].dim for space in "12"}
    streams = {"t1": 0, "t2": 1, "x1": 2, "x2": 3}
    drawn = {n: normal_rows(torch.arange(COUNT), dims[n[1]], seed=5, step=STEP, stream=k) for n, k in streams.items()}
    weights = {n: p.detach().clone().requires_grad_() for n, p in objective.model.named_parameters()}
    told = {
        **settings.model_dump(),
        "sigma": {space: settings.noise_std(dim) for space, dim in dims.items()},
        "heads": {space: settings.head_kind(space) for space in "12"},
    }
    losses = paper(weights, rows, {n: z.double() for n, z in drawn.items()}, told)
    theirs = torch.autograd.grad(losses["total"], list(weights.values()))
    assert {**parts, "total": total}.keys() == losses.keys()
    for part, value in {**parts, "total": total}.items():
        assert value.item() == pytest.approx(losses[part].item(), rel=1e-6, abs=1e-12), part
    assert all(head.spec.dim_out == settings.shared_dim(dims) for head in heads.values())
    for parameter, mine, other in zip(weights, ours, theirs, strict=True):
        assert float((mine - other).norm()) <= 1e-6 * float(other.norm()), parameter


def test_a_kept_space_has_no_parameters_and_its_rows_are_perturbed(unit: Callable[..., np.ndarray]) -> None:
    pairs, _ = world(unit, "12")
    settings = FitSettings(method="c-mcr", keep="2", hidden=12)
    heads = {space: head.double() for space, head in make_heads(pairs, settings).items()}
    objective = CmcrObjective(pairs, settings, heads, torch.device("cpu"))
    assert {name[0] for name, _ in objective.model.named_parameters()} == {"1"}
    losses = [objective.loss(np.arange(COUNT), step)[0].item() for step in (0, 1)]
    assert losses[0] != losses[1]
