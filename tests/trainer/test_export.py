"""ONNX models of heads give what ``Connector.project`` gives; formats and options are refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cmcr.cache.errors import ConnectorError, MissingExtraError
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.export import export
from cmcr.trainer.projectors import ProjectorSpec, build_projector

SPECS = [
    ProjectorSpec("decoupled", 5, 6, bias=True),
    ProjectorSpec("identity", 6, 6),
    ProjectorSpec("affine", 5, 6, bias=True, centred=True),
    ProjectorSpec("half", 5, 6),
    ProjectorSpec("mlp", 5, 6),
    ProjectorSpec("bridge", 5, 6, rows=11, centred=True),
]


def with_head(spec: ProjectorSpec) -> Connector:
    """A connector with a head of random weights, statistics included, beside a kept space."""
    generator = torch.Generator().manual_seed(3)
    head = build_projector(spec)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if name.endswith("running_var") else noise - 0.5)
    heads = {"leaf": head, "base": build_projector(ProjectorSpec("identity", 6, 6))}
    return Connector(heads, ConnectorInfo({name: SpaceInfo(f"id-{name}") for name in heads}, "ex-mcr"))


@pytest.mark.parametrize(
    "spec", [SPECS[0], *(pytest.param(spec, marks=pytest.mark.slow) for spec in SPECS[1:])], ids=lambda spec: spec.kind
)
def test_onnx_gives_what_project_gives_for_any_number_of_rows(tmp_path: Path, spec: ProjectorSpec) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    connector = with_head(spec)
    file = export(connector, tmp_path / "deep" / "leaf.onnx", format="onnx", space="leaf")
    session = onnxruntime.InferenceSession(file)
    assert session.get_modelmeta().custom_metadata_map == {"cmcr.space": "leaf"}
    for count in (1, 2, 37):
        rows = 9 * np.random.default_rng(count).standard_normal((count, spec.dim_in)).astype(np.float32)
        (got,) = session.run(None, {"vectors": rows})
        np.testing.assert_allclose(got, connector.project(rows, "leaf"), atol=1e-5)


def test_requests_that_make_no_sense_say_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = with_head(SPECS[4])
    both = Connector({"a": connector.heads["leaf"], "b": connector.heads["leaf"]}, ConnectorInfo(
        {"a": SpaceInfo("x"), "b": SpaceInfo("y")}, "c-mcr"))  # fmt: skip
    for wrong, kwargs, message in (
        (connector, {"format": "tflite"}, "no format 'tflite'"),
        (connector, {"format": "onnx", "kind": "ex_clap"}, "--kind has no meaning"),
        (connector, {"format": "official", "space": "leaf"}, "--space has no meaning"),
        (connector, {"format": "onnx", "space": "nowhere"}, "no space 'nowhere'"),
        (both, {"format": "onnx"}, "has 2 that are not the identity"),
    ):
        with pytest.raises(ConnectorError, match=message):
            export(wrong, tmp_path / "x", **kwargs)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError) as raised:
        export(connector, tmp_path / "x", format="onnx")
    assert raised.value.todo == "pip install 'cmcr[onnx]'"
    assert not list(tmp_path.iterdir())
