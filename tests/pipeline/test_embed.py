"""Raw inputs into the shared space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError, ConnectorError, DeviceError, EncoderError
from cmcr.pipeline.embed import embed, encode_inputs, load_tower
from cmcr.trainer.connector import Connector

MakeConnector = Callable[..., Connector]

TOY_FILE = """
import numpy as np

class Space:
    id, name = "id-clap", "clap"

class Letters:
    name, modality, space, dim = "letters", "text", Space, 8

    def fingerprint(self):
        return "letters-1"

    def decode(self, item):
        return item.data

    def encode(self, batch):
        rows = np.array([[text.count(letter) + 0.1 for letter in "abcdefgh"] for text in batch], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
"""


def test_embedded_texts_are_the_head_of_what_the_encoder_gives(make_connector: MakeConnector, toy_encoder: Any) -> None:
    connector, encoder = make_connector(), toy_encoder("text", "clap")
    texts = [f"text number {n}" for n in range(70)]  # more than two batches
    expected = connector.project(encoder.encode([text.encode() for text in texts]), "clap")
    np.testing.assert_allclose(embed(connector, text=texts, encoder=encoder), expected, atol=1e-6)
    assert embed(connector, text="one", encoder=encoder).shape == (1, 6)


def test_files_and_their_bytes_embed_alike(toy_encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"sound")
    encoder = toy_encoder("audio", "clap")
    by_path = encode_inputs(encoder, "audio", [tmp_path / "x.wav"])
    assert (by_path == encode_inputs(encoder, "audio", [b"sound"])).all()


def test_the_connector_loads_the_encoder_it_records(make_connector: MakeConnector, tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(TOY_FILE, encoding="utf-8")
    name = f"{tmp_path / 'letters.py'}:Letters"
    connector = make_connector(encoders={"clap": {"text": name}})
    rows = embed(connector, text=["aab", "hh"], space="clap")
    np.testing.assert_allclose(rows, connector.project(encode_inputs(name, "text", ["aab", "hh"]), "clap"), atol=1e-6)
    assert load_tower(name, "text", "cpu") is load_tower(name, "text", "cpu")


def test_connector_embed_and_embed_agree(make_connector: MakeConnector, tmp_path: Path) -> None:
    import cmcr

    (tmp_path / "letters.py").write_text(TOY_FILE, encoding="utf-8")
    connector = make_connector(encoders={"clap": {"text": f"{tmp_path / 'letters.py'}:Letters"}})
    assert cmcr.CmcrError is CmcrError
    rows = connector.embed(text="abc", space="clap")
    np.testing.assert_allclose(rows, embed(connector, text="abc", space="clap"), atol=1e-6)


def test_the_encoders_own_space_decides_the_head(make_connector: MakeConnector, toy_encoder: Any) -> None:
    connector = make_connector()
    for space in ("clap", "clip"):
        encoder = toy_encoder("text", space)
        expected = connector.project(encoder.encode([b"hello"]), space)
        np.testing.assert_allclose(embed(connector, text="hello", encoder=encoder), expected, atol=1e-6)


def test_a_recorded_file_that_is_not_here_is_asked_for_by_flag(
    make_connector: MakeConnector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = make_connector(encoders={"clap": {"text": "letters.py:Letters"}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match=r"there is no file letters\.py(.|\n)*--encoder PATH/letters\.py:Letters"):
        embed(connector, text="abc", space="clap")
    (tmp_path / "letters.py").write_text(TOY_FILE, encoding="utf-8")
    assert embed(connector, text="abc", space="clap").shape == (1, 6)


def test_a_space_without_an_encoder_asks_for_one(make_connector: MakeConnector) -> None:
    with pytest.raises(ConnectorError, match=r"records no audio encoder(.|\n)*--encoder"):
        embed(make_connector(encoders={"clap": {"text": "sandbox:clap"}}), audio="x.wav")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return item.data", "return item.data[99]"), "decoding the query raised IndexError"),
        (("rows = np.array", "rows = np.arrey"), "encoding the query raised AttributeError"),
        (("rows / np", "rows[:, :3] / np"), r"vectors of the shape \(1, 3\) for 1 inputs"),
    ],
)
def test_what_an_encoder_of_ones_own_raises_is_named(
    make_connector: MakeConnector, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "letters.py").write_text(TOY_FILE.replace(*change), encoding="utf-8")
    with pytest.raises(EncoderError, match=message) as caught:
        embed(make_connector(), text="abc", encoder=f"{tmp_path}/letters.py:Letters")
    assert str(caught.value.where).startswith("letters.py:Letters")


def test_a_device_that_is_none_is_named(make_connector: MakeConnector) -> None:
    with pytest.raises(DeviceError, match="no device called 'gpu'"):
        embed(make_connector(), text="abc", encoder="sandbox:clap", device="gpu")


def test_bad_inputs_name_the_input(make_connector: MakeConnector, toy_encoder: Any, tmp_path: Path) -> None:
    connector = make_connector()
    with pytest.raises(CmcrError) as caught:
        embed(connector, text=["fine", " "], encoder=toy_encoder("text", "clap"))
    assert caught.value.where == "query 2"
    with pytest.raises(CmcrError) as caught:
        embed(connector, audio=tmp_path / "gone.wav", encoder=toy_encoder("audio", "clap"))
    assert "gone.wav" in str(caught.value)
    with pytest.raises(EncoderError, match="no modality 'smell'"):
        encode_inputs(toy_encoder("audio", "clap"), "smell", [b""])
