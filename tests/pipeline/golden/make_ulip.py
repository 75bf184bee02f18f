"""Make the golden values of ULIP's towers with the original code: ``python make_ulip.py FOLDER_OF_ULIP``.

The folder is a checkout of github.com/salesforce/ULIP (made with f194ddb). The original does not install without CUDA,
so two operators are restated: ``pointnet2_ops.furthest_point_sample`` by the steps of its kernel, thread by thread
(Pointnet2_PyTorch, ``sampling_gpu.cu``), ``gather_operation`` by indexing; ``knn_cuda`` is imported and never called.
Everything else is the original's own: ``PointTransformer``, ``PointTransformer_Colored``, ``ULIP_WITH_IMAGE``,
``SimpleTokenizer``, ``pc_normalize``, ``pil_loader``.

Weights and inputs come from seeds, here and in the tests, which import this file; stored are the outputs, stage by
stage, and the names and shapes of both models at full size. The networks are shallow, so that the tests are quick.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
SEED = 7
POINTS = {"depth": 2, "num_group": 128, "group_size": 32}
SLIP_DEPTH = 2
# Their inputs are positive in every cloud (maxima, ReLU, GELU); weights without a mean let differences through instead.
AFTER_POSITIVE = ("reduce_dim.weight", "pos_embed.2.weight", "_conv.3.weight", "second_conv.0.weight")
CLOUDS = (1000, 700, 513, 100)
IMAGES = ((320, 200), (150, 260), (224, 224), (640, 90))
TEXTS = (
    "a red wooden chair",
    "An Airplane, seen from below; it's HUGE &amp; grey!",
    "caf\u00e9 \u2014 \u4e00\u628a\u6905\u5b50 \U0001f600 don't 1234",
    "one two three four five six seven eight nine ten " * 12,
)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = SEED) -> dict[str, torch.Tensor]:
    """A state dict with these names and shapes, of which every tensor depends on its name and the seed alone."""
    return {name: torch.from_numpy(_tensor(name, tuple(shape), seed)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Spread widely enough that different inputs end far apart; see the cosines that the tests assert."""
    name = name.removeprefix("module.")
    if name.endswith("num_batches_tracked"):
        return np.array(100, dtype=np.int64)
    if name == "logit_scale":
        return np.array(math.log(1 / 0.07), dtype=np.float32)
    state = int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
    rng = np.random.Generator(np.random.PCG64(state))
    if name.endswith("running_var"):
        return (0.5 + rng.random(shape, dtype=np.float32)).astype(np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return noise * np.float32(0.1) + np.float32(name.endswith("weight"))
    if name.endswith(("token_embedding.weight", "pos_embed", "positional_embedding", "cls_token", "cls_pos")):
        return noise * np.float32(0.02 if "point_encoder" in name else 0.3)
    fan_in = shape[0] if name.endswith("projection") else math.prod(shape[1:])
    if name == "pc_projection":  # maxima are positive in every cloud: take away what they have in common
        noise -= noise.reshape(2, -1, shape[1]).mean(axis=1).repeat(shape[0] // 2, axis=0)
    if name.endswith(AFTER_POSITIVE):
        noise -= noise.mean(axis=1, keepdims=True)
    gain = 6.0 if name.endswith(("first_conv.0.weight", "pos_embed.0.weight")) else 1.4
    return noise * np.float32(gain / math.sqrt(fan_in))


def clouds(colours: bool = False) -> list[np.ndarray]:
    """Different shapes, none centred and none of radius 1: an ellipsoid, a box, a ring, a plane."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    made = []
    for kind, count in enumerate(CLOUDS):
        base = rng.random((count, 3)) * 2 - 1
        if kind == 0:
            base = base / np.linalg.norm(base, axis=1, keepdims=True) * [1, 0.5, 0.3]
        elif kind == 1:
            base[np.arange(count), rng.integers(0, 3, count)] = 1
        elif kind == 2:
            angle = base[:, 0] * math.pi
            base = np.stack([np.cos(angle), np.sin(angle), 0.2 * base[:, 1]], 1) + 0.05 * base
        else:
            base[:, 2] *= 0.1
        cloud = (base * (kind + 0.5) + [kind, -1, 0.3]).astype(np.float32)
        rgb = rng.random((count, 3), dtype=np.float32) * rng.random(3, dtype=np.float32)
        made.append(np.concatenate([cloud, rgb], axis=1) if colours else cloud)
    return made


def images() -> list[bytes]:
    """PNG files: colour gradients with blocks of other colours, not square."""
    rng = np.random.Generator(np.random.PCG64(SEED + 1))
    files = []
    for width, height in IMAGES:
        y, x = np.mgrid[0:height, 0:width]
        corner = rng.random((3, 3))
        pixels = 255 * (corner[0] + corner[1] * (x / width)[..., None] + corner[2] * (y / height)[..., None]) / 3
        for _ in range(12):
            a, b = int(rng.integers(0, height)), int(rng.integers(0, width))
            pixels[a : a + height // 3, b : b + width // 4] = 255 * rng.random(3)
        held = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(held, "PNG")
        files.append(held.getvalue())
    return files


def as_set(neighbourhoods: np.ndarray) -> np.ndarray:
    """Neighbourhoods (G, K, C) with their points in a canonical order: the original's order is not defined."""
    return np.stack([one[np.lexsort(np.round(one[:, ::-1].T, 5))] for one in neighbourhoods])


def kernel_of_furthest_points(xyz: np.ndarray, count: int) -> list[int]:
    """``furthest_point_sampling_kernel`` for one cloud (N, 3), thread by thread."""
    total = len(xyz)
    threads = max(min(1 << int(math.log(total) / math.log(2.0)), 512), 1)
    temp = np.full(total, 1e10, dtype=np.float32)
    old, chosen = 0, [0]
    for _ in range(1, count):
        dists, dists_i = [], []
        delta = xyz - xyz[old]
        d = delta[:, 0] ** 2 + delta[:, 1] ** 2 + delta[:, 2] ** 2
        mag = xyz[:, 0] ** 2 + xyz[:, 1] ** 2 + xyz[:, 2] ** 2
        for thread in range(threads):
            besti, best = 0, np.float32(-1)
            for k in range(thread, total, threads):
                if mag[k] <= 1e-3:
                    continue
                temp[k] = min(d[k], temp[k])
                if temp[k] > best:
                    besti, best = k, temp[k]
            dists.append(best)
            dists_i.append(besti)
        step = threads // 2
        while step:
            for thread in range(step):
                if dists[thread + step] > dists[thread]:
                    dists[thread], dists_i[thread] = dists[thread + step], dists_i[thread + step]
            step //= 2
        old = dists_i[0]
        chosen.append(old)
    return chosen


def _stub(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    sys.modules[name] = module


class _Attributes(dict):  # type: ignore[type-arg]
    """What the original needs of easydict."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.__dict__ = self


def _import_original(folder: Path) -> Any:
    """The original's modules, with stand-ins for what does not install here."""

    def furthest_point_sample(data: torch.Tensor, count: int) -> torch.Tensor:
        return torch.tensor([kernel_of_furthest_points(cloud.numpy(), count) for cloud in data], dtype=torch.int32)

    def gather_operation(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.stack([cloud[:, chosen.long()] for cloud, chosen in zip(features, index, strict=True)])

    operators = types.SimpleNamespace(furthest_point_sample=furthest_point_sample, gather_operation=gather_operation)
    _stub("pointnet2_ops", pointnet2_utils=operators)
    _stub("knn_cuda", KNN=lambda **_: None)
    _stub("easydict", EasyDict=_Attributes)
    _stub("torch._six", string_classes=(str, bytes))
    _stub("utils.io", IO=None)
    _stub("termcolor", colored=lambda text, _: text)
    sys.path.insert(0, str(folder))
    from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import data.dataset_3d as dataset  # type: ignore[import-not-found]
    import models.ULIP_models as models  # type: ignore[import-not-found]
    from models.pointbert import point_encoder  # type: ignore[import-not-found]
    from utils.tokenizer import SimpleTokenizer  # type: ignore[import-not-found]

    return types.SimpleNamespace(
        dataset=dataset, models=models, points=point_encoder, tokenizer=SimpleTokenizer, folder=folder
    )


def _build(original: Any, colored: bool, small: bool) -> Any:
    """``ULIP_WITH_IMAGE`` around a PointBERT as ``ULIP_PointBERT`` builds it; of the coloured one the points alone."""
    import timm
    import yaml

    name = "ULIP_2_PointBERT_10k_colored_pointclouds.yaml" if colored else "PointTransformer_8192point.yaml"
    config = yaml.safe_load((original.folder / "models" / "pointbert" / name).read_text())["model"]
    config = _Attributes({**config, **(POINTS if small else {})})
    kind = original.points.PointTransformer_Colored if colored else original.points.PointTransformer
    encoder = kind(config, args=types.SimpleNamespace(evaluate_3d=True))
    depth = SLIP_DEPTH if small else 12
    vision = timm.create_model("vit_base_patch16_224", num_classes=0, depth=depth)
    return original.models.ULIP_WITH_IMAGE(
        embed_dim=512,
        vision_width=768,
        point_encoder=encoder,
        vision_model=vision,
        context_length=77,
        vocab_size=49408,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=depth,
        pc_feat_dims=768,
    )


def shapes_of(model: Any, colored: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes as a training run writes them; of the coloured model what its published file holds."""
    found = {f"module.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not colored:
        return found
    kept = {name: shape for name, shape in found.items() if ".point_encoder." in name}
    return {**kept, "module.pc_projection": (768, 1280)}


def _points_golden(original: Any, model: Any, colored: bool) -> dict[str, np.ndarray]:
    out: dict[str, list[np.ndarray]] = {"unit": [], "centres": [], "groups": [], "tokens": [], "pooled": []}
    network = model.point_encoder
    for cloud in clouds(colours=colored):
        unit = original.dataset.pc_normalize(cloud[:, :3])
        given = torch.from_numpy(np.concatenate([unit, cloud[:, 3:]], axis=1))[None]
        neighbourhoods, centres = network.group_divider(given)
        out["unit"].append(unit[:40])
        out["centres"].append(centres[0].numpy())
        out["groups"].append(as_set(neighbourhoods[0, ::32].numpy()))
        out["tokens"].append(network.encoder(neighbourhoods)[0, ::32].numpy())
        out["pooled"].append(network(given)[0].numpy())
    return {name: np.stack(values) for name, values in out.items()}


def _image_golden(original: Any, model: Any) -> dict[str, np.ndarray]:
    from torchvision import transforms

    # SLIP, eval_zeroshot.py, val_transform; ULIP evaluates no images
    transform = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            lambda picture: picture.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    place = HERE / "ulip-image.png"
    pixels = []
    for file in images():
        place.write_bytes(file)
        pixels.append(transform(original.dataset.pil_loader(place)))
    place.unlink()
    stacked = torch.stack(pixels)
    features = model.visual(stacked)
    return {
        "pixels": stacked[:, :, ::16, ::16].numpy(),
        "pooled": features.numpy(),
        "output": model.encode_image(stacked).numpy(),
    }


def main(folder: Path) -> None:
    original = _import_original(folder)
    torch.manual_seed(0)
    golden: dict[str, np.ndarray] = {}
    keys: dict[str, dict[str, tuple[int, ...]]] = {}
    with torch.inference_mode():
        for colored in (False, True):
            kind = "colored" if colored else "xyz"
            keys[f"{kind}"] = shapes_of(_build(original, colored, small=False), colored)
            model = _build(original, colored, small=True)
            shapes = shapes_of(model, colored)
            keys[f"{kind}_small"] = shapes
            state = {name.removeprefix("module."): tensor for name, tensor in weights(shapes).items()}
            projection = state["pc_projection"]
            if colored:
                model.point_encoder.load_state_dict(
                    {n.removeprefix("point_encoder."): t for n, t in state.items() if n != "pc_projection"}
                )
            else:
                model.load_state_dict(state, strict=True)
            model.eval()
            found = _points_golden(original, model, colored)
            found["output"] = (torch.from_numpy(found["pooled"]) @ projection).numpy()
            golden |= {f"{kind}_{name}": value for name, value in found.items()}
            if not colored:
                golden |= {f"image_{name}": value for name, value in _image_golden(original, model).items()}
                ids = original.tokenizer()(list(TEXTS))
                golden |= {"text_ids": ids.numpy(), "text_output": model.encode_text(ids).numpy()}
    np.savez_compressed(HERE / "ulip.npz", **golden)  # type: ignore[arg-type]
    (HERE / "ulip_keys.json").write_text(json.dumps(keys, separators=(",", ":")) + "\n")
    for name, value in golden.items():
        if name.endswith("output"):
            rows = value / np.linalg.norm(value, axis=1, keepdims=True)
            cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
            sys.stdout.write(f"{name}: mutual cosines {cosines.min():.3f} to {cosines.max():.3f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
