"""Names of encoders: families, short names, entry points, files; and what is said about names that are none."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import DeviceError, EncoderError, MissingWeightsError
from cmcr.pipeline.encoders import plugins, registry
from cmcr.pipeline.encoders.base import Encoder, Item, Space
from cmcr.pipeline.encoders.registry import default_encoder, families, load_encoder, split_name, split_options

SOURCE = """
from dataclasses import dataclass
import numpy as np
from cmcr.pipeline.encoders.base import Space

@dataclass
class MyEncoder:
    modality: str = "text"
    device: str = "none"
    name = "mine"
    space = Space("s", "s")
    dim = 3

    def fingerprint(self):
        return "one"

    def decode(self, item):
        return len(item.data)

    def encode(self, batch):
        return np.stack([np.array([n, 1, 0], dtype=np.float32) / np.hypot(n, 1) for n in batch])

class Lacking:
    name = "lacking"

class Raising:
    def __init__(self):
        raise OSError("no such model")
"""


@pytest.fixture
def my_file(tmp_path: Path) -> Path:
    """A user's file with encoders, in a folder with a space and a colon-free name."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    file = folder / "my.py"
    file.write_text(SOURCE)
    return file


def test_names_divide_at_the_first_colon_and_the_first_slash() -> None:
    assert split_name("open_clip:ViT-B-32/openai") == ("open_clip", "ViT-B-32", "openai")
    assert split_name("open_clip:ViT-B-32//data/w.pt") == ("open_clip", "ViT-B-32", "/data/w.pt")
    assert split_name("open_clip:hf-hub:org/repo") == ("open_clip", "hf-hub:org", "repo")
    assert split_name("sandbox:clip") == ("sandbox", "clip", None)


def test_every_modality_has_a_default_encoder() -> None:
    assert default_encoder("text") == default_encoder("image") == "open_clip:ViT-B-32-quickgelu/openai"
    assert default_encoder("audio").startswith("laion_clap:")
    assert default_encoder("pointcloud").startswith("ulip:")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("opn_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("sandbx:clap", "sandbox:clap"),
        ("clpi", "did you mean clip?"),
        ("ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("something", "families: open_clip"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, modality="text")
    assert suggestion in str(caught.value)


def test_an_unknown_modality_or_precision_is_refused() -> None:
    with pytest.raises(EncoderError, match="'sound'"):
        load_encoder("clip", modality="sound")  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match="fp8"):
        load_encoder("clip", modality="text", precision="fp8")


def test_a_name_may_carry_options_that_its_family_takes() -> None:
    assert split_options("ulip2?points=4096&allow_pickle=true") == ("ulip2", {"points": "4096", "allow_pickle": "true"})
    assert split_options("open_clip:RN50/openai") == ("open_clip:RN50/openai", {})
    with pytest.raises(EncoderError, match="sandbox has no option 'points'"):
        load_encoder("sandbox:ulip?points=9", modality="pointcloud")
    with pytest.raises(EncoderError, match=r"ulip has no option 'point'") as caught:
        load_encoder("ulip2", modality="pointcloud", point=9)
    assert "points, towers, allow_pickle, cache_dir" in str(caught.value)
    with pytest.raises(EncoderError, match="'points' is no option"):
        load_encoder("ulip2?points", modality="pointcloud")


def test_a_tower_that_no_adapter_will_have_is_another_error() -> None:
    with pytest.raises(EncoderError, match="laion_clap has no image tower") as caught:
        load_encoder("clap", modality="image")
    assert not isinstance(caught.value, MissingWeightsError)


def test_a_class_in_a_file_is_an_encoder(my_file: Path) -> None:
    encoder = load_encoder(f"{my_file}:MyEncoder", modality="audio")
    assert isinstance(encoder, Encoder)
    assert encoder.modality == "audio"
    assert encoder.name == "my.py:MyEncoder"  # no folder: the name is recorded in caches and connectors
    rows = encoder.encode([encoder.decode(Item("k", "abc"))])
    assert np.allclose(rows, [[3, 1, 0] / np.sqrt(10)])


def test_the_source_of_a_class_is_in_its_fingerprint(my_file: Path) -> None:
    name = f"{my_file}:MyEncoder"
    first = load_encoder(name, modality="text").fingerprint()
    assert load_encoder(name, modality="text").fingerprint() == first
    my_file.write_text(SOURCE.replace("np.array([n, 1, 0]", "np.array([n, 0, 1]"))
    changed = load_encoder(name, modality="text")
    assert changed.fingerprint() != first
    assert np.allclose(changed.encode([3])[0], [3, 0, 1] / np.sqrt(10))


@pytest.mark.parametrize(
    ("suffix", "match"),
    [
        ("my.py:Missing", "has no Missing"),
        ("my.py:Lacking", "lacks modality, space, dim, fingerprint, decode, encode"),
        ("my.py:Raising", r"my\.py:Raising raised OSError: no such model\n.*my\.py, line 28"),
        ("other.py:MyEncoder", r"there is no file(.|\n)*--encoder PATH/other\.py:MyEncoder"),
    ],
)
def test_a_class_that_is_no_encoder_is_told_why(my_file: Path, suffix: str, match: str) -> None:
    with pytest.raises(EncoderError, match=match):
        load_encoder(str(my_file.parent / suffix), modality="text")


def test_a_file_that_does_not_run_is_named(my_file: Path) -> None:
    my_file.write_text("import nothing_of_this_name")
    with pytest.raises(EncoderError, match=r"my\.py raised ModuleNotFoundError"):
        load_encoder(f"{my_file}:MyEncoder", modality="text")


class _Family:
    name = "theirs"

    def load(
        self, model: str, weights: str | None, *, modality: Any, device: str, precision: str, **options: Any
    ) -> Any:
        if model == "raising":
            raise ValueError("no such model")
        space = Space(f"{model}/{weights}", "theirs")
        members: dict[str, Any] = {"name": f"theirs:{model}/{weights}", "modality": modality, "space": space, "dim": 2}
        methods = {"fingerprint": lambda self: "f", "decode": lambda self, item: 0, "encode": lambda self, batch: batch}
        return type("Theirs", (), {**members, **methods, "options": options, "device": device})()


class _Broken:
    def __init__(self) -> None:
        raise ImportError("libsomething.so is missing")


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed families: one that works, one that cannot be imported."""
    here = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "their_package", here)
    points = {name: EntryPoint(name, f"their_package:{kind}", plugins.GROUP) for name, kind in FAMILIES.items()}
    for module in (plugins, registry):
        monkeypatch.setattr(module, "installed_families", lambda: points)


FAMILIES = {"theirs": "_Family", "broken": "_Broken"}


@pytest.mark.usefixtures("entry_point")
def test_a_family_of_an_installed_package_is_found_by_its_entry_point() -> None:
    encoder: Any = load_encoder("theirs:big/v1", modality="audio", crop=7)
    assert encoder.space.id == "big/v1"
    assert encoder.options == {"crop": 7}
    assert "theirs" in families()


@pytest.mark.parametrize("name", ["sandbox:clip", "FILE:MyEncoder", "FILE:fixed"])
def test_a_device_that_is_none_is_refused_before_the_encoder_is_made(my_file: Path, name: str) -> None:
    my_file.write_text(SOURCE + "\nfixed = MyEncoder()\n")
    with pytest.raises(DeviceError, match="no device called 'gpu'"):
        load_encoder(name.replace("FILE", str(my_file)), modality="text", device="gpu")


@pytest.mark.usefixtures("entry_point")
def test_what_a_package_raises_on_loading_is_named() -> None:
    with pytest.raises(EncoderError, match=r"loading theirs:raising raised ValueError: no such model"):
        load_encoder("theirs:raising", modality="text")


@pytest.mark.usefixtures("entry_point")
def test_a_broken_package_names_itself() -> None:
    with pytest.raises(EncoderError, match=r"family 'broken' cannot be imported: ImportError: libsomething\.so"):
        load_encoder("broken:x", modality="text")


def test_families_list_what_they_need() -> None:
    listed = families()
    assert {"open_clip", "laion_clap", "ulip", "sandbox"} <= set(listed)
    assert listed["open_clip"].installed
    assert not any(info.what == "" for info in listed.values())
