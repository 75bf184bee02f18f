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
from cmcr.trainer import device
from cmcr.trainer.fit import fit
from cmcr.trainer.losses import LossWeights, cmcr_loss
from cmcr.trainer.methods.cmcr import Cmcr, make_heads
from cmcr.trainer.settings import FitSettings


class Matrix:
    """Rows of a matrix as a row source."""

    def __init__(self, rows: np.ndarray) -> None:
        self.matrix, self.dim = rows, rows.shape[1]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        return self.matrix[indices]


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
def test_every_projector_and_precision_trains(
    world: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"bf16"})  # emulated where the CPU has none
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
