from __future__ import annotations

from pathlib import Path

import pytest
from cmcr.cache.errors import RecipeError
from cmcr.trainer.recipe import Recipe, load_recipe, make_recipe
from cmcr.trainer.settings import FitSettings

TEN_LINES = """
[space.clap]
overlap = "caches/captions-clap"
bank    = ["caches/audioset-clap"]
[space.clip]
overlap = "caches/captions-clip"
bank    = "caches/imagenet-clip"
[fit]
method = "c-mcr"
epochs = 7
output = "connectors/clap-clip"
[[eval]]
name = "my pairs"
query = "caches/test-audio-clap"
gallery = "caches/test-frames-clip"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    place = tmp_path / "connect.toml"
    place.write_text(TEN_LINES)
    return place


def test_the_recipe_of_the_manual_is_read_with_paths_beside_it(recipe: Path, tmp_path: Path) -> None:
    read = load_recipe(recipe)
    assert list(read.space) == ["clap", "clip"]
    assert read.space["clip"].bank == ("caches/imagenet-clip",)
    assert (read.fit.method, read.fit.epochs, read.fit.batch_size) == ("c-mcr", 7, 4096)
    assert read.output == tmp_path / "connectors" / "clap-clip"
    assert read.path(read.eval[0].query) == tmp_path / "caches" / "test-audio-clap"


def test_overrides_win_and_are_typed(recipe: Path) -> None:
    read = load_recipe(
        recipe, ["fit.lr=3e-4", "fit.intra=squared", "fit.options.scale = 30", 'space.clap.bank=["x", "y"]']
    )
    assert read.fit.lr == 3e-4
    assert read.fit.intra == "squared"
    assert read.fit.options == {"scale": 30}
    assert read.space["clap"].bank == ("x", "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit.epoch=3", "did you mean 'epochs'"),
        ("fits.epochs=3", "did you mean 'fit'"),
        ("epochs=3", r"did you mean 'fit\.epochs'"),
        ("batchsize=3", r"did you mean 'fit\.batch_size'"),
        ("fit.device=gpu", "a device is auto, cpu, mps, cuda or cuda:1"),
        ("space.clap.banks=a", "did you mean 'bank'"),
        ("fit.epochs=0", "greater than or equal to 1"),
        ("fit.lr=fast", "fit.lr"),
        ("space.ulip.overlap=a", "exactly two spaces"),
        ("fit.memory_budget=lots", "is not a size"),
        ("lr", "is not an override"),
        ("fit.epochs.peak=3", "is not a table"),
    ],
)
def test_a_wrong_recipe_says_where_and_what_instead(recipe: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [change])


def test_two_evaluations_of_one_name_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "r.toml"
    place.write_text(TEN_LINES + TEN_LINES[TEN_LINES.index("[[eval]]") :])
    with pytest.raises(RecipeError, match="two evaluations are called 'my pairs'"):
        load_recipe(place)


def test_a_recipe_must_name_its_method(tmp_path: Path) -> None:
    place = tmp_path / "r.toml"
    place.write_text(TEN_LINES.replace('method = "c-mcr"', ""))
    with pytest.raises(RecipeError, match=r"lacks fit\.method"):
        load_recipe(place)


def test_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[fit\n")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_flags_mean_the_same_as_the_file(recipe: Path) -> None:
    flags = Recipe.from_flags(
        ["clap=caches/captions-clap,caches/audioset-clap", "clip=caches/captions-clip,caches/imagenet-clip"],
        method="c-mcr",
        epochs=7,
        lr=None,
        output="connectors/clap-clip",
    )
    read = load_recipe(recipe)
    assert flags.space == read.space
    assert flags.fit == read.fit
    for wrong in (["clap"], ["clap=", "clip=b"], ["=a", "clip=b"], ["clap=a", "clap=b"]):
        with pytest.raises(RecipeError, match="space"):
            Recipe.from_flags(wrong, method="c-mcr")


def test_the_resolved_recipe_spells_everything_out_without_machine_paths(recipe: Path, tmp_path: Path) -> None:
    read = load_recipe(recipe)
    text = read.resolved(tmp_path / "elsewhere" / "out")
    assert str(tmp_path) not in text
    assert text == read.resolved(tmp_path / "elsewhere" / "sibling")
    (tmp_path / "elsewhere" / "out").mkdir(parents=True)
    (tmp_path / "elsewhere" / "out" / "recipe.toml").write_text(text)
    again = load_recipe(tmp_path / "elsewhere" / "out" / "recipe.toml")
    assert again.resolved(tmp_path / "elsewhere" / "out") == text
    assert again.path(again.space["clap"].overlap).resolve() == tmp_path / "caches" / "captions-clap"
    assert again.output == tmp_path / "elsewhere" / "out"
    assert all(name in text for name in ("tau2", "noise_variance", "bn_pass", "weight_decay"))


def test_a_method_in_a_file_is_found_beside_the_recipe(tmp_path: Path) -> None:
    space = {"a": {"overlap": "x"}, "b": {"overlap": "y"}}
    made = make_recipe({"space": space, "fit": {"method": "mine/my.py:MyMethod"}}, base=tmp_path)
    assert made.method == f"{tmp_path}/mine/my.py:MyMethod"
    assert 'method = "../mine/my.py:MyMethod"' in made.resolved(tmp_path / "out")


def test_noise_is_a_variance_or_a_norm() -> None:
    assert FitSettings(method="m").noise_std(512) == pytest.approx(0.0632, abs=1e-4)
    assert FitSettings(method="m", noise_norm=1.43).noise_std(128) * 128**0.5 == pytest.approx(1.43)


KEPT = ["fit.keep=clip", "fit.warmup=0.1", "fit.schedule=linear", "fit.clip_grad=1", "fit.chunk=64"]


def test_a_resolved_recipe_carries_what_is_kept_how_it_is_scheduled_and_what_validates(
    recipe: Path, tmp_path: Path
) -> None:
    looks = ['validation.query="v/a"', 'validation.gallery="v/b"', "fit.patience=3", "fit.validate_every=20"]
    heads = ['fit.projector={clap = "half", clip = "identity"}']
    read = load_recipe(recipe, [*KEPT, *looks, *heads])
    assert (read.fit.head_kind("clap"), read.fit.head_kind("clip")) == ("half", "identity")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.toml").write_text(read.resolved(tmp_path / "out"))
    again = load_recipe(tmp_path / "out" / "recipe.toml")
    assert again.validation is not None
    assert again.path(again.validation.query).resolve() == tmp_path / "v" / "a"
    assert again.resolved(tmp_path / "out") == read.resolved(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fit.keep=clop", r"fit\.keep names 'clop', which is no space of this recipe; did you mean 'clip'"),
        ('fit.projector={clop = "mlp"}', r"fit\.projector names 'clop'"),
        ("fit.projector=identity", "two identity heads train nothing"),
        ('fit.projector={clap = "identity", clip = "identity"}', "two identity heads train nothing"),
        ("fit.warmup=2.5", "whole number of steps"),
        ("fit.patience=2", "need a validation pair"),
        ("validation.querry=x", "validation"),
        ("fit.schedule=cosin", "fit.schedule"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(recipe: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [change])


def test_warmup_counts_steps_or_a_share_of_them() -> None:
    assert FitSettings(method="m", warmup=0.1).warmup_steps(250) == 25
    assert FitSettings(method="m", warmup=30).warmup_steps(250) == 30


def test_the_shared_space_is_as_wide_as_the_kept_one() -> None:
    dims = {"clap": 24, "clip": 20}
    assert FitSettings(method="m", keep="clip").shared_dim(dims) == 20
    assert FitSettings(method="m").shared_dim(dims) == 512
    assert FitSettings(method="m", keep="clip", projector={"clap": "half"}).head_kind("clip") == "identity"


EXTRA = """
[[damage]]
name = "photographs"
query = "caches/photos"
classes = "caches/class-names"
label = "label"
[compare.ridge]
options = { penalty = "auto" }
[compare.plain]
method = "procrustes"
"""


def test_tables_of_damage_and_comparison_are_read_and_damage_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "connect.toml"
    place.write_text(TEN_LINES + 'label = "label"\nno_class = ["other"]\ndistractors = false\n' + EXTRA)
    read = load_recipe(place, ["compare.c-mcr.lr=3e-4"])
    assert read.eval[0].by_class
    assert (read.eval[0].no_class, read.eval[0].distractors, read.eval[0].ks) == (("other",), False, (1, 5, 10))
    assert read.compare == {
        "ridge": {"options": {"penalty": "auto"}}, "plain": {"method": "procrustes"}, "c-mcr": {"lr": 3e-4},
    }  # fmt: skip
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "recipe.toml").write_text(read.resolved(tmp_path / "deep"))
    again = load_recipe(tmp_path / "deep" / "recipe.toml")
    assert again.damage[0].classes == "../caches/class-names"
    assert again.eval[0].no_class == ("other",)
    assert again.compare == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macro = true", "need a label"),
        ("ks = [0, 5]", "cut-offs"),
        ('[[damage]]\nname = "x"\nquery = "q"', "one of the two"),
        ('[[damage]]\nname = "x"\nquery = "q"\nclasses = "c"', "zero-shot needs label"),
        ('[[damage]]\nname = "x"\nquery = "q"\nclases = "c"', "did you mean 'classes'"),
        ("[compare.c-mcr]\nepoch = 3", "did you mean 'epochs'"),
        ("[compare.c-mcr]\nseed = 3", "unknown key 'seed'"),
    ],
)
def test_wrong_tables_of_evaluation_damage_and_comparison_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "connect.toml").write_text(TEN_LINES + text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "connect.toml")
