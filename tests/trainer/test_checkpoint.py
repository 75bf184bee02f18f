from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cmcr.cache.errors import FitError
from cmcr.trainer.checkpoint import Checkpoint, capture, load_checkpoint, restore, save_checkpoint
from cmcr.trainer.optim import make_optimiser
from torch import nn


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3))


def steps(model: nn.Module, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        model(inputs).square().sum().backward()
        optimiser.step()


def test_a_restored_model_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    straight = model_of(0)
    steps(straight, make_optimiser(straight, 1e-2, 0.1), 0, 9)
    model = model_of(0)
    optimiser = make_optimiser(model, 1e-2, 0.1)
    steps(model, optimiser, 0, 4)
    save_checkpoint(tmp_path / "c", capture(4, "fit", model, optimiser))
    fresh = model_of(1)
    again = make_optimiser(fresh, 1e-2, 0.1)
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert (found.step, found.identity) == (4, "fit")
    restore(found, fresh, again)
    steps(fresh, again, found.step, 9)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "checkpoint.safetensors"
    save_checkpoint(place, Checkpoint(1, "x", {"w": torch.ones(3)}, {}))
    data = place.read_bytes()
    other = data.replace(b"cmcr-checkpoint", b"some-checkpoint")
    place.write_bytes({"cut": data[:-5], "text": b"no tensors here", "empty": b"", "other": other}[damage])
    with pytest.raises(FitError, match="checkpoint") as error:
        load_checkpoint(place)
    assert str(place) in str(error.value)


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = model_of(0)
        optimiser = make_optimiser(model, 1e-2, 0.1)
        steps(model, optimiser, 0, 3)
        save_checkpoint(tmp_path / name, capture(3, "fit", model, optimiser))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
