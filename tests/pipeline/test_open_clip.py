"""The open_clip family against open_clip itself, at random weights through the ordinary path of a local file."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import EncoderError, ItemError, MissingWeightsError
from cmcr.cache.reader import open_cache
from cmcr.pipeline.encode import encode
from cmcr.pipeline.encoders import open_clip_weights
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from PIL import Image

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
LONG = "a photo of a very long line of dogs and cats and birds and cows and pigs and bees"
TEXTS = ["a dog barks", "", "ein Hund – 😀", LONG, "a cat"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A small CLIP with random weights, registered with open_clip, and the file of its weights."""
    prepare_torchvision()
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("tiny")
    for name, quick in (("tiny-clip", True), ("tiny-gelu", False)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.create_model("tiny-clip").eval()
        for parameter in model.parameters():  # away from the initial values, so that activations and towers matter
            parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(model.state_dict(), folder / "tiny.pt")
    yield model, folder / "tiny.pt"
    for path in [p for p in factory._MODEL_CONFIG_PATHS if folder in p.parents]:
        factory._MODEL_CONFIG_PATHS.remove(path)
    for name in ("tiny-clip", "tiny-gelu"):
        factory._MODEL_CONFIGS.pop(name)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def picture(seed: int, size: tuple[int, int] = (50, 41)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_texts_encode_as_open_clip_encodes_them(tiny: tuple[Any, Path]) -> None:
    import open_clip

    model, file = tiny
    encoder = load_encoder(f"open_clip:tiny-clip/{file}", modality="text")
    got = encoder.encode([encoder.decode(Item(str(i), text)) for i, text in enumerate(TEXTS)])
    with torch.no_grad():
        want = model.encode_text(open_clip.get_tokenizer("tiny-clip")(TEXTS), normalize=True).numpy()
    assert np.abs(got - want).max() < 1e-6
    cosines = got @ got.T
    assert cosines[np.triu_indices(5, 1)].max() < 0.9, "weights at which texts cannot be told apart prove nothing"
    assert np.array_equal(encoder.encode(TEXTS), got)
    assert encoder.dim == 24


def test_images_encode_as_open_clip_encodes_them(tiny: tuple[Any, Path]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model, file = tiny
    encoder = load_encoder(f"open_clip:tiny-clip/{file}", modality="image")
    data = [picture(i, (50 + 9 * i, 41)) for i in range(4)]
    got = encoder.encode([encoder.decode(Item(str(i), one, name="x.png")) for i, one in enumerate(data)])
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    pixels = torch.stack([transform(Image.open(io.BytesIO(one)).convert("RGB")) for one in data])
    with torch.no_grad():
        want = model.encode_image(pixels, normalize=True).numpy()
    assert np.abs(got - want).max() < 1e-6
    with pytest.raises(ItemError):
        encoder.decode(Item("k", b"not a picture", name="x.png"))


def test_towers_share_their_space_and_nothing_else(tiny: tuple[Any, Path]) -> None:
    _, file = tiny
    text = load_encoder(f"open_clip:tiny-clip/{file}", modality="text")
    image = load_encoder(f"open_clip:tiny-clip/{file}", modality="image")
    assert text.space == image.space
    assert text.space.name.startswith("tiny-clip-")
    assert text.fingerprint() != image.fingerprint()


def test_activation_precision_and_weights_are_in_the_fingerprint(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    model, file = tiny
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed["logit_scale"] += 1e-3
    torch.save(changed, tmp_path / "other.pt")
    base = load_encoder(f"open_clip:tiny-clip/{file}", modality="text")
    gelu = load_encoder(f"open_clip:tiny-gelu/{file}", modality="text")
    half = load_encoder(f"open_clip:tiny-clip/{file}", modality="text", precision="bf16")
    other = load_encoder(f"open_clip:tiny-clip/{tmp_path / 'other.pt'}", modality="text")
    assert len({encoder.fingerprint() for encoder in (base, gelu, half, other)}) == 4
    assert base.space.id == gelu.space.id == half.space.id != other.space.id
    assert np.abs(base.encode(TEXTS) - gelu.encode(TEXTS)).max() > 1e-4
    assert 1e-5 < np.abs(base.encode(TEXTS) - half.encode(TEXTS)).max() < 0.1


def test_files_of_every_kind_load_to_the_same_vectors(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, file = tiny
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "tiny.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "e.pt"
    )
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_file(state, folder / "open_clip_model.safetensors")
    want = load_encoder(f"open_clip:tiny-clip/{file}", modality="text")
    names = [
        f"tiny-clip/{tmp_path / 'tiny.safetensors'}",
        f"tiny-clip/custom@{tmp_path / 'e.pt'}",
        f"local-dir:{folder}",
    ]
    for name in names:
        got = load_encoder(f"open_clip:{name}", modality="text")
        assert got.space.id == want.space.id
        assert np.array_equal(got.encode(TEXTS), want.encode(TEXTS))


def test_a_file_that_is_no_checkpoint_of_the_model_is_refused(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = tiny
    short = dict(list(model.state_dict().items())[:-2])
    torch.save(short, tmp_path / "short.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("short.pt", "module.pt", "text.pt"):
        with pytest.raises(EncoderError, match="do not load into tiny-clip") as caught:
            load_encoder(f"open_clip:tiny-clip/{tmp_path / name}", modality="text")
        assert len(str(caught.value)) < 1200
    with pytest.raises(MissingWeightsError, match="no weights file"):
        load_encoder(f"open_clip:tiny-clip/{tmp_path / 'absent.pt'}", modality="text")


def test_the_quickgelu_trap_is_an_error_that_names_the_right_model() -> None:
    prepare_torchvision()
    from open_clip.pretrained import list_pretrained

    with pytest.raises(EncoderError, match="trained with QuickGELU, and ViT-B-32 builds GELU") as caught:
        load_encoder("open_clip:ViT-B-32/openai", modality="text")
    assert "--encoder open_clip:ViT-B-32-quickgelu/openai" in str(caught.value)
    accepted, trapped = 0, 0
    for model, tag in list_pretrained():
        try:
            accepted += open_clip_weights.choose(model, tag).kind == "tag"
        except EncoderError as error:
            trapped += 1
            twin = str(error.todo).removeprefix("--encoder open_clip:").split("/")
            assert open_clip_weights.choose(twin[0], twin[1]).tag == tag
    assert trapped > 10
    assert accepted > 100


def test_a_bare_file_of_a_model_with_several_recipes_has_to_name_its_tag(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(b"")
    with pytest.raises(EncoderError, match="a bare file does not say how it was trained") as caught:
        open_clip_weights.choose("ViT-B-32", str(file))
    assert f"open_clip:ViT-B-32-quickgelu/openai@{file}" in str(caught.value)
    assert open_clip_weights.choose("ViT-B-32", f"laion2b_s34b_b79k@{file}").like == "laion2b_s34b_b79k"
    assert open_clip_weights.choose("ViT-B-32-quickgelu", str(file)).like == "openai"
    assert open_clip_weights.choose("ViT-B-32-quickgelu", str(file)).tag is None
    siglip = open_clip_weights.choose("ViT-B-16-SigLIP", f"custom@{file}")
    assert open_clip_weights.tag_settings("ViT-B-16-SigLIP", str(siglip.like))["resize_mode"] == "squash"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["clip", "open_clip:hf-hub:someone/some-clip", "open_clip:RN50-quickgelu/cc12m"])
def test_missing_weights_are_an_error_in_seconds_that_says_what_to_do(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(MissingWeightsError) as caught:
        load_encoder(name, modality="image")
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert "hf download" in text
    assert "sandbox:clip" in text
    assert "open_clip_model.safetensors" in text or "cc12m" in text


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(MissingWeightsError, match=r"127\.0\.0\.1:9 cannot be reached"):
        load_encoder("clip", modality="text")
    assert time.perf_counter() - start < 10


@pytest.mark.usefixtures("offline")
def test_a_tokenizer_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({"x": torch.zeros(1)}, file)
    with pytest.raises(MissingWeightsError, match="roberta-ViT-B-32") as caught:
        load_encoder(f"open_clip:roberta-ViT-B-32/custom@{file}", modality="text")
    assert "hf download roberta-base" in str(caught.value)


def test_other_modalities_models_and_tags_are_refused_with_the_nearest() -> None:
    with pytest.raises(EncoderError, match="no audio tower"):
        load_encoder("open_clip:ViT-B-32-quickgelu/openai", modality="audio")
    with pytest.raises(EncoderError) as caught:
        load_encoder("open_clip:ViT-B-33/openai", modality="text")
    assert "ViT-B-32" in str(caught.value)
    with pytest.raises(EncoderError) as caught:
        load_encoder("open_clip:ViT-B-32/laion2b_s34b", modality="text")
    assert "laion2b_s34b_b79k" in str(caught.value)
    with pytest.raises(EncoderError, match="fp16 is unusably slow"):
        load_encoder("clip", modality="text", precision="fp16")


def test_truncated_texts_are_counted_and_keep_their_rows(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    _, file = tiny
    source = tmp_path / "t.txt"
    source.write_text("\n".join(["short", LONG, "a b c", LONG + " too"]) + "\n")
    report = encode(source, tmp_path / "cache", modality="text", encoder=f"open_clip:tiny-clip/{file}", device="cpu")
    assert (report.rows, report.failed, report.truncated) == (4, 0, 2)
    ledger = list(open_cache(tmp_path / "cache").failures())
    assert [(f.key, f.error, f.lost) for f in ledger] == [
        ("t:000000002", "TruncatedText", False),
        ("t:000000004", "TruncatedText", False),
    ]
    assert ledger[0].message == "21 tokens, the first 16 kept"


def test_bad_images_leave_their_neighbours_bits_alone_in_a_real_network(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    _, file = tiny
    rows = {}
    for name in ("clean", "holed"):
        folder = tmp_path / f"{name}-pictures"
        folder.mkdir()
        for i in range(13):
            hole = name == "holed" and i in (2, 3, 12)
            (folder / f"{i:02}.png").write_bytes(b"broken" if hole else picture(i))
        settings: dict[str, Any] = {"modality": "image", "encoder": f"open_clip:tiny-clip/{file}", "device": "cpu"}
        encode(folder, tmp_path / name, batch_size=5, shard_size=10, dtype="float32", **settings)
        cache = open_cache(tmp_path / name)
        rows[name] = dict(zip(cache.keys(), cache.rows(np.arange(len(cache)), normalize=False), strict=True))
    assert set(rows["clean"]) - set(rows["holed"]) == {"02", "03", "12"}
    assert all(np.array_equal(rows["clean"][key], row) for key, row in rows["holed"].items())


def test_torchvision_imports_beside_this_torch() -> None:
    prepare_torchvision()
    prepare_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import transforms

    assert transforms.CenterCrop(4)(torch.zeros(3, 8, 8)).shape == (3, 4, 4)
    assert hasattr(torch.ops.torchvision, "nms")


@pytest.mark.parametrize(
    ("choice", "model", "weights", "name"),
    [
        (open_clip_weights.Choice("tag", "ViT-B-32", "openai"), "ViT-B-32", "openai", "open_clip:ViT-B-32/openai"),
        (open_clip_weights.Choice("file", "M", None, Path("/a/w.pt")), "M", "/a/w.pt", "open_clip:M/w.pt"),
        (open_clip_weights.Choice("file", "M", "t", Path("/a/w.pt")), "M", "t@/a/w.pt", "open_clip:M/t@w.pt"),
        (open_clip_weights.Choice("folder", "/a/b/clip"), "local-dir:/a/b/clip", None, "open_clip:local-dir:clip"),
        (open_clip_weights.Choice("hub", "hf-hub:o/r"), "hf-hub:o/r", None, "open_clip:hf-hub:o/r"),
    ],
)
def test_recorded_names_hold_no_folder(choice: Any, model: str, weights: str | None, name: str) -> None:
    from cmcr.pipeline.encoders.open_clip import recorded_name

    assert recorded_name(choice, model, weights) == name
