"""The woven head: its cosines restated, its description, and its way through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import ConnectorError
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projector_spec import woven_width
from cmcr.trainer.projectors import Projector, ProjectorSpec, Woven, build_projector
from torch import Tensor
from torch.nn import functional as F

DIMS, SHARED = (7, 5), 4
PARTS = [(hubs, preserve) for hubs in (0, 3, 23) for preserve in (True, False)]


def head(side: int, hubs: int, preserve: bool, core: str = "affine", **more: Any) -> Woven:
    """A woven head of one of two sides, filled from a seed."""
    own, other = DIMS[side], DIMS[1 - side] if preserve else 0
    inner = ProjectorSpec(core, own, SHARED, rows=11 if core == "bridge" else 0)  # type: ignore[arg-type]
    width = woven_width(SHARED, hubs, own, other)
    parts: dict[str, Any] = {"core": inner, "means": 2, "hubs": hubs, "side": side, "other": other, **more}
    made = build_projector(ProjectorSpec("woven", own, width, **parts))
    assert isinstance(made, Woven)
    generator = torch.Generator().manual_seed(side)
    for name, value in made.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(
                F.normalize(drawn, dim=1) if name == "hubs" else 0.4 * drawn if name == "means" else drawn.abs()
            )
    return made.eval()


def units(count: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive(made: Woven, x: Tensor) -> tuple[Tensor, float]:
    """Shared unit row of one vector and its mean similarity to its ten nearest hub rows, one after the other."""
    distances = [float((x - mean).norm()) for mean in made.means]
    mean = made.means[distances.index(min(distances))]
    g = made.core((F.normalize(x - mean, dim=0))[None])[0]
    g = g / g.norm()
    if made.hubs is None:
        return g, 0.0
    nearest = sorted((float(g @ row) for row in made.hubs), reverse=True)[:10]
    return g, sum(nearest) / len(nearest)


@pytest.mark.parametrize(("hubs", "preserve"), PARTS)
@torch.no_grad()
def test_cosines_across_the_spaces_are_a_share_of_the_corrected_similarity(hubs: int, preserve: bool) -> None:
    one, two = head(0, hubs, preserve), head(1, hubs, preserve)
    x, y = units(9, DIMS[0]), units(8, DIMS[1], 1)
    cosines = one(x) @ two(y).T
    for i in range(len(x)):
        for j in range(len(y)):
            (g, h), (e, k) = naive(one, x[i]), naive(two, y[j])
            assert float(cosines[i, j]) == pytest.approx(Woven.SHARE * (float(g @ e) - h / 2 - k / 2), abs=1e-5)


@pytest.mark.parametrize(("hubs", "preserve"), PARTS)
@pytest.mark.parametrize("side", [0, 1])
@torch.no_grad()
def test_rows_have_unit_length_by_construction(side: int, hubs: int, preserve: bool) -> None:
    rows = head(side, hubs, preserve)(units(300, DIMS[side]))
    assert rows.shape == (300, woven_width(SHARED, hubs, DIMS[side], DIMS[1 - side] if preserve else 0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(300))
    assert head(side, hubs, preserve)(units(0, DIMS[side])).shape == (0, rows.shape[1])


@pytest.mark.parametrize("hubs", [0, 23])
@torch.no_grad()
def test_cosines_within_a_space_follow_the_source(hubs: int) -> None:
    made, x = head(0, hubs, True), units(200, DIMS[0])
    source, woven = x @ x.T, made(x) @ made(x).T
    away = ~torch.eye(200, dtype=torch.bool)
    kept = torch.corrcoef(torch.stack([source[away], woven[away]]))[0, 1]
    bare = head(0, hubs, False)
    lost = torch.corrcoef(torch.stack([source[away], (bare(x) @ bare(x).T)[away]]))[0, 1]
    assert kept > 0.85
    assert kept > lost + 0.1
    g = made.shared(x)
    h = torch.tensor([naive(made, row)[1] for row in x])
    z = Woven.SHARE * (g @ g.T + (1 + h[:, None] * h / 4 if hubs else 0))
    rest = (1 - z.diagonal()).sqrt()
    torch.testing.assert_close(woven, z + rest[:, None] * rest * source, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_nearest_of_the_means_is_subtracted() -> None:
    made = head(0, 0, True)
    made.means.copy_(torch.stack([units(1, 7)[0] * 0.9, -units(1, 7)[0] * 0.9]))
    for mean, sign in zip(made.means, (1, -1), strict=True):
        x = F.normalize(sign * units(1, 7) + 0.1 * units(30, 7, 4), dim=1)
        torch.testing.assert_close(made.shared(x), F.normalize(made.core(F.normalize(x - mean, dim=1)), dim=1))
    made.means.copy_(made.means[:1].expand(2, -1).clone())  # both modalities have one mean
    assert torch.isfinite(made(units(5, 7))).all()
    assert torch.isfinite(made(F.normalize(made.means, dim=1))).all()
    exact = F.normalize(made.means[:1], dim=1)
    made.means.copy_(exact.expand(2, -1))
    torch.testing.assert_close(made(exact).norm(dim=1), torch.ones(1))  # no direction is left for the shared part


@pytest.mark.parametrize("core", ["affine", "mlp", "bridge", "half"])
def test_a_description_survives_json(core: str) -> None:
    spec = head(1, 6, True, core).spec
    again = ProjectorSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    bare = ProjectorSpec("woven", 7, SHARED, core=ProjectorSpec("affine", 7, SHARED), bare=True)
    assert ProjectorSpec.from_json(bare.to_json()) == bare


def record(**change: Any) -> dict[str, Any]:
    return {**head(0, 6, True).spec.to_json(), **change}


BARE = {"bare": True, "hubs": 0, "other": 0, "dim_out": SHARED}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_out": 30}, "its parts have 18 dimensions"),
        ({"core": None}, "core is missing"),
        ({"core": {"kind": "affine", "dim_in": 6, "dim_out": 4}}, "rows of another width"),
        ({"core": [1]}, "only a woven projector has a core"),
        ({"means": 0}, "means is 0"),
        ({"means": True}, "means is True"),
        ({"hubs": -1}, "hubs is -1"),
        ({"hubs": 0.5}, r"hubs is 0\.5"),
        ({"other": "5"}, "other is '5'"),
        ({"side": 2}, "side is 2"),
        ({"side": True}, "side is True"),
        ({"side": 1.0}, r"side is 1\.0"),
        ({"bare": 1}, "bare is 1"),
        ({**BARE, "hubs": 6}, "a bare head has no hubs"),
        ({**BARE, "other": 5}, "a bare head has no hubs"),
        ({**BARE, "side": 1}, "a bare head has no hubs"),
        ({**BARE, "dim_out": 9}, "its parts have 4 dimensions"),
    ],
)
def test_a_description_that_is_not_valid_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConnectorError, match=message):
        ProjectorSpec.from_json(record(**change))


def test_descriptions_within_descriptions_are_refused_however_deep() -> None:
    inner = head(0, 0, True).spec
    with pytest.raises(ConnectorError, match="a woven head itself"):
        ProjectorSpec("woven", 7, woven_width(inner.dim_out, 0, 7, 0), core=inner)
    for kind in ("woven", "affine"):
        nested = record()
        for _ in range(2000):
            nested = {**record(), "kind": kind, "core": nested}
        with pytest.raises(ConnectorError, match="only a woven projector has a core"):
            ProjectorSpec.from_json(nested)


def connector(core: str = "affine", hubs: int = 6) -> Connector:
    heads: dict[str, Projector] = {name: head(side, hubs, True, core) for side, name in enumerate(("a", "b"))}
    return Connector(heads, ConnectorInfo({name: SpaceInfo(f"id-{name}") for name in heads}, "weave"))


@pytest.mark.parametrize("core", ["affine", "mlp", "bridge"])
def test_saving_and_loading_keeps_every_bit(tmp_path: Path, core: str) -> None:
    made = connector(core)
    made.save(tmp_path / "c")
    again = Connector.load(tmp_path / "c")
    for side, name in enumerate(("a", "b")):
        assert again.heads[name].spec == made.heads[name].spec
        x = units(40, DIMS[side]).numpy()
        np.testing.assert_array_equal(again.project(x, name), made.project(x, name))
        np.testing.assert_allclose(made.project(7 * x, name), made.heads[name](torch.from_numpy(x)).detach(), atol=1e-6)


@pytest.mark.parametrize("core", ["bridge", pytest.param("mlp", marks=pytest.mark.slow)])
def test_onnx_gives_what_project_gives_for_any_number_of_rows(tmp_path: Path, core: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from cmcr.trainer.export import export

    made = connector(core, hubs=23)
    session = onnxruntime.InferenceSession(export(made, tmp_path / "b.onnx", format="onnx", space="b"))
    for count in (1, 2, 41):
        rows = 3 * units(count, DIMS[1], count).numpy()
        (got,) = session.run(None, {"vectors": rows})
        np.testing.assert_allclose(got, made.project(rows, "b"), atol=1e-5)
