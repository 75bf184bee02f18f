"""Ex-MCR against a plain restatement, its data against naive averages, and what it promises: one space untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import FitError, RecipeError
from cmcr.trainer.fit import fit, recipe_of
from cmcr.trainer.methods.ex_mcr import ExMcr, ExMcrObjective, make_head
from cmcr.trainer.noise import normal_rows
from cmcr.trainer.plan_fit import plan_fit
from cmcr.trainer.quadruples import Quadruples, Stacked, carry, overlap_rows, quadruples
from cmcr.trainer.settings import FitSettings

Unit = Callable[..., np.ndarray]


class Matrix:
    """Rows of a matrix as a row source and as a bank."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]

    def blocks(self, size: int = 17) -> Iterator[np.ndarray]:
        return (self.matrix[start : start + size] for start in range(0, len(self.matrix), size))


def averaged(query: np.ndarray, keys: np.ndarray, values: np.ndarray, tau: float) -> np.ndarray:
    """Softmax over keys, weighted sum of values, in float64."""
    scores = query.astype(np.float64) @ keys.astype(np.float64).T / tau
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ values.astype(np.float64)


def normed(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_pairs(unit: Unit, banks: tuple[bool, bool] = (True, True)) -> Any:
    """Two spaces of 9 and 7 dimensions over 40 items, banks of 23 and 31 rows."""
    rows = {"clap": (unit(40, 9, 1), unit(23, 9, 2)), "clip": (unit(40, 7, 3), unit(31, 7, 4))}
    there = dict(zip(rows, banks, strict=True))
    return SimpleNamespace(
        names=("clap", "clip"),
        N=40,
        overlap={name: Matrix(t) for name, (t, _) in rows.items()},
        bank={name: Matrix(x) if there[name] else None for name, (_, x) in rows.items()},
        completed={
            name: Matrix(averaged(t, x, x, 0.1).astype(np.float32)) if there[name] else None
            for name, (t, x) in rows.items()
        },
        temperature=lambda name, tau: tau,
        keys=lambda rows: [f"item-{row}" for row in rows],
    )


def test_carried_rows_are_weighted_in_one_space_and_averaged_in_both(unit: Unit) -> None:
    queries, first, second = unit(13, 9, 5), unit(41, 9, 6), unit(41, 7, 7)
    got = carry(queries, Matrix(first), Matrix(second), 0.05)  # type: ignore[arg-type]
    assert got.shape == (13, 16)
    np.testing.assert_allclose(got[:, :9], averaged(queries, first, first, 0.05), atol=1e-5)
    np.testing.assert_allclose(got[:, 9:], averaged(queries, first, second, 0.05), atol=1e-5)


def test_quadruples_are_centred_on_every_modality_in_turn(unit: Unit) -> None:
    pairs, settings = some_pairs(unit), FitSettings(method="ex-mcr", tau1=0.1)
    data = quadruples(pairs, "clap", "clip", settings, ("base", "overlap", "leaf"))
    assert data.parts == (("overlap", 40), ("leaf", 23), ("base", 31))
    assert len(data) == 94
    t1, t2 = pairs.overlap["clap"].matrix, pairs.overlap["clip"].matrix
    x1, x2 = pairs.bank["clap"].matrix, pairs.bank["clip"].matrix
    leaf = (averaged(x1, t1, t1, 0.1), averaged(x1, t1, t2, 0.1))
    base = (averaged(x2, t2, t1, 0.1), averaged(x2, t2, t2, 0.1))
    want = {
        "leaf": [t1, leaf[0], base[0]],
        "base": [t2, leaf[1], base[1]],
        "leaf_other": [averaged(t1, x1, x1, 0.1), x1, averaged(normed(base[0]), x1, x1, 0.1)],
        "base_other": [averaged(t2, x2, x2, 0.1), averaged(normed(leaf[1]), x2, x2, 0.1), x2],
    }
    order = np.random.default_rng(0).permutation(94)
    for name, parts in want.items():
        np.testing.assert_allclose(getattr(data, name).rows(order), np.concatenate(parts)[order], atol=1e-5)
    only = quadruples(pairs, "clap", "clip", settings, ("leaf",))
    np.testing.assert_array_equal(only.leaf.rows(np.arange(23)), data.leaf.rows(np.arange(40, 63)))


def test_a_space_without_a_bank_gives_no_rows_and_no_completions(unit: Unit) -> None:
    settings = FitSettings(method="ex-mcr", tau1=0.1)
    data = quadruples(some_pairs(unit, (False, True)), "clap", "clip", settings, ("overlap", "leaf", "base"))
    assert data.parts == (("overlap", 40), ("base", 31))
    assert data.leaf_other is None
    assert isinstance(data.base_other, Stacked)
    assert len(data.base_other) == 71
    bare = some_pairs(unit, (False, False))
    assert quadruples(bare, "clap", "clip", settings, ("overlap", "leaf")).parts == (("overlap", 40),)
    with pytest.raises(RecipeError, match="nothing to train on"):
        ExMcr().trained_rows(bare, settings.model_copy(update={"options": {"centres": ["leaf", "base"]}}))


def restated(w: dict[str, torch.Tensor], rows: dict[str, torch.Tensor], settings: FitSettings) -> torch.Tensor:
    """One step of Ex-MCR, dense and plain; ``rows`` are t, x of the leaf and T, X of the base, perturbed."""

    def norm(z: torch.Tensor) -> torch.Tensor:
        return z / z.pow(2).sum(1, keepdim=True).sqrt()

    def batch_norm(z: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance = z.mean(0), z.var(0, unbiased=False)
        return (z - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def f_l(z: torch.Tensor) -> torch.Tensor:
        return z @ w["linear.weight"].T + w["linear.bias"]

    def f_m(z: torch.Tensor) -> torch.Tensor:
        for mlp in ("mlp1", "mlp2"):
            z = batch_norm(z @ w[f"{mlp}.linear1.weight"].T, f"{mlp}.bn1").clamp(min=0)
            z = batch_norm(z @ w[f"{mlp}.linear2.weight"].T, f"{mlp}.bn2")
        return z

    def contrast(a: torch.Tensor, b: torch.Tensor, tau: float) -> torch.Tensor:
        scores = (a @ b.T / tau).exp()
        forth = -(scores.diag() / scores.sum(1)).log().mean()
        return (forth - (scores.diag() / scores.sum(0)).log().mean()) / 2

    near = {name: f_l(rows[name]) for name in "tx"}
    if settings.bn_pass == "joint":
        both = f_m(torch.cat([near["t"], near["x"]]))
        far = {"t": both[: len(near["t"])], "x": both[len(near["t"]) :]}
    else:
        far = {name: f_m(z) for name, z in near.items()}
    t, x = norm(far["t"]), norm(far["x"])
    inter = (
        contrast(t, rows["T"], settings.tau2)
        + contrast(t, rows["X"], settings.tau3)
        + contrast(x, rows["T"], settings.tau3)
        + contrast(x, rows["X"], settings.tau3)
    )
    squares = (norm(near["t"]) - norm(near["x"])).pow(2).sum(1)
    distance = squares.mean() if settings.intra == "squared" else squares.sqrt().mean()
    return inter / 4 + settings.lambda_intra * distance


@pytest.mark.parametrize("bn_pass", ["joint", "separate"])
@pytest.mark.parametrize("intra", ["plain", "squared"])
def test_loss_and_gradients_equal_a_plain_restatement(unit: Unit, bn_pass: str, intra: str) -> None:
    pairs, step = some_pairs(unit), 11
    settings = FitSettings(
        method="ex-mcr", tau2=0.05, tau3=0.07, hidden=12, lambda_intra=0.3, seed=5, bn_pass=bn_pass, intra=intra
    )
    vectors = {
        n: normed(unit(40, d, k).astype(np.float64)) for k, (n, d) in enumerate(zip("tTxX", (9, 7, 9, 7), strict=True))
    }
    data = Quadruples(*(Matrix(vectors[name]) for name in "tTxX"), (("overlap", 40),))  # type: ignore[arg-type]
    objective = ExMcrObjective(pairs, settings, data, torch.device("cpu"))
    objective.model.double().train()
    total, parts = objective.loss(np.arange(40), step)
    ours = torch.autograd.grad(total, list(objective.model.parameters()))
    weights = {
        name.removeprefix("clap."): p.detach().clone().requires_grad_()
        for name, p in objective.model.named_parameters()
    }
    rows = {}
    for stream, name in enumerate("tTxX"):
        z = torch.from_numpy(vectors[name])
        z = (
            z
            + settings.noise_std(0)
            * normal_rows(torch.arange(40), z.shape[1], seed=5, step=step, stream=stream).double()
        )
        rows[name] = z / z.norm(dim=1, keepdim=True)
    plain = restated(weights, rows, settings)
    theirs = torch.autograd.grad(plain, list(weights.values()))
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert set(parts) == {"overlap", "overlap_other", "other_overlap", "completed", "intra"}
    for name, mine, other in zip(weights, ours, theirs, strict=True):
        scale = float(other.norm())
        assert float((mine - other).norm()) < 1e-6 * scale + 1e-12, name


def test_the_first_weights_come_from_the_seed_and_leave_torch_alone(unit: Unit) -> None:
    pairs, settings = some_pairs(unit), FitSettings(method="ex-mcr", hidden=6)
    state = torch.random.get_rng_state()
    first, second = make_head(pairs, settings), make_head(pairs, settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.testing.assert_close(first.intra(torch.eye(9)), torch.eye(9))
    other = make_head(pairs, settings.model_copy(update={"seed": 1}))
    assert not torch.equal(other.mlp1.linear1.weight, first.mlp1.linear1.weight)


def seen(meaning: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Meanings (N, 8) as unit vectors of a space: a linear view of its seed, no noise."""
    view = np.random.default_rng(seed).standard_normal((8, width))
    return normed(meaning @ view).astype(np.float32)


@pytest.fixture
def linear_world(make_cache: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """Two spaces that see the same meanings through linear maps; 600 shared items, 150 of each other modality."""
    meaning = np.random.default_rng(3).standard_normal((900, 8))
    make_cache("text-clap", seen(meaning[:600], 24, 1), space="clap", shard=256)
    make_cache("text-clip", seen(meaning[:600], 20, 2), space="clip", shard=256)
    for name, space, rows, width, seed in (
        ("audio", "clap", meaning[600:750], 24, 1),
        ("image", "clip", meaning[750:], 20, 2),
    ):
        keys = [f"{name}-{i}" for i in range(150)]
        make_cache(name, seen(rows, width, seed), space=space, modality=name, keys=keys)
    return {
        "space": {
            "clap": {"overlap": tmp_path / "text-clap", "bank": tmp_path / "audio"},
            "clip": {"overlap": tmp_path / "text-clip", "bank": tmp_path / "image"},
        },
        "method": "ex-mcr", "batch_size": 128, "hidden": 48, "tau1": 0.05, "tau2": 0.05, "tau3": 0.05, "lr": 3e-3,
        "noise_norm": 0.3, "output": tmp_path / "out", "log_every": 1, "checkpoint_every": 3,
    }  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a fit but those under runs/."""
    found = (path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


@pytest.mark.parametrize("keep", [None, "clap"])
def test_it_learns_a_linear_relation_and_leaves_the_kept_space_as_it_is(
    linear_world: dict[str, Any], keep: str | None
) -> None:
    connector = fit(epochs=12, keep=keep, **linear_world).connector
    kept, led = (keep or "clip"), "clap" if keep is None else "clip"
    assert connector.kept == (kept,)
    assert connector.heads[led].spec.kind == "decoupled"
    assert connector.dim == connector.heads[kept].spec.dim_in
    fresh = np.random.default_rng(9).standard_normal((200, 8))
    sounds, pictures = seen(fresh, 24, 1), seen(fresh, 20, 2)
    cosines = connector.similarity(sounds, pictures, ("clap", "clip"))
    assert (cosines.argmax(1) == np.arange(200)).mean() > 0.5  # chance 0.005
    untouched = {"clap": sounds, "clip": pictures}[kept]
    np.testing.assert_array_equal(connector.project(untouched, kept), normed_by_torch(untouched))
    assert not connector.heads[kept].state_dict()


def normed_by_torch(rows: np.ndarray) -> np.ndarray:
    """What every projection does around a head, with no head between."""
    z = torch.from_numpy(rows)
    return torch.nn.functional.normalize(z / torch.linalg.vector_norm(z, dim=1, keepdim=True), dim=1).numpy()


def test_the_same_seed_gives_the_same_bytes_interrupted_or_not(linear_world: dict[str, Any], tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(done: int, total: int, record: Any) -> None:
        if done == 8:
            raise Cut

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calm = fit(epochs=3, **{**linear_world, "output": tmp_path / "calm"})
        torn = {**linear_world, "output": tmp_path / "torn"}
        with pytest.raises(Cut):
            fit(epochs=3, progress=cut, **torn)
        assert not (tmp_path / "torn" / "config.json").exists()
        resumed = fit(epochs=3, **torn)
    finally:
        torch.set_num_threads(threads)
    assert files(resumed.folder) == files(calm.folder)


def test_settings_that_it_cannot_follow_are_refused(linear_world: dict[str, Any], unit: Unit) -> None:
    for change, message in (
        ({"projector": "half"}, "takes no projector 'half'"),
        ({"options": {"centres": ["audio"]}}, "centres"),
        ({"options": {"centres": ["leaf", "leaf"]}}, "each centre once"),
        ({"options": {"centres": []}}, "centres"),
        ({"options": {"scale": 3}}, "scale"),
    ):
        with pytest.raises(RecipeError, match=message):
            fit(epochs=1, overwrite=True, **{**linear_world, **change})
    lone = some_pairs(unit, (False, False))
    lone.N = 1
    with pytest.raises(FitError, match="too few"):
        ExMcr().fit(lone, FitSettings(method="ex-mcr"), SimpleNamespace())  # type: ignore[arg-type]


def test_rows_that_are_not_finite_are_named_by_key_or_by_place_in_their_bank(unit: Unit) -> None:
    pairs, settings = some_pairs(unit), FitSettings(method="ex-mcr", tau1=0.1, hidden=8)
    data = quadruples(pairs, "clap", "clip", settings, ("overlap", "leaf", "base"))
    objective = ExMcrObjective(pairs, settings, data, torch.device("cpu"))
    assert objective.bad_rows(np.arange(94)) is None
    assert objective.keys(np.array([3, 41, 64])) == [
        "item-3", "row 1 of the bank of clap", "row 1 of the bank of clip"]  # fmt: skip
    pairs.bank["clip"].matrix[5] = np.nan
    assert "the vectors of clip have 1 such rows" in str(objective.bad_rows(np.arange(94)))
    assert "'row 5 of the bank of clip'" in str(objective.bad_rows(np.arange(94)))


def test_a_trial_for_planning_computes_no_quadruples(unit: Unit) -> None:
    pairs, settings = some_pairs(unit), FitSettings(method="ex-mcr", hidden=8)
    trial = ExMcr().make_objective(pairs, settings, torch.device("cpu"))
    assert trial.data == overlap_rows(pairs, "clap", "clip")
    assert ExMcr().trained_rows(pairs, settings) == 94


def test_a_plan_counts_the_rows_of_every_centre_and_names_both_heads(linear_world: dict[str, Any]) -> None:
    settings = {name: value for name, value in linear_world.items() if name not in ("space", "output")}
    plan = plan_fit(recipe_of(None, settings, linear_world["space"]), epochs=2)
    assert plan.steps == 2 * ((600 + 150 + 150) // 128)
    assert {space.name: space.head for space in plan.spaces} == {"clap": "decoupled", "clip": "identity"}
    assert plan.dim == 20
    done = fit(epochs=2, **linear_world)
    assert done.metrics["step"] == plan.steps
