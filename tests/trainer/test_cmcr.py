"""C-MCR against a plain restatement of the paper, and on the kit's real vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.trainer.fit import fit
from cmcr.trainer.losses import LossWeights, cmcr_loss
from cmcr.trainer.methods.cmcr import Cmcr, CmcrObjective, make_heads
from cmcr.trainer.noise import normal_rows
from cmcr.trainer.settings import FitSettings


class Matrix:
    """Rows of a matrix as a row source."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]


def restated(
    weights: dict[str, torch.Tensor],
    rows: dict[str, torch.Tensor],
    noise: dict[str, torch.Tensor],
    settings: dict[str, Any],
) -> torch.Tensor:
    """One step of C-MCR as the paper writes it, dense and plain.

    ``rows`` and ``noise`` have t1, t2, bank1, bank2 and t1, t2, x1, x2; ``weights`` the parameters of both projectors.
    """

    def norm(z: torch.Tensor) -> torch.Tensor:
        return z / z.pow(2).sum(1, keepdim=True).sqrt()

    def complete(t: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:  # semantic consistency
        scores = t @ bank.T / settings["tau1"]
        weight = scores.exp() / scores.exp().sum(1, keepdim=True)
        return weight @ bank

    def batch_norm(z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        mean, variance = z.mean(0), z.var(0, unbiased=False)
        return (z - mean) / (variance + 1e-5).sqrt() * scale + shift

    def project(z: torch.Tensor, space: str) -> torch.Tensor:
        w = {name.removeprefix(space + "."): value for name, value in weights.items() if name.startswith(space)}
        hidden = batch_norm(z @ w["linear1.weight"].T, w["bn1.weight"], w["bn1.bias"]).clamp(min=0)
        return batch_norm(hidden @ w["linear2.weight"].T, w["bn2.weight"], w["bn2.bias"])

    def contrast(a: torch.Tensor, b: torch.Tensor, tau: float) -> torch.Tensor:  # symmetric InfoNCE
        scores = (a @ b.T / tau).exp()
        forth = -(scores.diag() / scores.sum(1)).log().mean()
        back = -(scores.diag() / scores.sum(0)).log().mean()
        return (forth + back) / 2

    seen = {}
    for space in ("1", "2"):
        t, x = rows["t" + space], complete(rows["t" + space], rows["bank" + space])
        if settings["renormalise_completed"]:
            x = norm(x)
        t, x = (
            norm(z + settings["sigma"] * noise[name + space]) for z, name in ((t, "t"), (x, "x"))
        )  # semantic completion
        if settings["bn_pass"] == "joint":
            both = project(torch.cat([t, x]), space)
            t, x = both[: len(t)], both[len(t) :]
        else:
            t, x = project(t, space), project(x, space)
        seen["t" + space], seen["x" + space] = norm(t), norm(x)
    distance = torch.zeros((), dtype=torch.float64)
    for space in ("1", "2"):  # intra-MCR alignment
        squares = (seen["t" + space] - seen["x" + space]).pow(2).sum(1)
        distance = distance + (squares if settings["intra"] == "squared" else squares.sqrt()).mean() / 2
    overlap = contrast(seen["t1"], seen["t2"], settings["tau2"])
    completed = contrast(seen["x1"], seen["x2"], settings["tau3"])
    return overlap + completed + settings["lambda_intra"] * distance


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("bn_pass", ["joint", "separate"])
@pytest.mark.parametrize("intra", ["plain", "squared"])
def test_loss_and_gradients_equal_a_plain_restatement(
    unit: Callable[..., np.ndarray], intra: str, bn_pass: str, renormalise: bool
) -> None:
    count, dims, step = 40, {"1": 9, "2": 7}, 11
    t = {s: unit(count, d, int(s)).astype(np.float64) for s, d in dims.items()}
    bank = {s: unit(25, d, 10 + int(s)).astype(np.float64) for s, d in dims.items()}
    t = {s: rows / np.linalg.norm(rows, axis=1, keepdims=True) for s, rows in t.items()}
    settings = FitSettings(
        method="c-mcr", tau1=0.1, tau2=0.05, tau3=0.07, hidden=12, out_dim=8, lambda_intra=0.3, seed=5,
        intra=intra, bn_pass=bn_pass, renormalise_completed=renormalise,
    )  # fmt: skip

    def completed(s: str) -> np.ndarray:
        scores = np.exp(t[s] @ bank[s].T / 0.1)
        return scores / scores.sum(1, keepdims=True) @ bank[s]

    pairs: Any = SimpleNamespace(
        names=("1", "2"),
        overlap={s: Matrix(t[s]) for s in dims},
        completed={s: Matrix(completed(s)) for s in dims},
    )
    heads = {name: head.double() for name, head in make_heads(pairs, settings).items()}
    objective = CmcrObjective(pairs, settings, heads, torch.device("cpu"))
    objective.model.train()
    total, parts = objective.loss(np.arange(count), step)
    ours = torch.autograd.grad(total, list(objective.model.parameters()))

    numbers = torch.arange(count)
    streams = {"t1": 0, "t2": 1, "x1": 2, "x2": 3}
    noise = {n: normal_rows(numbers, dims[n[1]], seed=5, step=step, stream=k).double() for n, k in streams.items()}
    rows = {"t" + s: torch.from_numpy(t[s]) for s in dims} | {"bank" + s: torch.from_numpy(bank[s]) for s in dims}
    weights = {name: p.detach().clone().requires_grad_() for name, p in objective.model.named_parameters()}
    plain = restated(weights, rows, noise, {**settings.model_dump(), "sigma": settings.noise_std(0)})
    theirs = torch.autograd.grad(plain, list(weights.values()))
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert set(parts) == {"overlap", "completed", "intra"}
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) < 1e-6, name


def test_the_first_weights_come_from_the_seed_and_leave_torch_alone(unit: Callable[..., np.ndarray]) -> None:
    pairs: Any = SimpleNamespace(names=("1", "2"), overlap={"1": Matrix(unit(5, 4)), "2": Matrix(unit(5, 3))})
    settings = FitSettings(method="c-mcr", hidden=6, out_dim=2)
    state = torch.random.get_rng_state()
    first, second = make_heads(pairs, settings), make_heads(pairs, settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, head in first.items():
        for one, two in zip(head.parameters(), second[name].parameters(), strict=True):
            assert torch.equal(one, two)
    assert [name for name, _ in first["1"].named_parameters() if "linear" in name and "bias" in name] == []
    for kind, dim_out in (("half", 2), ("linear", 2)):
        made = make_heads(pairs, settings.model_copy(update={"projector": kind}))
        assert made["2"](torch.randn(4, 3)).shape == (4, dim_out)


@pytest.mark.parametrize("change", [{"projector": "half"}, {"projector": "linear"}, {"precision": "bf16"}])
def test_every_projector_and_precision_trains(world: Path, change: dict[str, str]) -> None:
    first = fit(world / "recipe.toml", output=world / "first", epochs=1, **change)
    last = fit(world / "recipe.toml", output=world / "last", epochs=12, **change)
    assert last.metrics["loss"] < first.metrics["loss"]
    assert last.connector.dim == 16


def test_spaces_without_banks_train_on_what_there_is(world: Path) -> None:
    space = {"clap": {"overlap": world / "text-clap"}, "clip": {"overlap": world / "text-clip"}}
    small = {"method": "c-mcr", "epochs": 2, "batch_size": 128, "hidden": 16, "out_dim": 8}
    bare = fit(space=space, output=world / "bare", **small)
    assert "loss_completed" not in bare.metrics
    space["clip"] = {"overlap": world / "text-clip", "bank": world / "images"}
    half = fit(space=space, output=world / "half", **small)
    assert half.metrics["loss_completed"] > 0


def test_options_of_other_methods_and_a_single_row_are_refused(world: Path) -> None:
    with pytest.raises(RecipeError, match="scale"):
        fit(world / "recipe.toml", output=world / "x", options={"scale": 3})
    pairs: Any = SimpleNamespace(N=1)
    with pytest.raises(FitError, match="too few"):
        Cmcr().fit(pairs, FitSettings(method="c-mcr"), SimpleNamespace())  # type: ignore[arg-type]


def test_projected_rows_of_any_length_give_the_same_loss(unit: Callable[..., np.ndarray]) -> None:
    rows = [torch.from_numpy(unit(12, 5, seed)) for seed in range(4)]
    one, _ = cmcr_loss((rows[0], rows[1]), (rows[2], rows[3]), LossWeights(0.1, 0.1))
    two, _ = cmcr_loss((5 * rows[0], rows[1]), (rows[2], 0.1 * rows[3]), LossWeights(0.1, 0.1))
    torch.testing.assert_close(one, two)


def macro_map(kit: Path, similarity: np.ndarray) -> float:
    """Core macro mAP of the kit's audio-to-image protocol, in percent, computed by the kit's own definition."""
    labels = [
        np.array([json.loads(line)["label"] for line in (kit / "audio_image" / name).open(encoding="utf-8")])
        for name in ("test_audio.jsonl", "test_image.jsonl")
    ]
    queries, gallery = labels[0], labels[1][labels[1] != "other"]
    similarity = similarity[:, labels[1] != "other"]
    precisions = []
    for row, label in zip(similarity, queries, strict=True):
        relevant = (gallery == label)[np.argsort(-row, kind="stable")]
        precisions.append((np.cumsum(relevant) / np.arange(1, len(relevant) + 1))[relevant].mean())
    by_class = [np.mean([p for p, q in zip(precisions, queries, strict=True) if q == c]) for c in np.unique(queries)]
    return 100 * float(np.mean(by_class))


@pytest.fixture
def kit_score(kit: Path, make_cache: Callable[..., Any], tmp_path: Path) -> Callable[..., float]:
    """Fits on the kit's text and memories and scores its test pairs, which the fit never sees."""
    for space, bank in (("audio_text", "audio_memory"), ("image_text", "image_memory")):
        for name, modality in (("texts", "text"), (bank, bank.partition("_")[0])):
            vectors = np.load(kit / space / f"{name}.npy")
            make_cache(f"{space}-{name}", vectors, space=space, modality=modality, shard=8192, dtype="float16")

    def score(**settings: Any) -> float:
        space = {
            "audio": {"overlap": tmp_path / "audio_text-texts", "bank": tmp_path / "audio_text-audio_memory"},
            "image": {"overlap": tmp_path / "image_text-texts", "bank": tmp_path / "image_text-image_memory"},
        }
        connector = fit(space=space, method="c-mcr", output=tmp_path / "out", **settings).connector
        audio, image = (np.load(kit / "audio_image" / f"test_{name}.npy") for name in ("audio", "image"))
        return macro_map(kit, connector.similarity(audio, image, ("audio", "image")))

    return score


@pytest.mark.kit
def test_one_epoch_on_real_vectors_beats_procrustes_by_far(kit_score: Callable[..., float]) -> None:
    assert kit_score(epochs=1, batch_size=512) > 54  # Procrustes 44.4


@pytest.mark.kit
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_papers_defaults_reach_the_published_level_on_real_vectors(kit_score: Callable[..., float]) -> None:
    assert kit_score() >= 62
