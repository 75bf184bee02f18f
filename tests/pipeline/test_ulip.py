"""The family ulip: official checkpoints at full size by name and shape, strict loading, one space, clear errors."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import cmcr
import numpy as np
import pytest
import torch
from cmcr.cache.errors import EncoderError, ItemError, MissingWeightsError
from cmcr.pipeline.encoders import ulip, ulip_checkpoint
from cmcr.pipeline.encoders.base import Encoder, Item, Remarking
from cmcr.pipeline.encoders.open_clip import OpenClipFamily
from cmcr.pipeline.encoders.open_clip_weights import choose
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision
from cmcr.pipeline.encoders.ulip_networks import ImageTower, PointTower, text_tower

COLORED = "ulip:PointBERT-Colored/ULIP-2-PointBERT-10k-xyzrgb-pc-vit_g-objaverse_shapenet-pretrained"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))


def points_item(count: int = 300, key: str = "cloud", columns: int = 3) -> Item:
    held = io.BytesIO()
    np.save(held, np.random.default_rng(count).random((count, columns), dtype=np.float32))
    return Item(key, held.getvalue(), "cloud.npy")


def save(path: Path, state: dict[str, torch.Tensor], **more: Any) -> Path:
    torch.save({"state_dict": state, **more}, path)
    return path


@pytest.mark.parametrize("kind", ["xyz", "colored"])
def test_every_name_and_shape_of_the_official_state_dict_fits_at_full_size(ulip_shapes: Any, kind: str) -> None:
    variant = ulip.MODELS["PointBERT" if kind == "xyz" else "PointBERT-Colored"]
    with torch.device("meta"):
        towers: dict[str, Any] = {"points": PointTower(variant.points, variant.dim)}
        if kind == "xyz":
            towers |= {"image": ImageTower(variant.slip, variant.dim), "text": text_tower(variant.slip, variant.dim)}
        official = {name.removeprefix("module."): torch.empty(shape) for name, shape in ulip_shapes[kind].items()}
    assert len(official) == {"xyz": 462, "colored": 227}[kind]
    ulip_checkpoint.check(official, towers, Path("official.pt"))
    for tower in towers.values():
        ours = set(tower.state_dict())
        tower.load_state_dict({name: official[name] for name in ours}, strict=True, assign=True)


@pytest.mark.usefixtures("small_ulip")
def test_the_three_towers_of_one_checkpoint_share_a_space(ulip_files: dict[str, Path]) -> None:
    name = f"ulip:PointBERT/{ulip_files['xyz']}"
    towers = [load_encoder(name, modality=modality) for modality in ("pointcloud", "image", "text")]
    assert all(isinstance(tower, Encoder) for tower in towers)
    assert isinstance(towers[2], Remarking)
    assert len({tower.space for tower in towers}) == 1
    assert towers[0].space.name == "ulip"
    assert [tower.dim for tower in towers] == [512] * 3
    assert len({tower.fingerprint() for tower in towers}) == 3
    assert {tower.name for tower in towers} == {"ulip:PointBERT/pointbert_ULIP-2.pt"}  # no folder: caches record it
    colored = load_encoder(f"ulip:PointBERT-Colored/{ulip_files['colored']}", modality="pointcloud")
    assert (colored.dim, colored.points) == (1280, 10_000)  # type: ignore[attr-defined]
    assert colored.space.id != towers[0].space.id


@pytest.mark.usefixtures("small_ulip")
def test_a_row_does_not_depend_on_its_neighbours_and_options_are_in_the_fingerprint(
    ulip_files: dict[str, Path],
) -> None:
    name = f"ulip:PointBERT/{ulip_files['xyz']}"
    encoder = load_encoder(name, modality="pointcloud")
    clouds = [encoder.decode(points_item(count)) for count in (300, 20, 700)]
    rows = encoder.encode(clouds)
    assert rows.shape == (3, 512)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.abs(rows[1] - encoder.encode([clouds[1]])[0]).max() < 1e-6
    fewer = load_encoder(f"{name}?points=200", modality="pointcloud")
    assert fewer.name == "ulip:PointBERT/pointbert_ULIP-2.pt?points=200"
    assert len(fewer.decode(points_item(300))) == 200
    assert fewer.fingerprint() != encoder.fingerprint()
    assert load_encoder(name, modality="pointcloud", points=8192).fingerprint() == encoder.fingerprint()
    for wrong in ("0", "many"):
        with pytest.raises(EncoderError, match="it is a number of points"):
            load_encoder(f"{name}?points={wrong}", modality="pointcloud")


@pytest.mark.usefixtures("small_ulip")
def test_a_pickle_opens_only_where_it_is_allowed_and_no_cache_records_that(ulip_files: dict[str, Path]) -> None:
    name = f"ulip:PointBERT/{ulip_files['xyz']}"
    held = io.BytesIO()
    np.save(held, np.array({"xyz": np.random.default_rng(0).random((50, 3))}, dtype=object), allow_pickle=True)
    item = Item("demo", held.getvalue(), "demo.npy")
    strict = load_encoder(name, modality="pointcloud")
    with pytest.raises(ItemError, match="pickled") as caught:
        strict.decode(item)
    assert "ulip2?allow_pickle=true" in str(caught.value)
    allowing = load_encoder(f"{name}?allow_pickle=true", modality="pointcloud")
    assert allowing.decode(item).shape == (50, 3)
    assert allowing.name == strict.name
    assert allowing.fingerprint() == strict.fingerprint()
    with pytest.raises(EncoderError, match="'perhaps'; it is true or false"):
        load_encoder(f"{name}?allow_pickle=perhaps", modality="pointcloud")


@pytest.mark.usefixtures("small_ulip")
def test_a_checkpoint_of_points_alone_takes_its_towers_from_slip(ulip_files: dict[str, Path], tmp_path: Path) -> None:
    whole = torch.load(ulip_files["xyz"], weights_only=False)["state_dict"]
    points = {n: t for n, t in whole.items() if ".point_encoder." in n or "pc_projection" in n}
    alone = save(tmp_path / "points.pt", points)
    head = {f"module.image_mlp.{part}": torch.zeros(3) for part in ("layer1.bias", "bn1.running_mean")}
    slip = save(tmp_path / "slip_base_100ep.pt", {n: t for n, t in whole.items() if n not in points} | head)
    for modality in ("image", "text"):
        with pytest.raises(MissingWeightsError, match=f"carries no {modality} tower") as caught:
            load_encoder(f"ulip:PointBERT/{alone}", modality=modality)
        assert "dl.fbaipublicfiles.com/slip/slip_base_100ep.pt" in str(caught.value)
        joined = load_encoder(f"ulip:PointBERT/{alone}?towers={slip}", modality=modality)
        carried = load_encoder(f"ulip:PointBERT/{ulip_files['xyz']}", modality=modality)
        assert (
            joined.space.id
            == carried.space.id
            == load_encoder(f"ulip:PointBERT/{alone}", modality="pointcloud").space.id
        )
        if modality == "text":
            item = Item("t", "a chair")
            assert np.array_equal(joined.encode([joined.decode(item)]), carried.encode([carried.decode(item)]))
    with pytest.raises(EncoderError, match="carries its own towers"):
        load_encoder(f"ulip:PointBERT/{ulip_files['xyz']}?towers={slip}", modality="text")
    with pytest.raises(EncoderError, match=r"do not fit SLIP's image tower.*missing") as wrong:
        load_encoder(f"ulip:PointBERT/{alone}?towers={alone}", modality="text")
    assert "slip_base_100ep.pt" in str(wrong.value)
    with pytest.raises(EncoderError, match="there is no file"):
        load_encoder(f"ulip:PointBERT/{alone}?towers={tmp_path}/none.pt", modality="text")


@pytest.mark.usefixtures("small_ulip")
def test_the_coloured_variant_has_open_clips_towers_in_its_own_space(
    ulip_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ViT-bigG-14 has 10 GB, so that a tower of the sandbox stands in for what open_clip loads."""
    asked: list[tuple[str, str]] = []

    def load(_: OpenClipFamily, model: str, weights: str, *, modality: Any, **options: Any) -> Encoder:
        asked.append((model, weights))
        return load_encoder("sandbox:clip", modality=modality)

    monkeypatch.setattr(OpenClipFamily, "load", load)
    name = f"ulip:PointBERT-Colored/{ulip_files['colored']}"
    inner = load_encoder("sandbox:clip", modality="text")
    text = load_encoder(name, modality="text")
    item = Item("t", "a red ball")
    assert np.array_equal(text.encode([text.decode(item)]), inner.encode([inner.decode(item)]))
    assert text.fingerprint() != inner.fingerprint()
    assert text.space == load_encoder(name, modality="pointcloud").space
    assert (text.name, text.dim) == ("ulip:PointBERT-Colored/ULIP-2-colored.pt", inner.dim)
    file = tmp_path / "open_clip_pytorch_model.bin"
    file.touch()
    assert load_encoder(f"{name}?towers={file}", modality="image").modality == "image"
    assert asked == [("ViT-bigG-14", "laion2b_s39b_b160k"), ("ViT-bigG-14", f"laion2b_s39b_b160k@{file}")]
    prepare_torchvision()
    assert choose(*asked[1]).like == "laion2b_s39b_b160k"  # open_clip knows the model and the tag
    carrying = save(
        tmp_path / "carrying.pt",
        torch.load(ulip_files["colored"], weights_only=False)["state_dict"]
        | {"module.open_clip_model.logit_scale": torch.zeros(())},
    )
    assert load_encoder(f"ulip:PointBERT-Colored/{carrying}", modality="pointcloud").dim == 1280
    with pytest.raises(EncoderError, match="carries towers of open_clip"):
        load_encoder(f"ulip:PointBERT-Colored/{carrying}", modality="text")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "modality", "file", "sandbox"),
    [
        ("ulip2", "pointcloud", "pointbert_ULIP-2.pt", "sandbox:ulip"),
        ("ulip2", "image", "ULIP-2-PointBERT-8k-xyz-pc-slip_vit_b-objaverse-pretrained.pt", "sandbox:ulip"),
        ("ulip2-colored", "pointcloud", f"{COLORED.rpartition('/')[2]}.pt", "sandbox:ulip"),
        (f"{COLORED}.pt", "text", f"{COLORED.rpartition('/')[2]}.pt", "sandbox:clip"),
    ],
)
def test_a_missing_checkpoint_names_the_file_its_publisher_and_the_sandbox(
    name: str, modality: Any, file: str, sandbox: str
) -> None:
    with pytest.raises(MissingWeightsError) as caught:
        load_encoder(name, modality=modality)
    text = str(caught.value)
    for part in (file, "SFXX/ulip", "github.com/salesforce/ULIP", f"--encoder {sandbox}", "--repo-type dataset"):
        assert part in text


@pytest.mark.usefixtures("small_ulip", "offline")
def test_a_published_checkpoint_is_found_in_the_hubs_cache(ulip_files: dict[str, Path], tmp_path: Path) -> None:
    from cmcr.pipeline.encoders.artefacts import ULIP_FILES

    folder = tmp_path / "hub" / "datasets--SFXX--ulip"
    file = folder / "snapshots" / "abc" / ULIP_FILES["pointbert_ULIP-2"]
    file.parent.mkdir(parents=True)
    file.symlink_to(ulip_files["xyz"])
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    encoder = load_encoder("ulip2", modality="pointcloud", cache_dir=str(tmp_path / "hub"))
    assert encoder.name == "ulip:PointBERT/pointbert_ULIP-2"
    assert encoder.space.name == "ulip"


@pytest.mark.parametrize(
    ("name", "modality", "said"),
    [
        ("ulip2", "audio", "ulip has no audio tower"),
        ("ulip:PointMLP/x", "pointcloud", "no model 'PointMLP'"),
        ("ulip:PointBERT", "pointcloud", "does not say which weights"),
        ("ulip:PointBERT/pointbert", "pointcloud", "no weights 'pointbert'"),
        ("ulip:PointBERT/no/such.pt", "pointcloud", "there is no weights file"),
        (COLORED.replace("-Colored", ""), "pointcloud", "are of PointBERT-Colored, not of PointBERT"),
    ],
)
def test_a_wrong_name_says_what_is_right(name: str, modality: Any, said: str) -> None:
    with pytest.raises(EncoderError, match=said):
        load_encoder(name, modality=modality)


@pytest.mark.usefixtures("small_ulip")
def test_a_state_dict_that_does_not_fit_is_one_clear_line(ulip_files: dict[str, Path], tmp_path: Path) -> None:
    whole = torch.load(ulip_files["xyz"], weights_only=False)["state_dict"]
    cases = {
        r"1 missing \(point_encoder.norm.bias\)": {
            n: t for n, t in whole.items() if not n.endswith("encoder.norm.bias")
        },
        r"1 missing \(ln_final.bias\)": {n: t for n, t in whole.items() if not n.endswith("ln_final.bias")},
        r"1 unknown \(head.weight\)": whole | {"module.head.weight": torch.zeros(2)},
        r"1 of another shape \(pc_projection \(768, 9\), not \(768, 512\)\)": whole
        | {"module.pc_projection": torch.zeros(768, 9)},
    }
    for said, state in cases.items():
        path = save(tmp_path / "x.pt", state)
        with pytest.raises(EncoderError, match=said) as caught:
            load_encoder(f"ulip:PointBERT/{path}", modality="pointcloud")
        assert "\n" not in caught.value.what
    with pytest.raises(EncoderError, match=r"first_conv.0.weight \(128, 6, 1\), not \(128, 3, 1\)"):
        load_encoder(f"ulip:PointBERT/{ulip_files['colored']}", modality="pointcloud")
    with pytest.raises(EncoderError, match=r"do not fit PointBERT-Colored's point tower"):
        load_encoder(f"ulip:PointBERT-Colored/{ulip_files['xyz']}", modality="pointcloud")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.place,))


@pytest.mark.usefixtures("small_ulip")
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    allowed = set(map(str, torch.serialization.get_safe_globals()))
    place = tmp_path / "boom"
    path = save(tmp_path / "evil.pt", {"module.pc_projection": torch.zeros(1)}, args=Bomb(place))
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "other.pt").write_bytes(pickle.dumps({"a": 1}))
    for file in (path, tmp_path / "text.pt", tmp_path / "other.pt"):
        with pytest.raises(EncoderError, match=r"cannot be read|no state dict"):
            load_encoder(f"ulip:PointBERT/{file}", modality="pointcloud")
    assert not place.exists()
    assert set(map(str, torch.serialization.get_safe_globals())) == allowed  # nothing stays allowed


def manifest(folder: Path) -> dict[str, str]:
    lines = (folder / "MANIFEST.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return {Path(e["file"]).stem: e["expect"] for e in entries if e["file"].endswith(".npy")}


@pytest.mark.kit
@pytest.mark.usefixtures("small_ulip")
def test_every_cloud_of_the_kit_gets_a_row_and_every_bad_one_a_line(
    kit: Path, tmp_path: Path, ulip_files: dict[str, Path]
) -> None:
    name = f"ulip:PointBERT/{ulip_files['xyz']}"
    report = cmcr.encode(kit / "raw" / "points", tmp_path / "points", modality="pointcloud", encoder=name, batch_size=8)
    assert (report.rows, report.failed, report.dim) == (40, 0, 512)
    rows = np.asarray(cmcr.open_cache(tmp_path / "points").read(0, 40, normalize=False))
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 2e-3  # float16
    assert len(np.unique(rows.round(3), axis=0)) == 40
    cmcr.encode(kit / "raw" / "bad", tmp_path / "bad", modality="pointcloud", encoder=name)
    cache = cmcr.open_cache(tmp_path / "bad")
    lost = {failure.key: failure.message for failure in cache.failures() if failure.lost}
    expected = manifest(kit / "raw" / "bad")
    fails = {key for key, expect in expected.items() if expect.startswith(("must fail", "must be"))}
    assert set(lost) == fails
    assert set(cache.keys()) == set(expected) - fails
    assert all(lost.values())


@pytest.mark.kit
@pytest.mark.usefixtures("small_ulip")
def test_the_official_demo_clouds_encode_where_pickles_are_allowed(
    kit: Path, tmp_path: Path, ulip_files: dict[str, Path]
) -> None:
    """Both variants, through cmcr.encode, with the option in the name."""
    assets = kit / "official" / "assets"
    for kind, model in (("xyz", "PointBERT"), ("colored", "PointBERT-Colored")):
        name = f"ulip:{model}/{ulip_files[kind]}?allow_pickle=true&points=2000"
        report = cmcr.encode(assets, tmp_path / kind, modality="pointcloud", encoder=name)
        assert (report.rows, report.failed) == (3, 0)
        assert report.encoder.endswith("?points=2000")


@pytest.mark.slow
@pytest.mark.kit
def test_a_checkpoint_of_full_size_encodes_points_images_and_texts(
    kit: Path, tmp_path: Path, ulip_maker: Any, ulip_shapes: Any
) -> None:
    file = save(tmp_path / "pointbert_ULIP-2.pt", ulip_maker.weights(ulip_shapes["xyz"]))
    captions = (kit / "raw" / "text" / "captions.txt").read_text(encoding="utf-8").splitlines()[:32]
    (tmp_path / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    inputs = {"pointcloud": kit / "raw" / "points", "image": kit / "raw" / "images", "text": tmp_path / "captions.txt"}
    counts = {"pointcloud": 40, "image": 64, "text": 32}
    for modality, place in inputs.items():
        name = f"ulip:PointBERT/{file}"
        report = cmcr.encode(place, tmp_path / modality, modality=modality, encoder=name, batch_size=8)
        assert (report.rows, report.failed, report.dim) == (counts[modality], 0, 512)
