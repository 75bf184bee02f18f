"""Batch norm over several processes, here with a stand-in for a second process that holds the same rows."""

from __future__ import annotations

import pytest
import torch
from cmcr.trainer import shared_norm
from cmcr.trainer.ranks import ALONE, Ranks
from cmcr.trainer.shared_norm import SharedBatchNorm, shared_norms
from torch import Tensor, nn


class Twins(Ranks):
    """Two processes with the same rows, so a sum over both is twice one's own."""

    size = 2

    def sum_(self, value: Tensor) -> Tensor:
        return value.mul_(2)


def model_of(dtype: torch.dtype = torch.float64, momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU()).to(dtype)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_outputs_gradients_and_statistics_are_those_of_all_rows_in_one_batch(momentum: float | None) -> None:
    shared, plain = model_of(momentum=momentum), model_of(momentum=momentum)
    x = torch.randn(7, 3, dtype=torch.float64)
    weights = torch.randn(7, 5, dtype=torch.float64)
    with shared_norms(shared, Twins()):
        for _ in range(2):
            here = x.clone().requires_grad_()
            shared.zero_grad()
            (shared(here) * weights).sum().backward()
    for _ in range(2):
        both = torch.cat([x, x]).requires_grad_()
        plain.zero_grad()
        (plain(both) * torch.cat([weights, weights])).sum().backward()
    assert here.grad is not None
    assert both.grad is not None
    torch.testing.assert_close(here.grad, both.grad[:7], rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(2 * mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    for (name, mine), theirs in zip(shared.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, msg=name)


def test_rows_far_from_zero_lose_no_digits_to_the_difference_of_squares() -> None:
    layer = SharedBatchNorm(Twins(), 4)
    rows = torch.randn(50, 4)
    torch.testing.assert_close(layer(rows + 4096), layer(rows), atol=2e-3, rtol=0)  # rows + 4096 keep 2^-11


@pytest.mark.parametrize("cuda", [False, True])
def test_layers_are_exchanged_on_the_same_tensors_and_put_back(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    monkeypatch.setattr(shared_norm, "_is_cuda", lambda module: cuda)
    model = model_of().train()
    own, before = model[1], dict(model.named_parameters()) | dict(model.named_buffers())
    with shared_norms(model, Twins()):
        assert type(model[1]) is (nn.SyncBatchNorm if cuda else SharedBatchNorm)
        assert model[1].training
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        assert list(now) == list(before)
        assert all(now[name] is tensor for name, tensor in before.items())
        model.eval()
        rows = torch.randn(3, 3, dtype=torch.float64)
        inside = model(rows)
    assert model[1] is own
    assert not own.training
    assert torch.equal(model(rows), inside)


def test_one_process_keeps_its_layers() -> None:
    model = model_of()
    own = model[1]
    with shared_norms(model, ALONE):
        assert model[1] is own
