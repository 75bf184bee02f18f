"""Train the sandbox's three spaces, each by itself, and write their weights and held-out figures.

    python scripts/train_sandbox.py [--spaces clip clap ulip] [--output pipeline/sandbox/weights]

Each space sees pairs of its own two modalities from its own world, drawn from the train split alone. Nothing here ever
sees a sound beside a picture, a sound beside a cloud, or a caption beside a cloud. On one thread the same command gives
the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cmcr.pipeline.encoders.base import Modality
from cmcr.pipeline.encoders.towers import TowerSpec, build_tower
from cmcr.pipeline.sandbox import grammar, inputs
from cmcr.pipeline.sandbox.render import render
from cmcr.pipeline.sandbox.shapes import sample_cloud
from cmcr.pipeline.sandbox.synth import synthesise
from cmcr.pipeline.sandbox.world import Composition, World, compositions
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

HELDOUT_OBJECTS = 200
HELDOUT_WORLD = 7


@dataclass(frozen=True)
class SpaceConfig:
    """How one space is trained; ``widths`` are those of its towers, in the order of ``modalities``."""

    name: str
    modalities: tuple[Modality, Modality]
    dim: int
    widths: tuple[int, int]
    world: int
    seed: int
    flavours: tuple[float, float, float] = (0, 0, 0)
    pairs: int = 9_000
    epochs: int = 16
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    word_dropout: float = 0.06


SPACES = {
    "clip": SpaceConfig("sandbox-clip", ("text", "image"), 96, (64, 16), 101, 1, (0.8, 0.0, 0.2), 10_000, 16),
    "clap": SpaceConfig("sandbox-clap", ("text", "audio"), 64, (56, 16), 202, 2, (0.0, 0.8, 0.2), 9_000, 14),
    "ulip": SpaceConfig("sandbox-ulip", ("pointcloud", "image"), 80, (24, 16), 303, 3, pairs=9_000, epochs=16),
}


def main() -> None:
    """Train the spaces that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=sorted(SPACES), default=sorted(SPACES))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "pipeline" / "sandbox" / "weights")
    parser.add_argument("--epochs", type=int, help="instead of each space's own number, for a quick try")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in arguments.spaces:
        config = SPACES[name]
        if arguments.epochs:
            config = SpaceConfig(**{**asdict(config), "epochs": arguments.epochs})
        train_space(config, arguments.output)


def train_space(config: SpaceConfig, output: Path) -> None:
    """Train one space from nothing and write its two files."""
    start = time.perf_counter()
    world = World(config.world)
    drawn = world.draw(config.pairs, "train", "pairs")
    captions = caption_maker(config, world, drawn)
    vocabulary = inputs.build_vocabulary(captions(0)) if "text" in config.modalities else []
    streams = [None if modality == "text" else make_inputs(modality, drawn, world) for modality in config.modalities]
    print(f"{config.name}: {config.pairs} pairs drawn in {time.perf_counter() - start:.0f} s", flush=True)
    torch.manual_seed(config.seed)
    specs = [
        TowerSpec(modality, config.dim, width, len(vocabulary) + 2 if modality == "text" else 0)
        for modality, width in zip(config.modalities, config.widths, strict=True)
    ]
    towers = nn.ModuleDict({spec.modality: build_tower(spec) for spec in specs})
    scale = optimise(config, towers, streams, captions, inputs.number_words(vocabulary))
    payload = pack(config, towers, specs, vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{config.name}.safetensors").write_bytes(payload)
    figures = heldout_figures(config, towers, vocabulary)
    record = {
        "space": config.name,
        "config": asdict(config),
        "parameters": {name: sum(p.numel() for p in tower.parameters()) for name, tower in towers.items()},
        "vocabulary": len(vocabulary),
        "train_compositions": len(compositions("train")),
        "temperature": round(1 / scale, 5),
        "heldout": figures,
        "torch": torch.__version__.split("+")[0],
    }
    (output / f"{config.name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{config.name}: {len(payload)} bytes, {time.perf_counter() - start:.0f} s, {json.dumps(figures)}", flush=True
    )


def caption_maker(config: SpaceConfig, world: World, drawn: list[Composition]) -> Callable[[int], list[str]]:
    """Give the function that writes one fresh caption per object for an epoch."""

    def captions(epoch: int) -> list[str]:
        rng = world.rng("captions", epoch)
        return [grammar.caption(c, rng, flavour=grammar.mixed_flavour(rng, config.flavours)) for c in drawn]

    return captions


def word_rows(captions: list[str], vocabulary: dict[str, int]) -> Tensor:
    """Turn captions into word numbers, (N, MAX_WORDS)."""
    return torch.from_numpy(np.stack([inputs.text_input(text, vocabulary) for text in captions]))


def make_inputs(modality: Modality, objects: list[Composition], world: World) -> Tensor:
    """Make the tower inputs of one rendering of each object; half precision keeps the training set small."""
    make = {
        "image": lambda c, rng: inputs.image_input(render(c, rng)),
        "audio": lambda c, rng: inputs.audio_input(synthesise(c, rng)),
        "pointcloud": lambda c, rng: inputs.cloud_input(sample_cloud(c, rng)),
    }[modality]
    rows = [make(c, world.rng(modality, i)).astype(np.float16) for i, c in enumerate(objects)]
    return torch.from_numpy(np.stack(rows))


def optimise(
    config: SpaceConfig,
    towers: nn.ModuleDict,
    streams: list[Tensor | None],
    captions: Callable[[int], list[str]],
    vocabulary: dict[str, int],
) -> float:
    """Fit both towers by symmetric InfoNCE with a learned temperature; returns the final scale (1 / temperature)."""
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    decayed = [p for p in towers.parameters() if p.ndim > 1]
    other = [p for p in towers.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": [*other, log_scale], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    steps = config.pairs // config.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=steps * config.epochs, pct_start=0.15
    )
    order = torch.Generator().manual_seed(config.seed)
    towers.train()
    for epoch in range(config.epochs):
        texts = word_rows(captions(epoch), vocabulary) if vocabulary else None
        total, begun = 0.0, time.perf_counter()
        for rows in torch.randperm(config.pairs, generator=order)[: steps * config.batch].view(steps, config.batch):
            first, second = (
                towers[modality](augment(modality, (texts if stream is None else stream)[rows], config, order))  # type: ignore[index]
                for modality, stream in zip(config.modalities, streams, strict=True)
            )
            logits = first @ second.T * log_scale.exp()  # (B, B)
            target = torch.arange(len(rows))
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            log_scale.data.clamp_(max=math.log(100))
            total += loss.item()
        print(
            f"{config.name} epoch {epoch + 1} loss {total / steps:.3f} {time.perf_counter() - begun:.0f} s", flush=True
        )
    return float(log_scale.detach().exp())


def augment(modality: Modality, batch: Tensor, config: SpaceConfig, rng: torch.Generator) -> Tensor:
    """Shift, turn or drop a little, so that 10,000 renderings are enough."""
    if modality == "text":
        dropped = (torch.rand(batch.shape, generator=rng) < config.word_dropout) & (batch != inputs.PAD)
        return batch.masked_fill(dropped, inputs.UNKNOWN)
    x = batch.float()
    if modality == "image":
        down, right = torch.randint(-4, 5, (2,), generator=rng).tolist()
        gain = 1 + 0.06 * torch.randn(len(x), 3, 1, 1, generator=rng)
        return torch.roll(x, (down, right), (2, 3)) * gain
    if modality == "audio":
        return torch.roll(x, int(torch.randint(0, 5, (1,), generator=rng)), 3) + 0.15 * torch.randn(
            len(x), 1, 1, 1, generator=rng
        )
    x = x[:, :, torch.randperm(x.shape[2], generator=rng)[: x.shape[2] // 2]]
    angle = (torch.rand(len(x), generator=rng) - 0.5) * 0.6
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros(len(x)), torch.ones(len(x))
    turn = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], 1).view(-1, 1, 3, 3)
    return (turn @ x.view(len(x), 3, 3, -1)).view(x.shape)


def pack(config: SpaceConfig, towers: nn.ModuleDict, specs: list[TowerSpec], vocabulary: list[str]) -> bytes:
    """Round the towers to half precision, in place too, and serialise them with what is needed to rebuild them."""
    state = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in towers.state_dict().items()}
    towers.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    header = {"space": config.name, "towers": [spec.record() for spec in specs], "vocabulary": vocabulary}
    # one entry only: the order of several is not fixed
    return bytes(save_tensors(state, {"config": json.dumps(header, sort_keys=True)}))


@torch.no_grad()
def heldout_figures(config: SpaceConfig, towers: nn.ModuleDict, vocabulary: list[str]) -> dict[str, float]:
    """Retrieval within the space on held-out compositions, templates and renderings.

    Captions name every attribute that the space knows; the figures called natural are of captions that leave some out.
    """
    towers.eval()
    world = World(HELDOUT_WORLD)
    objects = world.draw_distinct(HELDOUT_OBJECTS)
    numbers = inputs.number_words(vocabulary)

    def side(modality: Modality, complete: bool) -> Tensor:
        if modality != "text":
            return torch.as_tensor(towers[modality](make_inputs(modality, objects, world).float()))
        rng = world.rng("heldout captions")
        flavour: grammar.Flavour = "image" if "image" in config.modalities else "audio"
        texts = [grammar.caption(c, rng, flavour=flavour, split="heldout", complete=complete) for c in objects]
        return torch.as_tensor(towers[modality](word_rows(texts, numbers)))

    a, b = config.modalities
    first, second = side(a, True), side(b, True)
    figures: dict[str, float] = {"objects": float(HELDOUT_OBJECTS), "chance R@1": 100 / HELDOUT_OBJECTS}
    figures |= recalls(f"{a} to {b}", first @ second.T) | recalls(f"{b} to {a}", second @ first.T)
    if a == "text":
        figures |= recalls(f"natural {a} to {b}", side(a, False) @ second.T)
    figures["cosine of a true pair"] = round(float((first * second).sum(1).mean()), 3)
    figures["modality gap"] = round(float((first.mean(0) - second.mean(0)).norm()), 3)
    return figures


def recalls(name: str, sims: Tensor) -> dict[str, float]:
    """R@1 and R@5 in percent; sims (N, N) with the true pairs on the diagonal."""
    rank = (sims > sims.diagonal()[:, None]).sum(1)  # (N,)
    return {f"{name} R@{k}": round(100 * float((rank < k).float().mean()), 1) for k in (1, 5)}


if __name__ == "__main__":
    main()
