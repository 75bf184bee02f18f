"""The sandbox's training script: the same bytes twice, and nothing but the space's own two modalities."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.encoders.sandbox import SandboxFamily
from cmcr.pipeline.sandbox.world import is_heldout

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_sandbox.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("train_sandbox", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_sandbox"] = module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    del sys.modules["train_sandbox"]


@pytest.mark.parametrize("name", ["clap", "ulip"])
def test_training_twice_gives_the_same_bytes(script: ModuleType, name: str, tmp_path: Path) -> None:
    config = replace(script.SPACES[name], pairs=128, epochs=2, batch=32)
    for folder in ("one", "two"):
        script.train_space(config, tmp_path / folder)
    for suffix in ("safetensors", "json"):
        one, two = (tmp_path / folder / f"sandbox-{name}.{suffix}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_trained_file_loads_as_an_encoder_of_another_space(script: ModuleType, tmp_path: Path) -> None:
    script.train_space(replace(script.SPACES["clip"], pairs=64, epochs=1, batch=32), tmp_path)
    path = str(tmp_path / "sandbox-clip.safetensors")
    fresh = SandboxFamily().load("clip", path, modality="text")
    assert fresh.encode([fresh.decode(Item("a", "a red bell"))]).shape == (1, 96)
    assert fresh.space.id != SandboxFamily().load("clip", None, modality="text").space.id


def test_training_makes_only_the_two_modalities_of_a_space_and_no_heldout_object(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, config in script.SPACES.items():
        made: dict[str, list[bool]] = {}
        real = script.make_inputs

        def spy(modality, objects, world, made=made, real=real):  # type: ignore[no-untyped-def]
            made.setdefault(modality, []).append(any(is_heldout(c) for c in objects))
            return real(modality, objects, world)

        with monkeypatch.context() as patch:
            patch.setattr(script, "make_inputs", spy)
            script.train_space(replace(config, pairs=32, epochs=1, batch=16), tmp_path / name)
        assert set(made) == set(config.modalities) - {"text"}
        # the first call is the training draw, the second the held-out figures
        assert all(calls[0] is False and all(calls[1:]) for calls in made.values())
