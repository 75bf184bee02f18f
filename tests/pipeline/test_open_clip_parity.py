"""open_clip stage by stage against the original package: tokens, pixels, pooled features, output; and planted faults.

Weights are random and scaled so that different inputs' mutual cosine under the original is below 0.9: at initial
values every input has nearly the same vector, and a fault would show as little as none.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.encoders.open_clip import OpenClipImage, OpenClipText
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from PIL import Image, ImageDraw

LIMIT = 1e-4
CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
TEXTS = ["a dog barks", "", "ein Hund – 😀", "A red CAR &amp; two cats", "rain on a tin roof " * 40]


def pictures() -> list[bytes]:
    """Photographs of different shapes and modes: wide, high, with alpha, in grey, with a palette."""
    made = []
    for number, (size, mode) in enumerate([((90, 60), "RGB"), ((48, 130), "RGB"), ((70, 70), "RGBA"), ((80, 66), "L")]):
        image = Image.new("RGB", size, (30 * number, 200 - 40 * number, 90))
        draw = ImageDraw.Draw(image)
        draw.ellipse((5, 8, size[0] // 2, size[1] - 9), fill=(250, 20 + 50 * number, 60))
        draw.rectangle((size[0] // 2, 4, size[0] - 6, size[1] // 2), fill=(10, 40, 255 - 60 * number))
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Callable[..., Any], Path]]:
    """open_clip's own model and preprocessing, and the file of its weights."""
    prepare_torchvision()
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("parity")
    for name, quick in (("parity-clip", True), ("parity-gelu", False)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, _, preprocess = open_clip.create_model_and_transforms("parity-clip", pretrained=None)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    torch.save(model.state_dict(), folder / "w.pt")
    yield model.eval(), preprocess, folder / "w.pt"
    for path in [p for p in factory._MODEL_CONFIG_PATHS if folder in p.parents]:
        factory._MODEL_CONFIG_PATHS.remove(path)
    for name in ("parity-clip", "parity-gelu"):
        factory._MODEL_CONFIGS.pop(name)


@pytest.fixture(scope="module")
def text(original: tuple[Any, Any, Path]) -> OpenClipText:
    encoder = load_encoder(f"open_clip:parity-clip/{original[2]}", modality="text")
    assert isinstance(encoder, OpenClipText)
    return encoder


@pytest.fixture(scope="module")
def image(original: tuple[Any, Any, Path]) -> OpenClipImage:
    encoder = load_encoder(f"open_clip:parity-clip/{original[2]}", modality="image")
    assert isinstance(encoder, OpenClipImage)
    return encoder


def pooled_of(network: Any, run: Callable[[], Any], place: str) -> torch.Tensor:
    """What goes into the last projection: the features after pooling and the last norm, caught on their way."""
    caught: list[torch.Tensor] = []
    module = network.visual.ln_post if place == "image" else network.ln_final
    handle = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        run()
    finally:
        handle.remove()
    return caught[0]


def largest(got: Any, want: Any) -> float:
    """Maximum absolute difference."""
    return float((torch.as_tensor(got) - torch.as_tensor(want)).abs().max())


def theirs_of_texts(model: Any) -> dict[str, torch.Tensor]:
    """Every stage of the original for the texts."""
    import open_clip

    tokens = open_clip.get_tokenizer("parity-clip")(TEXTS)  # (B, L)
    with torch.no_grad():
        stages = {"tokens": tokens, "pooled": pooled_of(model, lambda: model.encode_text(tokens), "text")}
        return {**stages, "output": model.encode_text(tokens, normalize=True)}


def theirs_of_pictures(model: Any, preprocess: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """Every stage of the original for the pictures."""
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures()])  # (B, 3, H, W)
    with torch.no_grad():
        stages = {"pixels": pixels, "pooled": pooled_of(model, lambda: model.encode_image(pixels), "image")}
        return {**stages, "output": model.encode_image(pixels, normalize=True)}


def test_texts_agree_at_every_stage(original: tuple[Any, Any, Path], text: OpenClipText) -> None:
    want = theirs_of_texts(original[0])
    decoded = [text.decode(Item(str(i), one)) for i, one in enumerate(TEXTS)]
    assert torch.equal(torch.stack([tokens.ids for tokens in decoded]), want["tokens"])
    pooled = pooled_of(text._network, lambda: text.encode(decoded), "text")
    assert largest(pooled, want["pooled"]) < LIMIT
    assert largest(text.encode(decoded), want["output"]) < LIMIT
    assert_apart(want["output"])
    assert text.remark(decoded[4]) is not None
    assert [text.remark(one) for one in decoded[:4]] == [None] * 4


def test_pictures_agree_at_every_stage(original: tuple[Any, Any, Path], image: OpenClipImage) -> None:
    want = theirs_of_pictures(original[0], original[1])
    decoded = [image.decode(Item(str(i), data, name="x.png")) for i, data in enumerate(pictures())]
    assert largest(torch.stack(decoded), want["pixels"]) < LIMIT
    pooled = pooled_of(image._network, lambda: image.encode(decoded), "image")
    assert largest(pooled, want["pooled"]) < LIMIT
    assert largest(image.encode(decoded), want["output"]) < LIMIT
    assert_apart(want["output"])


def assert_apart(rows: torch.Tensor) -> None:
    """Different inputs must be told apart, or agreement proves nothing."""
    cosines = (rows @ rows.T).numpy()
    assert cosines[np.triu_indices(len(rows), 1)].max() < 0.9


def swapped(data: bytes) -> Image.Image:
    red, green, blue = Image.open(io.BytesIO(data)).convert("RGB").split()
    return Image.merge("RGB", (blue, green, red))


def squashed(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)


def cornered(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(picture.size)
    return picture.crop((0, 0, side, side))


@pytest.mark.parametrize("fault", [swapped, squashed, cornered], ids=["BGR", "squashed", "corner crop"])
def test_a_planted_fault_of_preprocessing_fails(
    original: tuple[Any, Any, Path], image: OpenClipImage, fault: Callable[[bytes], Image.Image]
) -> None:
    want = theirs_of_pictures(original[0], original[1])
    faulty = [image.preprocess(fault(data)) for data in pictures()]
    assert largest(torch.stack(faulty), want["pixels"]) > 100 * LIMIT
    assert largest(image.encode(faulty), want["output"]) > 100 * LIMIT


def test_planted_mean_and_interpolation_fail(original: tuple[Any, Any, Path], image: OpenClipImage) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    want = theirs_of_pictures(original[0], original[1])
    for wrong in ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, {"interpolation": "bilinear"}):
        transform = image_transform_v2(PreprocessCfg(**{**image._preprocessing, **wrong}), is_train=False)
        faulty = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures()]
        assert largest(image.encode(faulty), want["output"]) > 10 * LIMIT, wrong


def test_planted_gelu_for_quickgelu_fails(original: tuple[Any, Any, Path]) -> None:
    texts = theirs_of_texts(original[0])["output"]
    images = theirs_of_pictures(original[0], original[1])["output"]
    for modality, want, inputs in (("text", texts, TEXTS), ("image", images, None)):
        gelu = load_encoder(f"open_clip:parity-gelu/{original[2]}", modality=modality)  # type: ignore[arg-type]
        given = inputs or [gelu.decode(Item("k", data, name="x.png")) for data in pictures()]
        assert largest(gelu.encode(given), want) > 10 * LIMIT, modality


def test_planted_faults_of_tokens_fail(original: tuple[Any, Any, Path], text: OpenClipText) -> None:
    want = theirs_of_texts(original[0])["output"]
    ids = torch.stack([text.decode(Item("k", one)).ids for one in TEXTS])  # (B, L)
    without_end = ids.masked_fill(ids == 49407, 0)
    shifted = torch.roll(ids, 1, dims=1)
    for faulty in (without_end, shifted):
        with torch.no_grad():
            rows = torch.nn.functional.normalize(text._network.encode_text(faulty).float(), dim=-1)
        assert largest(rows, want) > 100 * LIMIT
