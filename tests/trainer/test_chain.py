"""Chains: two connectors that keep the same space become one, and anything else is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.cache.errors import ConnectorError
from cmcr.trainer.chain import chain_folders
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.made_folder import write_made
from cmcr.trainer.projectors import ProjectorSpec, build_projector


def leaf(
    name: str,
    modality: str,
    *,
    dim: int = 5,
    base: str = "clip",
    base_id: str = "id-clip",
    keep: bool = True,
    out: int = 6,
) -> Connector:
    """A connector of a space with an mlp head into a base space that it keeps."""
    torch.manual_seed(dim)
    kept = ProjectorSpec("identity", out, out) if keep else ProjectorSpec("affine", out, out)
    heads = {name: build_projector(ProjectorSpec("mlp", dim, out, hidden=8)), base: build_projector(kept)}
    spaces = {
        name: SpaceInfo(f"id-{name}", (modality,), {modality: f"fam:{name}"}, {modality: f"fp-{name}"}),
        base: SpaceInfo(base_id, ("text",), {"text": "fam:clip"}),
    }
    info = ConnectorInfo(spaces, "ex-mcr", {"seed": dim}, {"torch": f"2.{dim}"}, {f"fam:{name}": "not stated"})
    return Connector(heads, info)


def rows(dim: int, count: int = 7) -> np.ndarray:
    return np.random.default_rng(dim).standard_normal((count, dim)).astype(np.float32)


def test_a_chain_projects_as_its_parts_do_and_compares_their_outer_spaces() -> None:
    audio, shapes = leaf("clap", "audio", dim=5), leaf("ulip", "pointcloud", dim=4)
    chained = Connector.chain(audio, shapes)
    assert chained.spaces == ("clap", "clip", "ulip")
    assert chained.kept == ("clip",)
    assert chained.dim == 6
    for name, part, dim in (("clap", audio, 5), ("ulip", shapes, 4), ("clip", audio, 6)):
        np.testing.assert_array_equal(chained.project(rows(dim), name), part.project(rows(dim), name))
    cosines = chained.similarity(rows(5), rows(4, 3), ("clap", "ulip"))
    np.testing.assert_allclose(cosines, audio.project(rows(5), "clap") @ shapes.project(rows(4, 3), "ulip").T)
    assert chained.space_for("pointcloud") == "ulip"


def test_a_chain_is_saved_and_loaded_like_any_connector_and_says_where_it_is_from(tmp_path: Path) -> None:
    for name, connector in (("a", leaf("clap", "audio", dim=5)), ("b", leaf("ulip", "pointcloud", dim=4))):
        connector.save(tmp_path / name)
    chained = chain_folders([tmp_path / "a", tmp_path / "b"])
    folder = write_made(chained, tmp_path / "chain")
    loaded = Connector.load(folder)
    loaded.save(tmp_path / "again")
    for name in ("config.json", "connector.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    np.testing.assert_array_equal(loaded.project(rows(4), "ulip"), chained.project(rows(4), "ulip"))
    assert loaded.info.method == "chain"
    assert [part["made_from"] for part in loaded.info.made_from["chain"]] == [{"seed": 5}, {"seed": 4}]
    assert loaded.info.versions == {"torch": "2.5 / 2.4"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Connector of clap, clip and ulip" in card
    assert "audio with pointcloud" in card
    assert "Kept as they are: `clip`" in card


def test_a_chain_of_three_has_four_spaces(tmp_path: Path) -> None:
    for name in ("clap", "ulip", "tactile"):
        leaf(name, name).save(tmp_path / name)
    folders = [tmp_path / name for name in ("clap", "ulip", "tactile")]
    assert chain_folders(folders).spaces == ("clap", "clip", "tactile", "ulip")
    with pytest.raises(ConnectorError, match="two connectors or more"):
        chain_folders(folders[:1])


def test_the_kept_space_is_matched_by_id_under_any_name_or_by_name_where_declared() -> None:
    chained = Connector.chain(leaf("clap", "audio"), leaf("ulip", "pointcloud", base="vision"))
    assert chained.spaces == ("clap", "clip", "ulip")
    chained = Connector.chain(leaf("clap", "audio", base_id="declared:clip"), leaf("ulip", "pointcloud"))
    assert chained.info.spaces["clip"].id == "id-clip"
    both = {"base_id": "declared:clip"}
    assert (
        Connector.chain(leaf("clap", "audio", **both), leaf("ulip", "x", **both))
        .info.spaces["clip"]
        .id.startswith("declared:")
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"base_id": "id-other-clip"}, "keep no space in common"),
        ({}, {"base": "vision", "base_id": "declared:vision"}, "keep no space in common"),
        ({"keep": False}, {}, "keep no space in common"),
        ({}, {"keep": False}, "keep no space in common"),
        ({}, {"out": 7}, "6 and of 7 dimensions"),
        ({}, {"name": "clap"}, "both connectors have a space 'clap'"),
    ],
)
def test_connectors_that_do_not_meet_are_refused_in_words(
    first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    one, two = (
        leaf(**{"name": "clap", "modality": "audio", **first}),
        leaf(**{"name": "ulip", "modality": "x", **second}),
    )
    with pytest.raises(ConnectorError, match=message) as raised:
        Connector.chain(one, two)
    assert raised.value.todo
    if not first.get("keep", True):
        assert "clap + clip keeps none: no head is the identity" in str(raised.value.where)
