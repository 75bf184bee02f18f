"""Published checkpoints: projections of the authors' code, exact round trips, hostile files refused in words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cmcr.cache.errors import ConnectorError
from cmcr.trainer.connector import Connector
from cmcr.trainer.made_folder import write_made
from cmcr.trainer.official import export_official, import_official
from torch.nn import functional as F


def vectors() -> np.ndarray:
    """Four unit rows (4, 512) of a seed: what the golden values were made from."""
    rows = np.random.default_rng(20231011).standard_normal((4, 512)).astype(np.float32)
    return F.normalize(torch.from_numpy(rows), dim=-1).numpy()


def restated(state: dict[str, torch.Tensor], head: str, x: torch.Tensor) -> torch.Tensor:
    """The official forward pass from the raw state dict: ``head`` is Head_A, Head_B, or Head for Head2(Head1(x))."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    def mlp(x: torch.Tensor, name: str) -> torch.Tensor:
        x = norm(linear(x, f"{name}.net1.0"), f"{name}.net1.1").clamp(min=0)
        return norm(linear(x, f"{name}.net2.0"), f"{name}.net2.1")

    if head == "Head":
        x = mlp(mlp(linear(x, "Head1"), "Head2.mlp1"), "Head2.mlp2")
    elif f"{head}.net.0.weight" in state:
        x = norm(linear(x, f"{head}.net.0"), f"{head}.net.1").clamp(min=0)
    else:
        x = mlp(x, head)
    return F.normalize(x, dim=-1)


# Made once by the authors' own code: the classes ULIPCLIP_Head, CLAPCLIP_Head (MCR-PEFT/C-MCR, commit 038dec1,
# cmcr/cmcr_projector.py) and Ex_MCR_Head (MCR-PEFT/Ex-MCR, commit 0f2baa5, exmcr/exmcr_projector.py) in evaluation mode
# under torch 2.13, ``load_state_dict`` of the published ulip_clip.pt or of ``seeded(kind)``, then the calls of their
# project_clip, project_clap, project_ulip and project_audio_to_base_mcr on ``vectors()`` and F.normalize. Rows 0 and 1,
# every 64th column.
GOLDEN = {
    ("ulip_clip", "clip"): [
        [0.0, 0.0, 0.0319681, 0.0321809, 0.1131535, 0.0, 0.0, 0.0699334],
        [0.0, 0.0227597, 0.0197267, 0.0, 0.1357609, 0.0, 0.0, 0.0454424],
    ],
    ("ulip_clip", "ulip"): [
        [0.0, 0.0, 0.0066738, 0.0, 0.0790724, 0.0070084, 0.0, 0.0740608],
        [0.0, 0.0, 0.0289785, 0.0, 0.0344149, 0.0, 0.0, 0.0503586],
    ],
    ("clap_clip", "clap"): [
        [0.0421072, 0.0171932, -0.0040802, 0.0005955, 0.0327333, -0.0763677, -0.0119104, -0.005409],
        [0.0406061, 0.0132767, -0.0038126, -0.047432, 0.0336625, -0.0610777, 0.0006869, -0.0075956],
    ],
    ("clap_clip", "clip"): [
        [-0.0216745, 0.0516871, 0.0269963, 0.0022995, 0.0279001, -0.0202966, 0.0096919, -0.0079353],
        [-0.0299457, 0.0527201, 0.0335154, 0.0092508, 0.0266378, -0.0196437, 0.0096494, -0.0097301],
    ],
    ("ex_clap", "clap"): [
        [0.0023352, -0.0619928, -0.1232694, 0.0500475, 0.1235795, -0.0053965, 0.005403, -0.0539905],
        [0.0052758, -0.0675279, -0.0040379, 0.0424254, 0.0863441, -0.0103527, -0.0082993, -0.0503281],
    ],
}
# Head_A is CLAP in clap_clip.pt and CLIP in ulip_clip.pt.
HEADS = {
    ("clap_clip", "clap"): "Head_A",
    ("clap_clip", "clip"): "Head_B",
    ("ulip_clip", "clip"): "Head_A",
    ("ulip_clip", "ulip"): "Head_B",
    ("ex_clap", "clap"): "Head",
    ("ex_ulip", "ulip"): "Head",
}

Write = Callable[..., Path]
Seeded = Callable[[str], OrderedDict[str, torch.Tensor]]


@pytest.mark.kit
def test_projections_of_the_published_checkpoint_are_those_of_the_official_code(kit: Path) -> None:
    file = kit / "official" / "ulip_clip.pt"
    connector, state = import_official(file), torch.load(file, weights_only=True)
    assert connector.spaces == ("clip", "ulip")
    for space in connector.spaces:
        got = connector.project(vectors(), space)
        np.testing.assert_allclose(got[:2, ::64], GOLDEN["ulip_clip", space], atol=1e-6)
        want = restated(state, HEADS["ulip_clip", space], torch.from_numpy(vectors()))
        np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


@pytest.mark.parametrize(("kind", "space"), [pair for pair in HEADS if pair[0] != "ulip_clip"])
def test_projections_at_seeded_weights_are_those_of_the_official_code(
    seeded: Seeded, write: Write, kind: str, space: str
) -> None:
    connector = import_official(write(seeded(kind)), kind)
    got = connector.project(vectors(), space)
    if (kind, space) in GOLDEN:
        np.testing.assert_allclose(got[:2, ::64], GOLDEN[kind, space], atol=2e-6)
    want = restated(seeded(kind), HEADS[kind, space], torch.from_numpy(vectors()))
    np.testing.assert_allclose(got, want.numpy(), atol=2e-6)


def test_the_base_space_of_ex_mcr_stays_as_it_is_bit_for_bit(seeded: Seeded, write: Write) -> None:
    connector = import_official(write(seeded("ex_ulip")), "ex_ulip")
    assert connector.kept == ("clip",)
    rows = np.eye(512, dtype=np.float32)[:5]
    np.testing.assert_array_equal(connector.project(rows, "clip"), rows)


@pytest.mark.parametrize("kind", ["clap_clip", "ulip_clip", "ex_clap", "ex_ulip"])
def test_import_export_import_is_the_identity(seeded: Seeded, write: Write, tmp_path: Path, kind: str) -> None:
    state = seeded(kind)
    first = import_official(write(state), kind)
    folder = write_made(first, tmp_path / "connector")
    file = export_official(Connector.load(folder), tmp_path / "again.pt")
    again = torch.load(file, weights_only=True)
    assert list(again) == list(state)
    for key, value in state.items():
        assert torch.equal(again[key], value), key
        assert again[key].dtype == value.dtype
    second = import_official(file, kind)
    assert second.info.spaces == first.info.spaces
    for space, head in first.heads.items():
        for one, two in zip(head.state_dict().values(), second.heads[space].state_dict().values(), strict=True):
            assert torch.equal(one, two)


@pytest.mark.kit
def test_the_published_file_survives_the_round_trip(kit: Path, tmp_path: Path) -> None:
    official = torch.load(kit / "official" / "ulip_clip.pt", weights_only=True)
    again = torch.load(
        export_official(import_official(kit / "official" / "ulip_clip.pt"), tmp_path / "x.pt"), weights_only=True
    )
    assert list(again) == list(official)
    assert all(torch.equal(again[key], value) for key, value in official.items())


def test_the_kind_is_recognised_but_for_the_two_that_are_alike(seeded: Seeded, write: Write) -> None:
    assert import_official(write(seeded("clap_clip"))).spaces == ("clap", "clip")
    assert import_official(write(seeded("ulip_clip"))).info.made_from["imported"]["kind"] == "ulip_clip"
    with pytest.raises(ConnectorError, match="ex_clap and ex_ulip have the same keys") as raised:
        import_official(write(seeded("ex_clap")))
    assert raised.value.todo == "--kind ex_clap or --kind ex_ulip"
    wrapped = {f"module.{key}": value for key, value in seeded("ex_ulip").items()}
    assert import_official(write(wrapped), "ex_ulip").spaces == ("clip", "ulip")
    with pytest.raises(ConnectorError, match="no published checkpoint 'clip_ulip'"):
        import_official(write(seeded("ex_clap")), "clip_ulip")


def test_the_description_names_encoders_source_and_licence(seeded: Seeded, write: Write) -> None:
    info = import_official(write(seeded("clap_clip"), "clap_clip")).info
    assert info.method == "c-mcr"
    assert info.spaces["clap"].encoders["audio"] == "laion_clap:HTSAT-tiny/630k-fusion-best"
    assert info.spaces["clip"].encoders["image"] == "open_clip:ViT-B-32-quickgelu/openai"
    assert (info.spaces["clap"].id, info.spaces["clip"].id) == ("declared:clap", "declared:clip")
    assert info.licences["github.com/MCR-PEFT/C-MCR, checkpoints/clap_clip.pt"] == "CC BY 4.0"
    assert info.made_from["imported"]["file"] == "clap_clip.pt"
    info = import_official(write(seeded("ex_ulip")), "ex_ulip").info
    assert info.method == "ex-mcr"
    assert info.spaces["ulip"].encoders["pointcloud"] == "ulip:PointBERT/pointbert_ULIP-2"


def test_encoders_of_the_description_are_names_of_the_registry() -> None:
    from cmcr.pipeline.encoders.registry import SHORT_NAMES
    from cmcr.trainer.official_layout import SPACES

    assert SPACES["clap"].encoders["audio"] == SHORT_NAMES["clap"]
    assert SPACES["clip"].encoders["text"] == SHORT_NAMES["clip"]
    assert SPACES["ulip"].encoders["pointcloud"] == SHORT_NAMES["ulip2"]


def test_a_fit_of_the_published_architecture_exports_with_biases_of_zero(
    seeded: Seeded, write: Write, tmp_path: Path
) -> None:
    from dataclasses import replace

    from cmcr.trainer.projectors import build_projector

    imported = import_official(write(seeded("clap_clip")))
    heads = {}
    for space, head in imported.heads.items():
        heads[space] = build_projector(replace(head.spec, bias=False))
        heads[space].load_state_dict({k: v for k, v in head.state_dict().items() if k in heads[space].state_dict()})
    fitted = Connector(heads, imported.info)
    again = import_official(export_official(fitted, tmp_path / "x.pt"))
    for space in fitted.spaces:
        np.testing.assert_array_equal(again.project(vectors(), space), fitted.project(vectors(), space))
