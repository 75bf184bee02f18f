"""The connector: what it computes, what its folder holds, and how each damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from cmcr.cache.errors import ConnectorError
from cmcr.trainer import hooks
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import ProjectorSpec, build_projector


def make(**clap: Any) -> Connector:
    torch.manual_seed(0)
    heads = {
        "clip": build_projector(ProjectorSpec("identity", 6, 6)),
        "clap": build_projector(ProjectorSpec("mlp", 5, 6, hidden=31)),
    }
    info = ConnectorInfo(
        spaces={
            "clap": SpaceInfo(
                "id-clap", ("audio", "text"), {"audio": "fam:a", "text": "fam:t"}, {"audio": "f1"}, **clap
            ),
            "clip": SpaceInfo("id-clip", ("image", "text"), {"image": "fam:i"}),
        },
        method="c-mcr",
        made_from={"seed": 3, "caches": ["b", "a"]},
        versions={"torch": "2"},
        licences={"fam:a": "not stated"},
    )
    return Connector(heads, info)


def test_projection_is_the_head_between_two_normalisations() -> None:
    connector, vectors = make(), np.random.default_rng(0).standard_normal((23, 5)).astype(np.float32) * 40
    with torch.no_grad():
        unit = torch.nn.functional.normalize(torch.from_numpy(vectors))
        want = torch.nn.functional.normalize(connector.heads["clap"](unit)).numpy()
    got = connector.project(vectors, space="clap", batch_size=4)
    assert got.shape == (23, 6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(connector.project(torch.from_numpy(vectors), "clap"), got, atol=1e-6)
    np.testing.assert_allclose(connector.project(vectors.astype(np.float64), "clap"), got, atol=1e-6)
    np.testing.assert_allclose(connector.project(vectors[0].tolist(), "clap"), got[:1], atol=1e-6)
    np.testing.assert_allclose(connector.project(vectors.astype(np.float16), "clap"), got, atol=5e-3)
    assert connector.project(vectors[:0], "clap").shape == (0, 6)


def test_half_precision_vectors_are_normalised_in_float32() -> None:
    vectors = np.full((1, 6), 300, np.float16)  # squares overflow float16
    np.testing.assert_allclose(make().project(vectors, "clip"), 1 / np.sqrt(6), rtol=1e-6)


def test_similarity_is_the_cosine_of_projected_vectors() -> None:
    rng, connector = np.random.default_rng(1), make()
    a, b = rng.standard_normal((4, 5)), rng.standard_normal((3, 6))
    got = connector.similarity(a, b, spaces=("clap", "clip"))
    np.testing.assert_allclose(got, connector.project(a, "clap") @ connector.project(b, "clip").T)
    assert got.shape == (4, 3)
    assert connector.kept == ("clip",)


def test_a_row_that_the_head_sends_to_zero_stays_zero() -> None:
    head = build_projector(ProjectorSpec("half", 5, 6))
    torch.nn.init.constant_(head.state_dict()["bn1.bias"], -100)
    connector = Connector({"clap": head}, ConnectorInfo({"clap": SpaceInfo("x")}, "c-mcr"))
    assert not connector.project(np.ones((2, 5)), "clap").any()


def test_saving_and_loading_gives_the_same_vectors_and_saving_again_the_same_bytes(tmp_path: Path) -> None:
    connector = make()
    connector.save(tmp_path / "deep" / "one")
    loaded = Connector.load(tmp_path / "deep" / "one")
    loaded.save(tmp_path / "two")
    vectors = np.random.default_rng(2).standard_normal((9, 5))
    np.testing.assert_array_equal(loaded.project(vectors, "clap"), connector.project(vectors, "clap"))
    for name in ("config.json", "connector.safetensors"):
        assert (tmp_path / "deep" / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["config.json", "connector.safetensors"]
    assert loaded.info.spaces == dict(connector.info.spaces)
    assert (loaded.spaces, loaded.dim, loaded.info.method) == (("clap", "clip"), 6, "c-mcr")
    names = safetensors.torch.load_file(tmp_path / "two" / "connector.safetensors")
    assert "heads.clap.linear1.weight" in names
    assert not any(name.startswith("heads.clip") for name in names)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["format"] == "cmcr-connector"
    assert config["spaces"]["clap"]["projector"]["kind"] == "mlp"


def test_loading_needs_torch_safetensors_and_numpy_alone(tmp_path: Path) -> None:
    make().save(tmp_path)
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"h5py", "pydantic", "open_clip", "laion_clap", "faiss", "matplotlib", "PIL", "typer",
                                   "rich", "webdataset", "torchvision", "tensorboard", "soundfile", "soxr"}}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import numpy as np
from cmcr import Connector
c = Connector.load({str(tmp_path)!r})
print(c.project(np.ones((2, 5)), space="clap").shape)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.strip() == "(2, 6)", run.stderr


def test_wrong_requests_say_what_there_is() -> None:
    connector = make()
    with pytest.raises(ConnectorError, match=r"no space 'ulip'; it has clap \(audio/text, 5-d\), clip"):
        connector.project(np.ones((2, 5)), space="ulip")
    with pytest.raises(ConnectorError, match=r"'clap' has 5 dimensions.*\(2, 6\)"):
        connector.project(np.ones((2, 6)), space="clap")
    with pytest.raises(ConnectorError, match="1 of 3 vectors are zero or not finite, the first is row 1"):
        connector.project(np.array([[1.0] * 5, [0.0] * 5, [1.0] * 5]), space="clap")
    with pytest.raises(ConnectorError, match="the first is row 2"):
        connector.project(np.array([[1.0] * 5, [1.0] * 5, [np.nan] * 5]), space="clap", batch_size=1)


def test_a_cache_finds_its_head_by_space_id_then_by_a_declared_name() -> None:
    connector = make()

    def of(space_id: str, name: str) -> str:
        return connector.space_of(SimpleNamespace(space_id=space_id, space_name=name))

    assert of("id-clap", "other name") == "clap"
    assert of("declared:clap", "clap") == "clap"
    with pytest.raises(ConnectorError, match="same name, other weights"):
        of("id-of-another-clap", "clap")
    with pytest.raises(ConnectorError, match=r"no head for the space 'ulip'.*clap \(audio/text, 5-d\)"):
        of("id-ulip", "ulip")


def test_modality_picks_the_space_unless_both_have_it() -> None:
    connector = make()
    assert connector.space_for("audio") == "clap"
    assert connector.space_for("text", "clip") == "clip"
    with pytest.raises(ConnectorError, match="2 spaces of the connector have the modality 'text'"):
        connector.space_for("text")
    with pytest.raises(ConnectorError, match="no space of the connector has the modality 'pointcloud'"):
        connector.space_for("pointcloud")


def test_raw_inputs_go_through_the_recorded_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def encode(encoder: str, modality: str, inputs: Any, *, space_id: str, device: str) -> np.ndarray:
        asked.append((encoder, modality, list(inputs), space_id, device))
        return np.ones((len(inputs), 5), np.float32)

    monkeypatch.setattr(hooks, "_resolvers", [lambda: encode])
    connector = make()
    assert connector.embed(audio="x.wav").shape == (1, 6)
    assert connector.embed(text=["a", "b"], space="clap").shape == (2, 6)
    assert asked == [("fam:a", "audio", ["x.wav"], "id-clap", "cpu"), ("fam:t", "text", ["a", "b"], "id-clap", "cpu")]
    with pytest.raises(ConnectorError, match=r"no text encoder for the space 'clip'.*image: fam:i"):
        connector.embed(text="a", space="clip")
    with pytest.raises(ConnectorError, match="exactly one of"):
        connector.embed(audio="x.wav", image="y.png")


def test_importing_cmcr_registers_an_encoder_of_raw_inputs() -> None:
    import cmcr  # noqa: F401

    assert callable(hooks.input_encoder())


def damage_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        table = config
        for parent in parents:
            table = table[parent]
        table[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "cmcr-cache"}, "lacks"),
        ({"version": 2}, "format version 2, this cmcr reads version 1"),
        ({"version": None}, "format version None"),
        ({"spaces": {}}, "describes no spaces"),
        ({"spaces": [1]}, "describes no spaces"),
        ({"spaces": {"clap": 3}}, "describes no spaces"),
        ({"spaces": {"../evil": {"projector": {"kind": "identity", "dim_in": 5, "dim_out": 5}}}}, "cannot be the name"),
        ({"spaces__clap__projector": "mlp"}, "must have kind"),
        ({"spaces__clap__projector__dim_in": 10**9}, r"tensor heads.clap.linear1.weight is .*\(31, 5\)"),
        ({"spaces__clap__projector__kind": "identity"}, "without a matrix"),
        ({"spaces__clip__projector__dim_in": 7, "spaces__clip__projector__dim_out": 7}, "different dimensions"),
        ({"spaces__clip__projector": {"kind": "affine", "dim_in": 6, "dim_out": 6}}, "missing: heads.clip.weight"),
        ({"spaces__clap__encoders": ["a"]}, "not an object of texts"),
        ({"spaces__clap__modalities": "text"}, "not a list"),
        ({"spaces__clap__id": 5}, "not a text"),
        ({"made_from": 5}, "not an object"),
        ({"weights": {"blake2b": "0" * 32}}, "not the file that config.json describes"),
    ],
)
def test_a_config_that_is_hostile_or_damaged_is_refused_in_words(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make().save(tmp_path)
    damage_config(tmp_path, **changes)
    with pytest.raises(ConnectorError, match=message):
        Connector.load(tmp_path)


def test_files_that_are_missing_or_not_what_they_should_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match=r"config\.json is missing"):
        Connector.load(tmp_path / "nowhere")
    make().save(tmp_path)
    weights = (tmp_path / "connector.safetensors").read_bytes()
    (tmp_path / "connector.safetensors").write_bytes(weights[:-8])
    with pytest.raises(ConnectorError, match="a save was interrupted"):
        Connector.load(tmp_path)
    (tmp_path / "connector.safetensors").unlink()
    with pytest.raises(ConnectorError, match=r"connector\.safetensors is missing"):
        Connector.load(tmp_path)
    for text in ("{", "[]", "[" * 100_000, "\udcff"):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ConnectorError, match=r"config\.json is not"):
            Connector.load(tmp_path)


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights by others, with a config that vouches for them."""
    from cmcr.trainer.connector_folder import _digest

    data = safetensors.torch.save(tensors)
    (folder / "connector.safetensors").write_bytes(data)
    damage_config(folder, weights={"file": "connector.safetensors", "blake2b": _digest(data)})


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    make().save(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "connector.safetensors")
    rewrite(tmp_path, {**tensors, "heads.clap.extra": torch.zeros(1)})
    with pytest.raises(ConnectorError, match=r"not known: heads\.clap\.extra"):
        Connector.load(tmp_path)
    rewrite(tmp_path, {**tensors, "heads.clap.linear2.weight": tensors["heads.clap.linear2.weight"].half()})
    with pytest.raises(ConnectorError, match="float16"):
        Connector.load(tmp_path)
    rewrite(tmp_path, {**tensors, "heads.clap.linear2.weight": tensors["heads.clap.linear2.weight"] * np.nan})
    with pytest.raises(ConnectorError, match="not finite"):
        Connector.load(tmp_path)


def test_heads_and_descriptions_must_agree() -> None:
    head = build_projector(ProjectorSpec("identity", 6, 6))
    with pytest.raises(ConnectorError, match="needs a head for the space 'clip'; heads: clap"):
        Connector({"clap": head}, ConnectorInfo({"clap": SpaceInfo("y"), "clip": SpaceInfo("x")}, "identity"))
    with pytest.raises(ConnectorError, match="the head 'clap' has no description; described: clip"):
        Connector({"clap": head, "clip": head}, ConnectorInfo({"clip": SpaceInfo("x")}, "identity"))
    with pytest.raises(ConnectorError, match="needs a head; heads: none"):
        Connector({}, ConnectorInfo({}, "identity"))
    with pytest.raises(ConnectorError, match="cannot be the name of a space"):
        Connector({"a.b": head}, ConnectorInfo({"a.b": SpaceInfo("x")}, "identity")).save("unused")
