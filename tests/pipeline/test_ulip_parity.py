"""ULIP's towers against the original code at identical weights, stage by stage; every planted fault is seen.

How the golden values were made: golden/make_ulip.py.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.pipeline.encoders import ulip_ops, ulip_towers
from cmcr.pipeline.encoders.base import Encoder, Item
from cmcr.pipeline.encoders.registry import load_encoder
from torch import nn

TOLERANCE = 1e-4
KINDS = ("xyz", "colored")
MODEL = {"xyz": "PointBERT", "colored": "PointBERT-Colored"}

pytestmark = pytest.mark.usefixtures("small_ulip")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "ulip.npz", allow_pickle=False) as held:
        return dict(held)


@pytest.fixture
def tower(ulip_files: dict[str, Path]) -> Any:
    def load(modality: str, kind: str = "xyz") -> Encoder:
        return load_encoder(f"ulip:{MODEL[kind]}/{ulip_files[kind]}", modality=modality)  # type: ignore[arg-type]

    return load


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def off(ours: Any, theirs: np.ndarray) -> float:
    """Largest absolute difference."""
    return float(np.abs(np.asarray(ours) - theirs).max())


def npy(cloud: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, cloud)
    return held.getvalue()


def cloud_items(maker: Any, kind: str) -> list[Item]:
    clouds = maker.clouds(colours=kind == "colored")
    return [Item(f"cloud {i}", npy(cloud), f"{i}.npy") for i, cloud in enumerate(clouds)]


def image_items(maker: Any) -> list[Item]:
    return [Item(f"image {i}", data, f"{i}.png") for i, data in enumerate(maker.images())]


def text_items(maker: Any) -> list[Item]:
    return [Item(f"text {i}", text) for i, text in enumerate(maker.TEXTS)]


def encoded(encoder: Encoder, items: list[Item]) -> np.ndarray:
    return encoder.encode([encoder.decode(item) for item in items])


@pytest.mark.parametrize("name", ["xyz_output", "colored_output", "image_output", "text_output"])
def test_the_golden_inputs_lie_far_apart_under_the_original(golden: dict[str, np.ndarray], name: str) -> None:
    rows = unit(golden[name])
    assert (rows @ rows.T)[np.triu_indices(len(rows), 1)].max() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_points_agree_with_the_original_at_every_stage(
    tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any, kind: str
) -> None:
    encoder = tower("pointcloud", kind)
    network = encoder._network
    clouds = [encoder.decode(item) for item in cloud_items(ulip_maker, kind)]
    assert off([cloud[:40, :3] for cloud in clouds], golden[f"{kind}_unit"]) < 1e-6
    neighbourhoods, centres = ulip_ops.group([torch.from_numpy(cloud) for cloud in clouds], 128, 32)
    assert off(centres, golden[f"{kind}_centres"]) < 1e-6
    groups = [ulip_maker.as_set(one[::32].numpy()) for one in neighbourhoods]
    assert off(groups, golden[f"{kind}_groups"]) < 1e-6
    with torch.inference_mode():
        tokens = network.point_encoder.tokens(neighbourhoods)[:, ::32]
        pooled = network.point_encoder(neighbourhoods, centres)
        output = network(neighbourhoods, centres)
    assert off(tokens, golden[f"{kind}_tokens"]) < TOLERANCE
    assert off(pooled, golden[f"{kind}_pooled"]) < TOLERANCE
    assert off(output, golden[f"{kind}_output"]) < TOLERANCE
    assert off(encoder.encode(clouds), unit(golden[f"{kind}_output"])) < TOLERANCE


def test_images_agree_with_the_original_at_every_stage(
    tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any
) -> None:
    encoder = tower("image")
    pixels = torch.stack([encoder.decode(item) for item in image_items(ulip_maker)])
    assert off(pixels[:, :, ::16, ::16], golden["image_pixels"]) < TOLERANCE
    with torch.inference_mode():
        assert off(encoder._network.visual(pixels), golden["image_pooled"]) < TOLERANCE
        assert off(encoder._network(pixels), golden["image_output"]) < TOLERANCE
    assert off(encoder.encode(list(pixels)), unit(golden["image_output"])) < TOLERANCE


def test_texts_agree_with_the_original_at_every_stage(
    tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any
) -> None:
    encoder = tower("text")
    tokens = [encoder.decode(item) for item in text_items(ulip_maker)]
    assert np.array_equal(torch.stack([one.ids for one in tokens]).numpy(), golden["text_ids"])
    assert [one.length > 77 for one in tokens] == [False, False, False, True]
    assert encoder.remark(tokens[0]) is None
    assert encoder.remark(tokens[3])[0] == "TruncatedText"
    with torch.inference_mode():
        assert off(encoder._network(torch.from_numpy(golden["text_ids"])), golden["text_output"]) < TOLERANCE
    assert off(encoder.encode(tokens), unit(golden["text_output"])) < TOLERANCE


def test_bgr_and_other_pixels_are_seen(
    tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tower("image")
    from torchvision import transforms  # after the encoder has made it importable

    pixels = [encoder.decode(item) for item in image_items(ulip_maker)]
    theirs = unit(golden["image_output"])
    faults = {"bgr": [one.flip(0) for one in pixels]}
    squashed = transforms.Compose([transforms.Resize((224, 224)), *encoder._transform.transforms[1:]])
    corner = transforms.Compose([encoder._transform.transforms[0], lambda image: image.crop((0, 0, 224, 224))])
    corner = transforms.Compose([corner, *encoder._transform.transforms[2:]])
    clips = transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    other = transforms.Compose([*encoder._transform.transforms[:-1], clips])
    for name, transform in (("squashed", squashed), ("corner", corner), ("mean of CLIP", other)):
        monkeypatch.setattr(encoder, "_transform", transform)
        faults[name] = [encoder.decode(item) for item in image_items(ulip_maker)]
    differences = {name: off(encoder.encode(batch), theirs) for name, batch in faults.items()}
    assert min(differences.values()) > 20 * TOLERANCE, differences


@pytest.mark.parametrize("modality", ["text", "image", "pointcloud"])
def test_the_other_gelu_is_seen(tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any, modality: str) -> None:
    encoder = tower(modality)
    from open_clip.transformer import QuickGELU  # after the encoder has made torchvision importable

    swapped = 0
    for module in encoder._network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GELU | QuickGELU):
                setattr(module, name, QuickGELU() if isinstance(child, nn.GELU) else nn.GELU())
                swapped += 1
    assert swapped >= 2
    items = {"text": text_items, "image": image_items}.get(modality)
    batch = items(ulip_maker) if items else cloud_items(ulip_maker, "xyz")
    name = "xyz_output" if modality == "pointcloud" else f"{modality}_output"
    assert off(encoded(encoder, batch), unit(golden[name])) > 5 * TOLERANCE


def test_farthest_points_begun_elsewhere_or_with_the_origin_are_seen(
    tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tower("pointcloud")
    theirs = unit(golden["xyz_output"])
    items = cloud_items(ulip_maker, "xyz")[:2]
    clouds = [encoder.decode(item) for item in items]
    assert off(encoder.encode([cloud[::-1].copy() for cloud in clouds]), theirs[:2]) > 5 * TOLERANCE
    assert off(encoder.encode([cloud[:, [1, 0, 2]] for cloud in clouds]), theirs[:2]) > 20 * TOLERANCE
    monkeypatch.setattr(ulip_ops, "unit_ball", lambda xyz: xyz)
    assert off(encoded(encoder, items), theirs[:2]) > 20 * TOLERANCE
    monkeypatch.undo()


def test_a_wrong_colour_is_seen(tower: Any, golden: dict[str, np.ndarray], ulip_maker: Any) -> None:
    encoder = tower("pointcloud", "colored")
    clouds = [encoder.decode(item) for item in cloud_items(ulip_maker, "colored")]
    swapped = encoder.encode([cloud[:, [0, 1, 2, 5, 4, 3]] for cloud in clouds])
    assert off(swapped, unit(golden["colored_output"])) > 20 * TOLERANCE


def test_reduced_precision_stays_close(ulip_files: dict[str, Path], ulip_maker: Any) -> None:
    name = f"ulip:PointBERT/{ulip_files['xyz']}"
    items = cloud_items(ulip_maker, "xyz")[:2]
    full = load_encoder(name, modality="pointcloud")
    half = load_encoder(name, modality="pointcloud", precision="bf16")
    assert (encoded(full, items) * encoded(half, items)).sum(1).min() > 0.99
    assert full.fingerprint() != half.fingerprint()
    assert full.space == half.space


def test_constants_are_those_of_the_original() -> None:
    assert ulip_towers.MEAN == (0.485, 0.456, 0.406)
    assert ulip_towers.STD == (0.229, 0.224, 0.225)
    assert (ulip_ops.GREY, ulip_ops.ORIGIN, ulip_ops.THREADS) == (0.4, 1e-3, 512)
