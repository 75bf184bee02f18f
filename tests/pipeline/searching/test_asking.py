"""Mixes, vectors, filters and near-duplicates, against naive restatements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError
from cmcr.cache.reader import Cache
from cmcr.pipeline.search import search
from cmcr.pipeline.searcher import Searcher
from cmcr.pipeline.searching.choice import settings_of
from cmcr.pipeline.searching.duplicates import distinct_topk
from cmcr.pipeline.searching.filters import Condition, Filters, read_condition
from cmcr.pipeline.searching.mixes import Term, blend, read_mix, shown_mix
from cmcr.trainer.connector import Connector

MakeConnector = Callable[..., Connector]
MakeCache = Callable[..., Cache]


def ordered(gallery: Cache, connector: Connector, vector: np.ndarray) -> list[str]:
    """Keys of the whole gallery, best first, the naive way."""
    scores = connector.project(gallery.rows(np.arange(len(gallery))), "clip") @ (vector / np.linalg.norm(vector))
    return [gallery.keys()[row] for row in np.argsort(-scores, kind="stable")]


def found(result: Any) -> list[str]:
    return [hit.key for hit in result[0]]


def test_a_mix_reads_kinds_weights_signs_and_spaces() -> None:
    assert read_mix("audio:rain.wav*1 + text:at night*0.5") == (
        Term("audio", "rain.wav", 1.0),
        Term("text", "at night", 0.5),
    )
    assert read_mix("text@clip:a dog - text:people * 2 + key:a/b:1") == (
        Term("text", "a dog", 1.0, "clip"),
        Term("text", "people", -2.0),
        Term("key", "a/b:1", 1.0),
    )
    assert read_mix("text:salt + pepper - well-done") == (Term("text", "salt + pepper - well-done", 1.0),)
    terms = read_mix("audio:sounds/rain.wav + text@clip:at night*0.5 - key:a/b:1*2")
    assert shown_mix(terms) == "rain.wav + 0.5 × “at night” − 2 × a/b:1"
    for bad, message in (("rain", "begin with a kind"), ("text: *2", "no value"), ("- text:a", "only turns away")):
        with pytest.raises(CmcrError, match=message):
            read_mix(bad)
    with pytest.raises(CmcrError, match="cancel"):
        blend(np.eye(2, dtype=np.float32)[[0, 0]], [1.0, -1.0], "text:a - text:a")


def test_a_mix_searches_with_the_weighted_sum(make_connector: MakeConnector, make_cache: MakeCache) -> None:
    connector, gallery = make_connector(), make_cache("images", 37)
    sounds = make_cache("sounds", 5, space="clap")
    rows = connector.project(sounds.rows([3, 1]), "clap")
    result = search(connector, gallery, query=sounds, mix="key:sounds/00003*2 - key:sounds/00001*0.5", k=37)
    assert found(result) == ordered(gallery, connector, 2 * rows[0] - 0.5 * rows[1])
    assert (result.queries[0].label, result.queries[0].modality) == ("key:sounds/00003*2 - key:sounds/00001*0.5", "mix")
    own = search(connector, gallery, mix="key:images/00004", k=1)  # without a query cache: rows of the gallery
    assert found(own) == ["images/00004"]


def test_raw_terms_of_a_mix_enter_the_space_of_their_modality(
    make_connector: MakeConnector,
    make_cache: MakeCache,
    toy_encoder: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from cmcr.pipeline import embed

    names = {"clap": {"text": "toy:clap/text", "audio": "toy:clap/audio"}, "clip": {"text": "toy:clip/text"}}
    connector, gallery = make_connector(encoders=names), make_cache("images", 21)
    monkeypatch.setattr(
        embed, "load_tower", lambda name, modality, device: toy_encoder(modality, name.split(":")[1].split("/")[0])
    )
    (tmp_path / "rain.wav").write_bytes(b"rain")
    sound = connector.project(toy_encoder("audio", "clap").encode([b"rain"]), "clap")[0]
    words = connector.project(toy_encoder("text", "clip").encode([b"at night"]), "clip")[0]
    mix = f"audio:{tmp_path / 'rain.wav'} + text:at night*0.5"
    expected = ordered(gallery, connector, sound + 0.5 * words)
    assert found(search(connector, gallery, mix=mix, space="clip", k=21)) == expected
    assert found(search(connector, gallery, mix=mix.replace("text", "text@clip"), k=21)) == expected
    several = search(connector, gallery, text=["at night"], image=None, mix=[mix, mix], space="clip", k=2)
    assert [query.modality for query in several.queries] == ["text", "mix", "mix"]


def test_vectors_ask_in_the_shared_space_or_through_a_head(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, gallery = make_connector(), make_cache("images", 23)
    rng = np.random.default_rng(0)
    shared, raw = rng.normal(size=6), rng.normal(size=(2, 8)).astype(np.float32)
    assert found(search(connector, gallery, vectors=shared, k=23)) == ordered(gallery, connector, shared)
    np.save(tmp_path / "v.npy", raw)
    result = search(connector, gallery, vectors=tmp_path / "v.npy", space="clap", k=23)
    assert found(result) == ordered(gallery, connector, connector.project(raw[:1], "clap")[0])
    assert [query.label for query in result.queries] == ["v.npy 0", "v.npy 1"]
    for bad in (raw, np.zeros(6), np.full(6, np.nan), "nowhere.npy"):
        with pytest.raises(CmcrError, match="vectors"):
            search(connector, gallery, vectors=bad)


@pytest.fixture
def described(make_cache: MakeCache) -> Cache:
    """A gallery of 45 rows with captions and records, in shards that do not divide."""
    return make_cache(
        "images",
        45,
        shards=(20, 0, 25),
        keys=[f"{'day' if n % 3 else 'night'}/{n:03d}" for n in range(45)],
        captions=[f"A Dog number {n}" if n % 2 else None for n in range(45)],
        meta=[{"year": 2000 + n, "by": {"name": "Ann" if n % 5 else "Bob"}, "tags": ["x", "y"]} for n in range(45)],
    )


def test_filters_restrict_the_answers_and_stay_exact(described: Cache, make_connector: MakeConnector) -> None:
    connector = make_connector()
    vector = np.random.default_rng(2).normal(size=6)
    every = ordered(described, connector, vector)
    number = {key: int(key.split("/")[1]) for key in every}
    cases: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
        ({"key_pattern": "night/*"}, lambda n: n % 3 == 0),
        ({"caption_contains": "dog NUMBER"}, lambda n: n % 2 == 1),
        ({"where": "year >= 2030"}, lambda n: n >= 30),
        ({"where": ["year<2030", "by.name = Bob"]}, lambda n: n < 30 and n % 5 == 0),
        ({"where": "tags ~ Y", "key_pattern": "day/0?1"}, lambda n: n % 3 > 0 and n % 10 == 1),
        ({"where": "by.name != Bob", "caption_contains": "dog"}, lambda n: n % 5 > 0 and n % 2 == 1),
    ]
    for asked, keep in cases:
        result = search(connector, described, vectors=vector, k=7, **asked)
        assert found(result) == [key for key in every if keep(number[key])][:7], asked
        assert "of 45 rows fulfil" in result.notes[0]


def test_conditions_compare_numbers_as_numbers_and_lack_nothing() -> None:
    record = {"n": 9, "s": "9", "flag": True, "nested": {"a": [1, 2]}}
    for text, holds in (
        ("n < 10", True), ("s < 10", False), ("n = 9.0", True), ("s=9", True), ("flag = true", True), ("n != x", True),
        ("n = x", False), ("nested.a ~ 2", True), ("nested.b = 1", False), ("missing != 1", False), ("n.x = 1", False),
    ):  # fmt: skip
        assert read_condition(text).holds(record) is holds, text
    assert not read_condition("n = 1").holds(None)
    with pytest.raises(CmcrError, match="FIELD OPERATOR VALUE"):
        read_condition("year 2020")


def test_filters_that_nothing_fulfils_say_so(
    described: Cache, make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    with pytest.raises(CmcrError, match="No row of the gallery fulfils key dusk"):
        Filters(key_pattern="dusk/*").rows(described)
    with pytest.raises(CmcrError, match="no meta to filter by"):
        Filters(where=("a = 1",)).rows(make_cache("bare", 3))


def test_a_field_that_no_row_has_is_named_with_those_that_are_there(described: Cache, make_cache: MakeCache) -> None:
    for condition, field in (("yaer >= 2000", "yaer"), ("by.nom = Ann", "by.nom"), ("by.name.x = Ann", "by.name.x")):
        with pytest.raises(CmcrError, match=f"No row of the gallery has the field '{field}'") as error:
            Filters(where=(condition, "year > 0")).rows(described)
        assert "its fields: by.name, tags, year" in str(error.value)
    with pytest.raises(CmcrError, match="No row of the gallery fulfils year > 9999"):  # the field is there
        Filters(where=("year > 9999",)).rows(described)


def test_an_index_is_measured_on_a_cache_of_ones_own_queries_within_a_budget(
    make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    pytest.importorskip("faiss")
    connector, gallery = make_connector(), make_cache("images", 400)
    sounds = make_cache("sounds", 30, space="clap")
    result = search(connector, gallery, query=sounds, index="ivf", held_out=sounds, k=3)
    assert "ivf of 400 rows" in result.notes[0]
    searcher = Searcher(connector, gallery, index="ivf")
    assert searcher.index is not None
    assert searcher.index.record.given
    from cmcr.pipeline.searching import held_out
    from cmcr.pipeline.searching.record import Place

    kept = held_out.read(Place(searcher.view, "ivf").folder / searcher.index.record.held_out)
    np.testing.assert_array_equal(kept.queries, connector.project(sounds.rows(np.arange(30)), "clap"))
    with pytest.raises(CmcrError, match="memory budget cannot be read"):
        search(connector, gallery, query=sounds, memory_budget="much")
    assert settings_of("auto", "4GB").memory_budget == 4 * 10**9
    empty = make_cache("none", np.empty((0, 8), np.float32), space="clap")
    with pytest.raises(CmcrError, match="query cache has no rows"):
        search(connector, gallery, query=sounds, index="ivf", held_out=empty)


def naive_distinct(rows: np.ndarray, query: np.ndarray, k: int, cosine: float) -> list[int]:
    kept: list[int] = []
    for row in np.argsort(-(rows @ query), kind="stable").tolist():
        if all(float(rows[row] @ rows[other]) < cosine - 1e-6 for other in kept):
            kept.append(row)
    return kept[:k]


@pytest.mark.parametrize("cosine", [1.0, 0.95, 0.5])
def test_distinct_answers_equal_the_naive_greedy_ones(make_cache: MakeCache, cosine: float) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(30, 12))
    rows = base[rng.integers(0, 30, 211)] + 0.1 * rng.normal(size=(211, 12)) * rng.integers(0, 2, (211, 1))
    gallery = make_cache("images", rows.astype(np.float32), shards=(100, 111), manifest={"dtype": "float32"})
    unit = gallery.read(0, 211)
    searcher = Searcher(None, gallery)
    scores, found_rows = distinct_topk(searcher, unit[:9], 13, cosine)
    for query, (line, numbers) in enumerate(zip(scores, found_rows, strict=True)):
        assert numbers.tolist() == naive_distinct(unit, unit[query], 13, cosine)
        assert (np.diff(line) <= 0).all()
    assert [hit.rank for hit in searcher.hits(scores, found_rows)[0]][:3] == [1, 2, 3]


def test_nothing_that_was_asked_is_left_aside_without_a_word(
    make_connector: MakeConnector, make_cache: MakeCache
) -> None:
    connector, gallery = make_connector(), make_cache("images", 40)
    sounds = make_cache("sounds", 30, space="clap")
    key = sounds.keys(np.arange(1))[0]
    for given, words in (
        ({"query": sounds, "held_out": sounds}, "none is.*index kept"),
        ({"query": sounds, "held_out": sounds, "index": "exact"}, "none is.*index exact"),
        ({"query": sounds, "memory_budget": "1GB"}, "auto chooses.*index kept"),
        ({"query": sounds, "key": key, "mix": f"key:{key}"}, "does not ask the rows of a query cache"),
        ({"query": sounds, "mix": "text:a dog"}, "does not ask the rows of a query cache"),
        ({"query": sounds, "no_duplicates": 0.0}, "near-duplicate|cosine"),
    ):
        with pytest.raises(CmcrError, match=f"(?s){words}"):
            search(connector, gallery, **given)  # type: ignore[arg-type]


def test_vectors_that_are_no_numbers_are_refused(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    connector, gallery = make_connector(), make_cache("images", 40)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.savez(tmp_path / "several.npz", a=np.ones(8), b=np.ones(8))
    for name in ("empty.npy", "words.npy", "several.npz"):
        with pytest.raises(CmcrError, match="vectors cannot be read"):
            search(connector, gallery, vectors=tmp_path / name)


def test_whole_numbers_of_many_digits_are_compared_exactly() -> None:
    record = {"id": 9007199254740993}
    assert Condition("id", "=", "9007199254740993").holds(record)
    assert not Condition("id", "=", "9007199254740992").holds(record)
    assert Condition("id", ">", "9007199254740992").holds(record)
    assert Condition("id", "<", "9.1e15").holds(record)


def test_notes_on_the_index_are_said_beside_csv_and_json_lines(
    make_connector: MakeConnector, make_cache: MakeCache, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    from cmcr.cli import app
    from typer.testing import CliRunner

    make_connector().save(tmp_path / "connector")
    gallery, sounds = make_cache("images", 400), make_cache("sounds", 3, space="clap")
    places = ["--connector", tmp_path / "connector", "--gallery", gallery.path, "--query", sounds.path]
    for shape in ("csv", "jsonl"):
        done = CliRunner().invoke(app, ["search", *map(str, places), "--index", "ivf", "--format", shape])
        assert done.exit_code == 0, done.output
        assert "ivf of 400 rows" in done.stderr
        assert "ivf of 400 rows" not in done.stdout
