"""The sandbox world: determinism, the split, captions, and the corpora on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from cmcr.pipeline.sandbox import grammar, world
from cmcr.pipeline.sandbox.corpora import SandboxCorpora, SandboxSizes, draw_objects, write_corpora
from cmcr.pipeline.sandbox.render import image_bytes, render
from cmcr.pipeline.sandbox.shapes import POINTS, sample_cloud
from cmcr.pipeline.sandbox.synth import LENGTH, RATE, synthesise
from cmcr.pipeline.sandbox.world import COUNTS, KINDS, MATERIALS, Composition, World, compositions, is_heldout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SIZES = SandboxSizes(captions=60, images=17, sounds=13, clouds=9, evaluation=11, pairs=5)
any_composition = st.sampled_from(world.ALL_COMPOSITIONS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SandboxCorpora:
    return write_corpora(tmp_path_factory.mktemp("world"), 3, SIZES)


def folder_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@settings(max_examples=12, deadline=None)
@given(any_composition, st.integers(0, 10**6))
def test_same_seed_same_picture_sound_cloud_and_caption(composition: Composition, seed: int) -> None:
    for make in (
        lambda rng: image_bytes(render(composition, rng)),
        lambda rng: synthesise(composition, rng).tobytes(),
        lambda rng: sample_cloud(composition, rng).tobytes(),
        lambda rng: grammar.caption(composition, rng, split="heldout"),
    ):
        assert make(World(seed).rng("x", 1)) == make(World(seed).rng("x", 1))


def test_streams_of_a_world_and_seeds_are_independent() -> None:
    draws = {float(World(s).rng(*key).random()) for s in (0, 1) for key in (("a",), ("a", 1), ("a", "1"), ("b", 1))}
    assert len(draws) == 8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6000))
def test_heldout_compositions_never_appear_in_training_draws(seed: int, number: int) -> None:
    drawn = World(seed).draw(number, "train")
    assert len(drawn) == number
    assert not any(is_heldout(c) for c in drawn)


@given(any_composition)
def test_the_split_does_not_depend_on_the_colour(composition: Composition) -> None:
    other = Composition(composition.kind, composition.size, "red", composition.material, composition.count)
    assert is_heldout(composition) == is_heldout(other)


def test_both_splits_cover_every_attribute_value_and_share_no_sound() -> None:
    train, heldout = compositions("train"), compositions("heldout")
    assert len(train) + len(heldout) == len(world.ALL_COMPOSITIONS)
    assert not {c.audible for c in train} & {c.audible for c in heldout}
    for split in (train, heldout):
        assert {c.kind for c in split} == set(KINDS)
        assert {(c.kind, c.material) for c in split} == {(k, m) for k in KINDS for m in MATERIALS}
        assert {c.count for c in split} == set(COUNTS)


def test_distinct_objects_are_heldout_and_no_two_sound_alike() -> None:
    objects = World(4).draw_distinct(200)
    assert all(is_heldout(c) for c in objects)
    assert len({c.audible for c in objects}) == 200
    assert objects != World(5).draw_distinct(200)
    with pytest.raises(ValueError, match="audible compositions"):
        World(4).draw_distinct(10_000)


def test_the_colour_is_neither_audible_nor_tangible() -> None:
    red, blue = (Composition("bell", "large", colour, "metal", 2) for colour in ("red", "blue"))
    for make in (synthesise, sample_cloud):
        assert np.array_equal(make(red, World(0).rng("c")), make(blue, World(0).rng("c")))
    assert image_bytes(render(red, World(0).rng("c"))) != image_bytes(render(blue, World(0).rng("c")))


@settings(max_examples=25, deadline=None)
@given(any_composition, st.integers(0, 10**6))
def test_renderings_are_finite_and_of_their_sizes(composition: Composition, seed: int) -> None:
    sound = synthesise(composition, World(seed).rng("s"))
    cloud = sample_cloud(composition, World(seed).rng("p"))
    assert sound.shape == (LENGTH,)
    assert sound.dtype == np.float32
    assert 0.3 < float(np.abs(sound).max()) <= 1
    assert cloud.shape == (POINTS, 3)
    assert np.isfinite(cloud).all()
    assert render(composition, World(seed).rng("i")).getextrema() != ((0, 0),) * 3


def test_a_sound_sounds_as_often_as_there_are_toys() -> None:
    for count in COUNTS:
        sound = synthesise(Composition("drum", "medium", "red", "wood", count), World(1).rng("n", count))
        loud = np.sqrt(np.convolve(sound**2, np.ones(1600) / 1600, "same")) > 0.04
        assert int((np.diff(loud.astype(int), prepend=0) == 1).sum()) == count


def test_heldout_captions_use_only_heldout_templates() -> None:
    rng, composition = World(0).rng("t"), Composition("bell", "large", "red", "metal", 2)
    seen = {
        split: {
            grammar.caption(composition, rng, flavour=flavour, split=split)
            for flavour in grammar.FLAVOURS
            for _ in range(400)
        }
        for split in ("train", "heldout")
    }
    assert not seen["train"] & seen["heldout"]


def test_no_training_caption_has_a_heldout_synonym() -> None:
    rng = World(0).rng("t")
    tables = (grammar.SIZE_WORDS, grammar.COLOUR_WORDS, grammar.MATERIAL_WORDS)
    hidden = {word for table in tables for words in table.values() for word in words.heldout}
    used: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for composition in World(0).draw(3000, "train"):
        for split in used:
            text = grammar.caption(composition, rng, flavour="both", split=split)  # type: ignore[arg-type]
            used[split] |= set(text.split())
    assert hidden.isdisjoint(used["train"])
    assert hidden <= used["heldout"]


def test_corpora_of_one_seed_are_the_same_bytes_and_of_another_are_not(written: SandboxCorpora, tmp_path: Path) -> None:
    again = write_corpora(tmp_path / "again", 3, SIZES)
    other = write_corpora(tmp_path / "other", 4, SIZES)
    assert folder_digest(again.root) == folder_digest(written.root)
    assert folder_digest(other.root) != folder_digest(written.root)


def test_corpora_are_ordinary_files_with_the_same_stem_for_the_same_object(written: SandboxCorpora) -> None:
    import soundfile

    for texts, folders, number in (
        (written.eval_captions, (written.eval_images, written.eval_sounds, written.eval_clouds), SIZES.evaluation),
        (written.pair_captions, (written.pair_images, written.pair_sounds, written.pair_clouds), SIZES.pairs),
    ):
        keys = [json.loads(line)["key"] for line in texts.read_text().splitlines()]
        assert len(keys) == number
        for folder in folders:
            assert sorted(p.stem for p in folder.iterdir()) == keys
    assert len(written.captions.read_text().splitlines()) == SIZES.captions
    image = next(written.images.iterdir())
    assert Image.open(image).mode == "RGB"
    samples, rate = soundfile.read(next(written.sounds.iterdir()))
    assert (len(samples), rate) == (LENGTH, RATE)
    assert np.load(next(written.clouds.iterdir()), allow_pickle=False).shape == (POINTS, 3)


def test_truth_tells_every_object_in_the_order_of_its_keys(written: SandboxCorpora) -> None:
    truth = [json.loads(line) for line in written.truth.read_text().splitlines()]
    draw = draw_objects(3, SIZES)
    sounds = [record for record in truth if record["corpus"] == "sounds"]
    assert [Composition(*(r[n] for n in ("kind", "size", "colour", "material", "count"))) for r in sounds] == list(
        draw.sounds
    )
    assert [r["key"] for r in sounds] == sorted(p.stem for p in written.sounds.iterdir())


@pytest.mark.parametrize("seed", range(5))
def test_memories_share_no_object_and_nothing_sounds_like_an_evaluation_object(seed: int) -> None:
    draw = draw_objects(seed)
    images, sounds, clouds = set(draw.images), set(draw.sounds), set(draw.clouds)
    assert not images & sounds
    assert not images & clouds
    assert not sounds & clouds
    tested = {c.audible for c in draw.evaluation}
    assert len(tested) == len(draw.evaluation) == 200
    for corpus in (draw.images, draw.sounds, draw.clouds, draw.captions, draw.pairs):
        assert tested.isdisjoint(c.audible for c in corpus)
