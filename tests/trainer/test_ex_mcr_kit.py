"""Ex-MCR on the kit's real vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.trainer.fit import fit


def macro_map(kit: Path, similarity: np.ndarray, gallery: str) -> float:
    """Macro mAP of the kit's audio-to-image protocol, in percent, computed by the kit's own definition."""
    labels = [
        np.array([json.loads(line)["label"] for line in (kit / "audio_image" / name).open(encoding="utf-8")])
        for name in ("test_audio.jsonl", "test_image.jsonl")
    ]
    within = labels[1] != "other" if gallery == "core" else np.full(len(labels[1]), True)
    precisions: dict[str, list[float]] = {}
    for row, label in zip(similarity[:, within], labels[0], strict=True):
        relevant = (labels[1][within] == label)[np.argsort(-row, kind="stable")]
        found = (np.cumsum(relevant) / np.arange(1, len(relevant) + 1))[relevant]
        precisions.setdefault(label, []).append(float(found.mean()))
    return 100 * float(np.mean([np.mean(values) for values in precisions.values()]))


@pytest.fixture
def kit_scores(kit: Path, make_cache: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Fits on the kit's text and memories and scores its test pairs, which the fit never sees."""
    for space, bank in (("audio_text", "audio_memory"), ("image_text", "image_memory")):
        for name, modality in (("texts", "text"), (bank, bank.partition("_")[0])):
            vectors = np.load(kit / space / f"{name}.npy")
            make_cache(f"{space}-{name}", vectors, space=space, modality=modality, shard=8192, dtype="float16")

    def scores(**settings: Any) -> dict[str, float]:
        space = {
            "audio": {"overlap": tmp_path / "audio_text-texts", "bank": tmp_path / "audio_text-audio_memory"},
            "image": {"overlap": tmp_path / "image_text-texts", "bank": tmp_path / "image_text-image_memory"},
        }
        connector = fit(space=space, method="ex-mcr", output=tmp_path / "out", **settings).connector
        audio, image = (np.load(kit / "audio_image" / f"test_{name}.npy") for name in ("audio", "image"))
        cosines = connector.similarity(audio, image, ("audio", "image"))
        return {gallery: macro_map(kit, cosines, gallery) for gallery in ("core", "full")}

    return scores


@pytest.mark.kit
def test_one_epoch_on_real_vectors_beats_procrustes_by_far(kit_scores: Callable[..., dict[str, float]]) -> None:
    found = kit_scores(epochs=1, batch_size=512, bank_rows=1000)
    assert found["core"] > 54  # Procrustes 44.4
    assert found["full"] > 34  # Procrustes 26.8


@pytest.mark.kit
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_defaults_on_real_vectors(kit_scores: Callable[..., dict[str, float]]) -> None:
    found = kit_scores()
    assert found["core"] > 60
    assert found["full"] > 40
