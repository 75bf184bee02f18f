"""Projectors: each kind against its formula, and descriptions that survive a file and refuse nonsense."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from cmcr.cache.errors import ConnectorError
from cmcr.trainer import projectors
from cmcr.trainer.projectors import ProjectorSpec, affine, bridge, build_projector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

SPECS = [
    ProjectorSpec("identity", 5, 5),
    ProjectorSpec("affine", 5, 3),
    ProjectorSpec("affine", 5, 9, bias=True, centred=True),
    ProjectorSpec("affine", 5, 5, centred=True, matrix=False),
    ProjectorSpec("half", 5, 3),
    ProjectorSpec("half", 5, 7, bias=True),
    ProjectorSpec("mlp", 5, 3),
    ProjectorSpec("mlp", 5, 7, hidden=11, bias=True),
    ProjectorSpec("decoupled", 5, 3),
    ProjectorSpec("decoupled", 5, 7, hidden=11, bias=True),
    ProjectorSpec("bridge", 5, 3, rows=13, scale=10.0, centred=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.dim_in}-{spec.dim_out}")
def test_every_kind_maps_its_dimensions_and_its_description_survives_json(spec: ProjectorSpec) -> None:
    again = ProjectorSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.to_json() == spec.to_json()
    head = build_projector(again).eval()
    assert head(torch.randn(4, 5)).shape == (4, spec.dim_out)
    assert head(torch.randn(0, 5)).shape == (0, spec.dim_out)


def test_linear_before_batch_norm_has_no_bias_unless_imported() -> None:
    assert "linear1.bias" not in build_projector(ProjectorSpec("mlp", 512, 512)).state_dict()
    names = set(build_projector(ProjectorSpec("mlp", 512, 512, bias=True)).state_dict())
    assert {"linear1.bias", "linear2.bias"} <= names
    assert ProjectorSpec("mlp", 512, 512).hidden == 1024


def test_mlp_and_half_are_their_formulas() -> None:
    x = torch.randn(17, 5)
    head = build_projector(ProjectorSpec("mlp", 5, 3, hidden=8))
    weights = head.state_dict()

    def norm(h: torch.Tensor) -> torch.Tensor:  # a fresh batch norm in training
        return (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5)

    want = norm(torch.relu(norm(x @ weights["linear1.weight"].T)) @ weights["linear2.weight"].T)
    torch.testing.assert_close(head.train()(x), want)
    half = build_projector(ProjectorSpec("half", 5, 3))
    torch.testing.assert_close(half.train()(x), torch.relu(norm(x @ half.state_dict()["linear1.weight"].T)))


def test_a_decoupled_head_is_a_linear_layer_that_starts_as_the_identity_and_two_mlps() -> None:
    x, head = torch.randn(17, 5), build_projector(ProjectorSpec("decoupled", 5, 3, hidden=8, bias=True)).eval()
    torch.testing.assert_close(head.intra(x), x)  # type: ignore[operator]
    state = {
        name: 0.1 * torch.randn_like(value.float()).abs().to(value.dtype) for name, value in head.state_dict().items()
    }
    head.load_state_dict(state)
    want = F.linear(x, state["linear.weight"], state["linear.bias"])
    for mlp in ("mlp1", "mlp2"):
        for layer in ("1", "2"):
            w = {name: state[f"{mlp}.{name}"] for name in (f"linear{layer}.weight", f"linear{layer}.bias")}
            norm = [state[f"{mlp}.bn{layer}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
            want = F.batch_norm(F.linear(want, *w.values()), *norm)
            want = want.relu() if layer == "1" else want
    torch.testing.assert_close(head(x), want)


def test_affine_subtracts_before_it_multiplies() -> None:
    matrix, mean, x = torch.randn(3, 5), torch.randn(5), torch.randn(7, 5)
    torch.testing.assert_close(affine(matrix, mean, 5)(x), (x - mean) @ matrix.T)
    torch.testing.assert_close(affine(None, mean, 5)(x), x - mean)
    assert affine(None, None, 5).spec.kind == "identity"


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.booleans(), st.integers(1, 60))
def test_a_bridge_in_blocks_is_the_dense_softmax(rows: int, queries: int, centred: bool, scores: int) -> None:
    keys, values, x = torch.randn(rows, 5), torch.randn(rows, 3), torch.randn(queries, 5)
    mean = torch.randn(5) if centred else None
    head = bridge(keys, values, mean, 12.0)
    z = F.normalize(x - mean, dim=1) if mean is not None else x
    dense = torch.softmax(12 * (z @ keys.T), dim=1) @ values
    before = projectors._BRIDGE_SCORES
    projectors._BRIDGE_SCORES = scores
    try:
        torch.testing.assert_close(head(x), dense)
    finally:
        projectors._BRIDGE_SCORES = before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "identity", "dim_in": 5, "dim_out": 6}, "without a matrix"),
        ({"kind": "affine", "dim_in": 5, "dim_out": 6, "matrix": False}, "without a matrix"),
        ({"kind": "cubic", "dim_in": 5, "dim_out": 5}, "unknown kind"),
        ({"kind": ["mlp"], "dim_in": 5, "dim_out": 5}, "unknown kind"),
        ({"kind": "mlp", "dim_in": "5", "dim_out": 5}, "dim_in"),
        ({"kind": "mlp", "dim_in": True, "dim_out": 5}, "dim_in"),
        ({"kind": "mlp", "dim_in": 5, "dim_out": -1}, "dim_out"),
        ({"kind": "mlp", "dim_in": 5, "dim_out": 5, "hidden": 0}, "hidden"),
        ({"kind": "mlp", "dim_in": 5, "dim_out": 5, "bias": "yes"}, "bias"),
        ({"kind": "bridge", "dim_in": 5, "dim_out": 5}, "rows"),
        ({"kind": "bridge", "dim_in": 5, "dim_out": 5, "rows": 4, "scale": float("nan")}, "scale"),
        ({"kind": "mlp", "dim_in": 5}, "must have kind"),
        ({"kind": "mlp", "dim_in": 5, "dim_out": 5, "__class__": "x"}, "no field but"),
        (None, "must have kind"),
        ([1, 2], "must have kind"),
    ],
)
def test_a_description_that_is_not_valid_is_refused_in_words(record: Any, message: str) -> None:
    with pytest.raises(ConnectorError, match=message):
        ProjectorSpec.from_json(record)
