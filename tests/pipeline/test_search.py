"""Search: raw and cached queries, both kinds of gallery, and what a reader gets when the question makes no sense."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError, ConnectorError, EncoderError, ItemError
from cmcr.cache.reader import Cache
from cmcr.pipeline.project import project
from cmcr.pipeline.search import search
from cmcr.trainer.connector import Connector
from PIL import Image
from rich.console import Console

MakeConnector = Callable[..., Connector]
MakeCache = Callable[..., Cache]


def best(connector: Connector, query: np.ndarray, space: str, gallery: Cache, k: int) -> list[str]:
    """Keys of the naive way: project everything, sort."""
    scores = connector.project(gallery.rows(np.arange(len(gallery))), "clip") @ connector.project(query, space)[0]
    return [gallery.keys()[row] for row in np.argsort(-scores, kind="stable")[:k]]


def keys_of(hits: Any) -> list[str]:
    return [hit.key for hit in hits]


def test_text_finds_the_nearest_images_in_both_kinds_of_gallery(
    make_connector: MakeConnector, make_cache: MakeCache, toy_encoder: Any, tmp_path: Path
) -> None:
    connector, gallery = make_connector(), make_cache("images", 53)
    encoder = toy_encoder("text", "clap")
    expected = best(connector, encoder.encode([b"a dog"]), "clap", gallery, 7)
    result = search(connector, gallery, text="a dog", encoder=encoder, k=7)
    assert keys_of(result[0]) == expected
    assert (result.queries[0].label, result.queries[0].modality, result.modality) == ("a dog", "text", "image")
    project(connector, gallery, tmp_path / "shared", dtype="float32")
    connector.save(tmp_path / "connector")
    again = search(tmp_path / "connector", tmp_path / "shared", text=["a dog", "a cat"], encoder=encoder, k=7)
    assert len(again) == 2
    assert keys_of(again[0]) == expected


def test_a_query_cache_asks_with_all_its_rows_or_with_those_of_some_keys(
    make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    connector, gallery = make_connector(), make_cache("images", 40)
    sounds = make_cache("sounds", 6, space="clap", captions=[f"sound {n}" for n in range(6)])
    result = search(connector, gallery, query=sounds, k=3)
    assert len(result) == 6
    for n, hits in enumerate(result):
        assert keys_of(hits) == best(connector, sounds.rows([n]), "clap", gallery, 3)
    picked = search(connector, gallery, query=sounds, key=["sounds/00004", "sounds/00001"], k=3)
    assert [keys_of(hits) for hits in picked] == [keys_of(result[4]), keys_of(result[1])]
    assert [query.key for query in picked.queries] == ["sounds/00004", "sounds/00001"]
    assert keys_of(search(connector, gallery, query=sounds.path, key="sounds/00002", k=3)[0]) == keys_of(result[2])


def test_a_gallery_in_the_query_space_finds_itself(make_connector: MakeConnector, make_cache: MakeCache) -> None:
    gallery = make_cache("images", 20)
    result = search(make_connector(), gallery, query=gallery, k=1)
    assert [hits[0].key for hits in result] == gallery.keys()
    assert all(hits[0].score == pytest.approx(1) for hits in result)


def test_a_projected_query_cache_asks_like_the_raw_one(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, gallery, sounds = make_connector(), make_cache("images", 20), make_cache("sounds", 5, space="clap")
    project(connector, sounds, tmp_path / "shared", dtype="float32")
    raw, shared = (search(connector, gallery, query=query, k=4) for query in (sounds, tmp_path / "shared"))
    assert [keys_of(hits) for hits in raw] == [keys_of(hits) for hits in shared]


def test_the_recorded_encoder_is_used_and_the_space_must_be_named_where_two_have_the_modality(
    make_connector: MakeConnector, make_cache: MakeCache, toy_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmcr.pipeline import embed

    names = {space: {"text": f"toy:{space}/text"} for space in ("clap", "clip")}
    connector, gallery = make_connector(encoders=names), make_cache("images", 30)
    asked: list[str] = []

    def load(name: str, modality: str, device: str) -> Any:
        asked.append(name)
        return toy_encoder(modality, name.split(":")[1].split("/")[0])

    monkeypatch.setattr(embed, "load_tower", load)
    with pytest.raises(ConnectorError) as caught:
        search(connector, gallery, text="a dog")
    assert all(part in str(caught.value) for part in ("clap", "clip", "--space"))
    for space in ("clap", "clip"):
        vector = toy_encoder("text", space).encode([b"a dog"])
        result = search(connector, gallery, text="a dog", space=space, k=5)
        assert keys_of(result[0]) == best(connector, vector, space, gallery, 5)
    assert asked == ["toy:clap/text", "toy:clip/text"]


def test_without_a_recorded_encoder_the_error_names_the_flag(
    make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    with pytest.raises(ConnectorError, match="records no audio encoder") as caught:
        search(make_connector(), make_cache("images", 5), audio="x.wav")
    assert "--encoder" in str(caught.value)


def test_odd_questions_get_one_clear_line(
    make_connector: MakeConnector, make_cache: MakeCache, toy_encoder: Any, tmp_path: Path
) -> None:
    connector, gallery = make_connector(), make_cache("images", 5)
    text, image = toy_encoder("text", "clap"), toy_encoder("image", "clip")
    (tmp_path / "no-picture.jpg").write_bytes(b"these are no pixels")
    cases: list[tuple[type[CmcrError], str, dict[str, Any]]] = [
        (CmcrError, "none was given", {}),
        (CmcrError, "no input called 'txt'", {"txt": "a"}),
        (CmcrError, "is empty", {"text": "  ", "encoder": text}),
        (CmcrError, "list of text queries is empty", {"text": [], "encoder": text}),
        (CmcrError, "does not exist", {"image": tmp_path / "nowhere.jpg", "encoder": image}),
        (CmcrError, "this is a folder", {"image": tmp_path, "encoder": image}),
        (ItemError, "cannot be decoded", {"image": tmp_path / "no-picture.jpg", "encoder": image}),
        (EncoderError, "takes text, not image", {"image": tmp_path / "no-picture.jpg", "encoder": text}),
        (ConnectorError, "pointcloud", {"points": "x.npy"}),
        (CacheError, "query cache has no rows", {"query": make_cache("none", np.empty((0, 12), np.float32))}),
        (CacheError, "no row with the key 'x'", {"query": gallery, "key": "x"}),
        (CmcrError, "key picks rows of a query cache", {"text": "a", "key": "x"}),
        (CmcrError, "not both", {"text": "a", "query": gallery}),
        (CmcrError, "in the space 'clip', not in 'clap'", {"query": gallery, "space": "clap"}),
        (ConnectorError, "no space 'nope'", {"text": "a", "space": "nope"}),
        (CmcrError, "no device called 'abacus'", {"query": gallery, "device": "abacus"}),
    ]
    for kind, message, asked in cases:
        with pytest.raises(kind) as caught:
            search(connector, gallery, **asked)
        assert message in str(caught.value), asked
        assert "\n" not in caught.value.what, asked


def test_an_encoder_of_another_space_is_refused(
    make_connector: MakeConnector, make_cache: MakeCache, toy_encoder: Any
) -> None:
    encoder = toy_encoder("text", "clap")
    with pytest.raises(EncoderError, match="another space"):
        search(make_connector(), make_cache("images", 5), text="a", space="clip", encoder=encoder)


def test_k_beyond_the_gallery_gives_all_rows_and_says_so(make_connector: MakeConnector, make_cache: MakeCache) -> None:
    gallery = make_cache("images", 3)
    result = search(make_connector(), gallery, query=gallery, k=10)
    assert [len(hits) for hits in result] == [3, 3, 3]
    assert result.notes == ("the gallery has 3 rows, fewer than the 10 hits asked for",)
    assert search(make_connector(), gallery, query=gallery, k=3).notes == ()


def test_hits_know_caption_source_and_original(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    from cmcr.cache.writer import CacheWriter

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a.png")
    gallery = make_cache("images", 2, captions=["one", None], sources=["a.png", "b.png"])
    with CacheWriter.open(gallery.path, gallery.manifest) as writer:
        writer.log_run({"roots": {"photos": str(tmp_path / "photos")}})
    hits = {hit.key: hit for hit in search(make_connector(), gallery, query=gallery, key="images/00000")[0]}
    first, second = hits["images/00000"], hits["images/00001"]
    assert (first.caption, first.source, first.path) == ("one", "a.png", tmp_path / "photos" / "a.png")
    assert (second.caption, second.source, second.path) == (None, "b.png", None)


def test_table_and_json_show_every_hit_once(make_connector: MakeConnector, make_cache: MakeCache) -> None:
    gallery = make_cache("images", 9, captions=[f"[red]caption {n}" for n in range(9)])
    result = search(make_connector(), gallery, query=gallery, key=["images/00001", "images/00003"], k=2)
    record = json.loads(json.dumps(result.to_json()))
    assert [len(one["hits"]) for one in record["results"]] == [2, 2]
    assert record["results"][1]["query"]["key"] == "images/00003"
    assert record["results"][1]["hits"][0]["key"] == "images/00003"
    assert record["gallery"] == {"path": str(gallery.path), "modality": "image", "rows": 9}
    screen = io.StringIO()
    Console(file=screen, width=100).print(result.table())
    assert screen.getvalue().count("images/0000") == 6  # four hits and the two queries
    assert "[red]caption 1" in screen.getvalue()  # captions are text, not markup
