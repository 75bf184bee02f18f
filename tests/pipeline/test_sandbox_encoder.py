"""The shipped towers of the sandbox: size, figures, odd input, and independence of the batch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cmcr.cache.errors import EncoderError, ItemError, MissingWeightsError
from cmcr.pipeline.encoders.base import Encoder, Item
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.sandbox import WEIGHTS, SandboxEncoder, SandboxFamily
from cmcr.pipeline.sandbox import inputs
from cmcr.pipeline.sandbox.grammar import caption
from cmcr.pipeline.sandbox.render import image_bytes, render
from cmcr.pipeline.sandbox.shapes import sample_cloud
from cmcr.pipeline.sandbox.synth import RATE, synthesise
from cmcr.pipeline.sandbox.world import Composition, World
from PIL import Image

TOWERS = [
    ("clip", "text"),
    ("clip", "image"),
    ("clap", "text"),
    ("clap", "audio"),
    ("ulip", "pointcloud"),
    ("ulip", "image"),
]


def load(model: str, modality: str) -> Encoder:
    return SandboxFamily().load(model, None, modality=modality)  # type: ignore[arg-type]


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def npy(points: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, points, allow_pickle=False)
    return buffer.getvalue()


def item(modality: str, composition: Composition, world: World, number: int, flavour: str = "image") -> Item:
    rng = world.rng("test", modality, number)
    if modality == "text":
        text = caption(composition, rng, flavour=flavour, split="heldout", complete=True)  # type: ignore[arg-type]
        return Item(str(number), text)
    if modality == "image":
        return Item(str(number), image_bytes(render(composition, rng)), "a.png")
    if modality == "audio":
        return Item(str(number), wav(synthesise(composition, rng)), "a.wav")
    return Item(str(number), npy(sample_cloud(composition, rng)), "a.npy")


def vectors(encoder: Encoder, items: list[Item]) -> np.ndarray:
    return encoder.encode([encoder.decode(i) for i in items])


def test_weights_and_records_are_under_six_megabytes() -> None:
    files = list(WEIGHTS.iterdir())
    assert {f.name for f in files} == {
        f"sandbox-{m}.{s}" for m in ("clip", "clap", "ulip") for s in ("safetensors", "json")
    }
    assert sum(f.stat().st_size for f in files) < 6_000_000


@pytest.mark.parametrize(
    ("model", "flavour", "first", "fifth"),
    [("clip", "image", 60, 90), ("clap", "audio", 60, 90), ("ulip", "image", 20, 60)],
)
def test_retrieval_on_heldout_compositions_is_far_above_chance(
    model: str, flavour: str, first: float, fifth: float
) -> None:
    """Chance is 0.5 percent; the floors stand below what the shipped record says."""
    world = World(1234)
    objects = world.draw_distinct(200)
    record = json.loads((WEIGHTS / f"sandbox-{model}.json").read_text())
    rows = []
    for modality in record["config"]["modalities"]:
        encoder = load(model, modality)
        rows.append(vectors(encoder, [item(modality, c, world, i, flavour) for i, c in enumerate(objects)]))
    for sims in (rows[0] @ rows[1].T, rows[1] @ rows[0].T):
        rank = (sims > np.diag(sims)[:, None]).sum(1)
        assert 100 * float((rank < 1).mean()) > first
        assert 100 * float((rank < 5).mean()) > fifth


def test_towers_of_a_model_share_a_space_and_models_do_not() -> None:
    encoders = {key: load(*key) for key in TOWERS}
    assert all(isinstance(e, Encoder) for e in encoders.values())
    assert encoders["clip", "text"].space == encoders["clip", "image"].space
    assert encoders["ulip", "image"].space != encoders["clip", "image"].space
    assert len({e.space.id for e in encoders.values()}) == 3
    assert sorted({e.dim for e in encoders.values()}) == [64, 80, 96]
    assert len({e.fingerprint() for e in encoders.values()}) == 6
    assert {e.space.name for e in encoders.values()} == {"sandbox-clip", "sandbox-clap", "sandbox-ulip"}


def test_fingerprint_is_stable_and_tells_the_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("clip", "image").fingerprint()
    assert before == load("clip", "image").fingerprint()
    monkeypatch.setitem(inputs.CONSTANTS, "version", -1)
    assert load("clip", "image").fingerprint() != before


@pytest.mark.parametrize(("model", "modality"), TOWERS)
def test_a_row_does_not_depend_on_its_neighbours_in_the_batch(model: str, modality: str) -> None:
    encoder, world = load(model, modality), World(9)
    items = [item(modality, c, world, i) for i, c in enumerate(world.draw(23, "heldout"))]
    together = vectors(encoder, items)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([vectors(encoder, [i]) for i in items])
    mixed = vectors(encoder, items[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - mixed).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.parametrize("model", ["clip", "clap"])
def test_padding_has_no_influence(model: str) -> None:
    import torch

    encoder = load(model, "text")
    assert isinstance(encoder, SandboxEncoder)
    words = torch.from_numpy(encoder.decode(Item("a", "two big red metal bells"))[None])
    bare = encoder._network(words[:, :5])
    assert (words[0, 5:] == inputs.PAD).all()
    assert float((bare - encoder._network(words)).abs().max()) < 1e-5


@pytest.mark.parametrize("text", ["", "   ", "!?", "ünïcödé 漢字", "xyzzy " * 200, "\u0000"])
def test_odd_texts_give_finite_unit_rows(text: str) -> None:
    for model in ("clip", "clap"):
        row = vectors(load(model, "text"), [Item("a", text)])
        assert np.isfinite(row).all()
        assert abs(float(np.linalg.norm(row)) - 1) < 1e-5


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros(8000), 16_000),
        (np.zeros(1) + 0.5, 16_000),
        (np.full(3, 1e-30), 44_100),
        (np.ones((500, 2)), 8_000),
        (np.sin(np.arange(200_000) / 9) * 0.4, 48_000),
    ],
)
def test_silent_short_long_and_stereo_sounds_give_finite_unit_rows(samples: np.ndarray, rate: int) -> None:
    row = vectors(load("clap", "audio"), [Item("a", wav(samples, rate), "a.wav")])
    assert np.isfinite(row).all()
    assert abs(float(np.linalg.norm(row)) - 1) < 1e-5


@pytest.mark.parametrize(
    "points", [np.zeros((1, 3)), np.zeros((50, 3)), np.eye(3) * 1e6, np.random.default_rng(0).random((9, 6))]
)
def test_single_points_and_coloured_clouds_give_finite_unit_rows(points: np.ndarray) -> None:
    row = vectors(load("ulip", "pointcloud"), [Item("a", npy(points.astype(np.float32)), "a.npy")])
    assert np.isfinite(row).all()
    assert abs(float(np.linalg.norm(row)) - 1) < 1e-5


def test_a_cloud_may_be_moved_and_scaled() -> None:
    cloud = sample_cloud(World(0).draw(1, "train")[0], World(0).rng("p"))
    encoder = load("ulip", "pointcloud")
    a, b = vectors(encoder, [Item("a", npy(cloud), "a.npy"), Item("b", npy(cloud * 7 + 30), "b.npy")])
    assert np.abs(a - b).max() < 1e-3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_size_and_mode_are_taken(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (301, 7), (200, 30, 30)).convert(mode).save(buffer, "PNG")
    row = vectors(load("clip", "image"), [Item("a", buffer.getvalue(), "a.png")])
    assert np.isfinite(row).all()


def test_sounds_of_another_rate_land_beside_the_original() -> None:
    import soxr

    sound = synthesise(Composition("trumpet", "medium", "red", "wood", 2), World(0).rng("s"))
    fast = soxr.resample(sound, RATE, 44_100)
    a, b = vectors(load("clap", "audio"), [Item("a", wav(sound), "a.wav"), Item("b", wav(fast, 44_100), "b.wav")])
    assert float(a @ b) > 0.98


def test_bad_items_are_item_errors() -> None:
    for model, modality, data in (("clip", "image", b"nonsense"), ("clap", "audio", b""), ("ulip", "pointcloud", b"x")):
        with pytest.raises(ItemError):
            load(model, modality).decode(Item("k", data, "k"))
    with pytest.raises(ItemError, match="UTF-8"):
        load("clip", "text").decode(Item("k", b"\xff\xfe\xff"))
    with pytest.raises(ItemError, match="bytes"):
        load("clip", "image").decode(Item("k", "text"))


def test_wrong_names_modalities_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no model 'clop'"):
        SandboxFamily().load("clop", None, modality="text")
    with pytest.raises(EncoderError, match="no audio tower"):
        SandboxFamily().load("clip", None, modality="audio")
    with pytest.raises(MissingWeightsError):
        SandboxFamily().load("clip", str(tmp_path / "none.safetensors"), modality="text")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" + b"\0" * 40)
    with pytest.raises(EncoderError, match="not a weights file"):
        SandboxFamily().load("clip", str(tmp_path / "bad.safetensors"), modality="text")
    whole = (WEIGHTS / "sandbox-clip.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(EncoderError, match="do not fit"):
        SandboxFamily().load("clip", str(tmp_path / "cut.safetensors"), modality="text")


def test_the_registry_finds_the_family_and_a_local_file() -> None:
    shipped = load_encoder("sandbox:clap", modality="audio")
    local = load_encoder(f"sandbox:clap/{WEIGHTS / 'sandbox-clap.safetensors'}", modality="audio")
    assert shipped.fingerprint() == local.fingerprint()


def test_using_the_sandbox_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "for name in ('open_clip', 'laion_clap', 'transformers', 'faiss', 'torchvision', 'torchaudio', 'librosa'):\n"
        "    sys.modules[name] = None\n"
        "import cmcr.pipeline.encoders.sandbox as s\n"
        "assert 'torch' not in sys.modules\n"
        "from cmcr.pipeline.encoders.base import Item\n"
        "e = s.SandboxFamily().load('clip', None, modality='text')\n"
        "assert e.encode([e.decode(Item('a', 'a red bell'))]).shape == (1, 96)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
