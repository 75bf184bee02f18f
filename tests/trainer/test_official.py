"""Published checkpoints: projections of the authors' code, exact round trips, hostile files refused in words."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import CmcrError, ConnectorError
from cmcr.trainer.connector import Connector
from cmcr.trainer.made_folder import write_made
from cmcr.trainer.official import export_official, import_official, official_state
from torch.nn import functional as F

MLP = ("net1.0", "net1.1", "net2.0", "net2.1")
HALF = ("net.0", "net.1")


def keys_of(prefix: str, layers: tuple[str, ...], width: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of one MLP as ``nn.Sequential`` names them: linear layers and batch norms in turn."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, layer in enumerate(layers):
        out, into = width[layer.partition(".")[0]]
        if place % 2 == 0:
            shapes |= {f"{prefix}.{layer}.weight": (out, into), f"{prefix}.{layer}.bias": (out,)}
        else:
            shapes |= {f"{prefix}.{layer}.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{prefix}.{layer}.num_batches_tracked"] = ()
    return shapes


FULL = {"net1": (1024, 512), "net2": (512, 1024)}
HEAD = {"Head1.weight": (512, 512), "Head1.bias": (512,)}
SHAPES = {
    "clap_clip": {**keys_of("Head_A", MLP, FULL), **keys_of("Head_B", MLP, FULL)},
    "ulip_clip": {**keys_of("Head_A", HALF, {"net": (512, 512)}), **keys_of("Head_B", HALF, {"net": (512, 512)})},
    "ex_clap": {**HEAD, **keys_of("Head2.mlp1", MLP, FULL), **keys_of("Head2.mlp2", MLP, FULL)},
}
SHAPES["ex_ulip"] = SHAPES["ex_clap"]


def seeded(kind: str) -> OrderedDict[str, torch.Tensor]:
    """A state dict of exactly the official keys, order and shapes, filled from a seed."""
    return OrderedDict((key, value.clone()) for key, value in filled_once(kind).items())


@lru_cache(maxsize=4)
def filled_once(kind: str) -> dict[str, torch.Tensor]:
    rng, filled = np.random.default_rng(2310), {}
    for key in sorted(SHAPES[kind]):
        shape = SHAPES[kind][key]
        z = rng.standard_normal(shape).astype(np.float32) if shape else np.float32(rng.standard_normal())
        if key.endswith("num_batches_tracked"):
            filled[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            filled[key] = torch.from_numpy(0.5 + np.abs(z))
        else:
            filled[key] = torch.from_numpy(z * np.float32(8 / np.sqrt(shape[1]) if len(shape) == 2 else 0.3))
    return {key: filled[key] for key in SHAPES[kind]}


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


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Saves anything with ``torch.save`` under the name of a checkpoint."""

    def save(value: Any, name: str = "some") -> Path:
        torch.save(value, tmp_path / f"{name}.pt")
        return tmp_path / f"{name}.pt"

    return save


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
def test_projections_at_seeded_weights_are_those_of_the_official_code(write: Write, kind: str, space: str) -> None:
    connector = import_official(write(seeded(kind)), kind)
    got = connector.project(vectors(), space)
    if (kind, space) in GOLDEN:
        np.testing.assert_allclose(got[:2, ::64], GOLDEN[kind, space], atol=2e-6)
    want = restated(seeded(kind), HEADS[kind, space], torch.from_numpy(vectors()))
    np.testing.assert_allclose(got, want.numpy(), atol=2e-6)


def test_the_base_space_of_ex_mcr_stays_as_it_is_bit_for_bit(write: Write) -> None:
    connector = import_official(write(seeded("ex_ulip")), "ex_ulip")
    assert connector.kept == ("clip",)
    rows = np.eye(512, dtype=np.float32)[:5]
    np.testing.assert_array_equal(connector.project(rows, "clip"), rows)


@pytest.mark.parametrize("kind", list(SHAPES))
def test_import_export_import_is_the_identity(write: Write, tmp_path: Path, kind: str) -> None:
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


def test_the_kind_is_recognised_but_for_the_two_that_are_alike(write: Write) -> None:
    assert import_official(write(seeded("clap_clip"))).spaces == ("clap", "clip")
    assert import_official(write(seeded("ulip_clip"))).info.made_from["imported"]["kind"] == "ulip_clip"
    with pytest.raises(ConnectorError, match="ex_clap and ex_ulip have the same keys") as raised:
        import_official(write(seeded("ex_clap")))
    assert raised.value.todo == "--kind ex_clap or --kind ex_ulip"
    wrapped = {f"module.{key}": value for key, value in seeded("ex_ulip").items()}
    assert import_official(write(wrapped), "ex_ulip").spaces == ("clip", "ulip")
    with pytest.raises(ConnectorError, match="no published checkpoint 'clip_ulip'"):
        import_official(write(seeded("ex_clap")), "clip_ulip")


def test_the_description_names_encoders_source_and_licence(write: Write) -> None:
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


def damaged(change: str) -> Any:
    """A state dict of ulip_clip.pt with one thing wrong."""
    state: Any = seeded("ulip_clip")
    weight = "Head_A.net.0.weight"
    if change == "missing":
        del state["Head_B.net.1.bias"]
    elif change == "surplus":
        state["Head_C.weight"] = torch.zeros(1)
    elif change == "shape":
        state[weight] = torch.zeros(512, 256)
    elif change == "half":
        state[weight] = state[weight].half()
    elif change == "nan":
        state[weight][3, 4] = torch.nan
    elif change == "variance":
        state["Head_A.net.1.running_var"][0] = -1
    elif change == "number":
        state[weight] = 3.0
    elif change == "sparse":
        state[weight] = torch.eye(512).to_sparse()
    elif change == "list":
        state = list(state)
    elif change == "wrapped":
        state = {"state_dict": state}
    elif change == "empty":
        state = {}
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing: Head_B\.net\.1\.bias"),
        ("surplus", r"not known: Head_C\.weight"),
        ("shape", r"Head_A\.net\.0\.weight of ulip_clip is torch\.float32 \(512, 256\)"),
        ("half", r"is torch\.float16"),
        ("nan", "not finite"),
        ("variance", "negative variances"),
        ("number", "is float, not a plain tensor"),
        ("sparse", "not a plain tensor"),
        ("list", "holds list, not a state dict"),
        ("wrapped", "not known: state_dict"),
        ("empty", "missing"),
    ],
)
def test_a_wrong_state_dict_is_one_clear_error(write: Write, change: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=message) as raised:
        import_official(write(damaged(change)))
    assert raised.value.where
    assert raised.value.todo


class Hostile:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_or_damaged_file_is_refused_and_runs_nothing(write: Write, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    sound = write(seeded("ulip_clip"), "sound").read_bytes()
    cases: dict[str, bytes] = {
        "pickle": pickle.dumps({"Head_A.net.0.weight": Hostile(trap)}, protocol=2),
        "torch": write({**seeded("ulip_clip"), "x": Hostile(trap)}).read_bytes(),
        "cut": sound[:5000],
        "cut late": sound[:-200],
        "empty": b"",
        "text": b"not a checkpoint",
        "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "deep": b"\x80\x02" + b"(" * 5000,
    }
    for name, data in cases.items():
        (tmp_path / "bad.pt").write_bytes(data)
        with pytest.raises(ConnectorError, match="no state dict that loads without running code"):
            import_official(tmp_path / "bad.pt")
        assert not trap.exists(), name
    with pytest.raises(ConnectorError, match="no such checkpoint"):
        import_official(tmp_path / "nowhere.pt")
    with pytest.raises(ConnectorError, match="cannot be read"):
        import_official(tmp_path)


def test_a_file_that_unpacks_to_far_more_than_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(80 << 20))
    (tmp_path / "bomb.pt").write_bytes(bomb.getvalue())
    assert len(bomb.getvalue()) < 1 << 20
    with pytest.raises(ConnectorError, match="the largest published checkpoint"):
        import_official(tmp_path / "bomb.pt")


def test_a_fit_of_the_published_architecture_exports_with_biases_of_zero(write: Write, tmp_path: Path) -> None:
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


def test_a_connector_of_another_architecture_is_one_clear_error(write: Write, tmp_path: Path) -> None:
    from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
    from cmcr.trainer.projectors import identity

    plain = Connector({"clap": identity(6)}, ConnectorInfo({"clap": SpaceInfo("x")}, "identity"))
    with pytest.raises(ConnectorError, match="not the architecture of a published checkpoint") as raised:
        official_state(plain)
    assert "clap_clip: no space 'clip'" in str(raised.value.where)
    ulip = import_official(write(seeded("ulip_clip")))
    with pytest.raises(ConnectorError) as raised:
        official_state(ulip, "ex_ulip")
    assert "the head of 'clip' is half 512-512, not identity 512-512" in str(raised.value.where)
    (tmp_path / "file").touch()
    with pytest.raises(CmcrError, match="file"):
        export_official(ulip, tmp_path / "file" / "x.pt")


def test_a_folder_with_other_things_is_never_touched(write: Write, tmp_path: Path) -> None:
    connector = import_official(write(seeded("ulip_clip")))
    folder = write_made(connector, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Connector of clip and ulip" in card
    assert "CC BY 4.0" in card
    assert "curve.png" not in card
    with pytest.raises(ConnectorError, match="holds a connector already"):
        write_made(connector, folder)
    write_made(connector, folder, overwrite=True)
    (folder / "metrics.jsonl").touch()
    with pytest.raises(ConnectorError, match=r"other things: metrics\.jsonl"):
        write_made(connector, folder, overwrite=True)
    with pytest.raises(ConnectorError, match="is a file"):
        write_made(connector, folder / "metrics.jsonl")
