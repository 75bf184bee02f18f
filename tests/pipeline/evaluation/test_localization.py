"""Sounds found in frames: from files through regions and caches to figures, with one right answer each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CmcrError
from cmcr.cache.reader import Cache
from cmcr.cli import app
from cmcr.pipeline.evaluation.counterfactual import evaluate_counterfactual
from cmcr.pipeline.evaluation.items import read_items
from cmcr.pipeline.evaluation.localization import LocalizationSettings, evaluate_localization
from cmcr.pipeline.evaluation.localization_measures import Detection, box_map, confidence, consensus_iou, predicted_mask
from cmcr.pipeline.evaluation.regions import RegionSettings, encode_regions
from cmcr.pipeline.evaluation.source_maps import FrameRegions, lay_out
from PIL import Image
from typer.testing import CliRunner

Save = Callable[..., Cache]
# colour of the sound, and the box that is painted in it
BOXES = {"red": [0.0, 0.0, 0.5, 0.5], "green": [0.5, 0.0, 1.0, 0.5], "blue": [0.25, 0.5, 0.75, 1.0]}
RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def world(tmp_path: Path, save: Save) -> dict[str, Any]:
    """Four frames with a painted box each (the fourth has none), and a sound for each colour."""
    frames, items = [], []
    for colour in (*BOXES, "nothing"):
        picture = Image.new("RGB", (90, 60), (70, 70, 70))
        if colour in BOXES:
            left, top, right, bottom = BOXES[colour]
            picture.paste(RGB[colour], (int(90 * left), int(60 * top), int(90 * right), int(60 * bottom)))
        picture.save(tmp_path / f"{colour}.png")
        frames.append({"key": f"f-{colour}", "path": f"{colour}.png"})
        sound = colour if colour in BOXES else "red"
        boxes = [BOXES[colour]] if colour in BOXES else []
        items.append({"key": colour, "audio": sound, "image": f"f-{colour}", "boxes": boxes, "path": f"{colour}.png"})
    for name, records in (("frames", frames), ("items", items)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sounds = save("sounds", list(BOXES), np.eye(3) + 0.01)
    return {"frames": tmp_path / "frames.jsonl", "items": tmp_path / "items.jsonl", "sounds": sounds}


def test_the_painted_box_is_found_by_grid_and_by_proposals(world: dict[str, Any], colours: Any, tmp_path: Path) -> None:
    grid = encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(8, 0.25))
    assert len(grid) == 4 * 64
    report = evaluate_localization(
        world["items"], world["sounds"], grid, settings=LocalizationSettings("absolute", 0.9)
    )
    assert report.figures["items"] == 4
    assert report.figures["audible"] == 3
    assert report.figures["cIoU@0.5"] == 1
    assert report.figures["mean cIoU"] > 0.7
    boxes = [*BOXES.values(), [0.0, 0.5, 0.2, 1.0]]
    lines = (json.dumps({"key": f"f-{name}", "boxes": boxes}) + "\n" for name in (*BOXES, "nothing"))
    (tmp_path / "boxes.jsonl").write_text("".join(lines))
    chosen = RegionSettings(proposals=tmp_path / "boxes.jsonl")
    proposed = encode_regions(world["frames"], tmp_path / "proposed", encoder=colours, settings=chosen)
    exact = evaluate_localization(
        world["items"], world["sounds"], proposed, settings=LocalizationSettings("absolute", 0.9)
    )
    assert exact.figures["mean cIoU"] == pytest.approx(1)
    assert exact.figures["AUC"] == pytest.approx(1)


def test_counterfactual_figures_are_those_of_the_definition(
    world: dict[str, Any], colours: Any, tmp_path: Path
) -> None:
    regions = encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(4, 0.25))
    report = evaluate_counterfactual(world["items"], world["sounds"], regions, output=tmp_path / "c.json")
    items = read_items(world["items"])
    ciou, sure = [], []
    for item in items:  # restated with plain loops over the pixels' windows
        picture = np.asarray(Image.open(item.path).convert("RGB"), np.float64)  # type: ignore[arg-type]
        cells = [
            picture[15 * i : 15 * i + 15, int(22.5 * j) : round(22.5 * j + 22.5)] for i in range(4) for j in range(4)
        ]
        seen = np.array([cell.reshape(-1, 3).mean(0) + 1e-3 for cell in cells])
        seen = (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
        heard = world["sounds"].gather([item.audio])[0]
        scores = (seen / np.linalg.norm(seen, axis=1, keepdims=True) @ heard + 1) / 2
        wide = lay_out(scores, FrameRegions(grid=4))
        ciou.append(consensus_iou(predicted_mask(wide, "slavc"), box_map(item.boxes)))
        sure.append(confidence(wide))
    want = Detection(np.array([True, True, True, False]), np.array(ciou), np.array(sure))
    assert report.figures["AP"] == pytest.approx(want.average_precision())
    assert report.figures["max-F1"] == pytest.approx(want.max_f1())
    assert report.figures["inaudible"] == 1
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["protocol"] == "counterfactual"
    assert record["regions"]["fingerprint"] == "colour"
    assert record["figures"]["max-F1"] == report.figures["max-F1"]


def test_a_grid_is_widened_evenly_and_proposals_take_the_best() -> None:
    ramp = lay_out(np.array([0.0, 1.0, 0.0, 1.0]), FrameRegions(grid=2))
    assert ramp[0, 0] == 0
    assert ramp[100, 223] == 1
    assert ramp[7, 111] + ramp[7, 112] == pytest.approx(1)  # the middle of the frame is the middle of the scores
    assert np.all(np.diff(ramp[50]) >= 0)
    boxes = FrameRegions(boxes=[(0, 0, 0.5, 0.5), (0.25, 0, 1, 0.5)])
    painted = lay_out(np.array([0.2, 0.7]), boxes)
    assert [painted[5, 5], painted[5, 100], painted[5, 200], painted[200, 5]] == [0.2, 0.7, 0.7, 0.2]


def test_items_without_sound_or_frame_are_named_and_left_out(
    world: dict[str, Any], colours: Any, save: Save, tmp_path: Path
) -> None:
    regions = encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(2, 0.5))
    some = save("some", ["green", "red"], np.eye(3)[[1, 0]] + 0.01)
    report = evaluate_localization(world["items"], some, regions, output=tmp_path / "l.json")
    assert report.missing == ("blue",)
    assert "1 of 4 items" in report.notes[0]
    kept = evaluate_localization(world["items"], some, regions, output=tmp_path / "l.json", skip_existing=True)
    assert kept == report
    none = save("none", ["x"], [[1, 0, 0]])
    with pytest.raises(CmcrError, match="No item has both"):
        evaluate_localization(world["items"], none, regions)
    elsewhere = save("elsewhere", ["red"], [[1, 0, 0]], space="other")
    with pytest.raises(CacheError, match="different spaces"):
        evaluate_localization(world["items"], elsewhere, regions)


def test_a_frame_that_cannot_be_decoded_is_in_the_ledger_and_regions_resume(
    world: dict[str, Any], colours: Any, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(b"no picture")
    first = encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(2, 0.5))
    assert len(first) == 12
    assert [failure.key for failure in first.failures()] == [f"f-red/r{n:04d}" for n in range(4)]
    before = (tmp_path / "grid" / "shards" / "00000.json").read_bytes()
    encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(2, 0.5))
    assert (tmp_path / "grid" / "shards" / "00000.json").read_bytes() == before
    with pytest.raises(CacheError, match="other frames, boxes or files"):
        encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(3, 0.5))
    report = evaluate_localization(world["items"], world["sounds"], first)
    assert report.missing == ("red",)


def test_the_command_draws_overlays(world: dict[str, Any], colours: Any, tmp_path: Path) -> None:
    regions = encode_regions(world["frames"], tmp_path / "grid", encoder=colours, settings=RegionSettings(2, 0.5))
    for command in ("localization", "counterfactual"):
        result = CliRunner().invoke(app, [
            "evaluate", command, "--items", str(world["items"]), "--query", str(world["sounds"].path),
            "--regions", str(regions.path), "--overlays", str(tmp_path / command), "--json",
        ])  # fmt: skip
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["figures"]["audible"] == 3
        drawn = sorted(path.name for path in (tmp_path / command).iterdir())
        assert drawn == ["blue.png", "green.png", "nothing.png", "red.png"]
        assert Image.open(tmp_path / command / "red.png").size == (90, 60)


def test_bad_lists_name_their_line(tmp_path: Path) -> None:
    cases = {
        "": "is empty",
        '{"key": "a", "boxes": []}\n{"key": "a", "boxes": []}\n': "twice",
        '{"key": "a"}\n': "line 1",
        '{"key": "a", "boxes": [[0, 0, 1]]}\n': "is no box",
        '{"key": "a", "boxes": [[0, 0, 1, NaN]]}\n': "is no box",
        "[1]\n": "no JSON object",
        "{\n": "JSONL",
    }
    for number, (text, message) in enumerate(cases.items()):
        (tmp_path / f"{number}.jsonl").write_text(text)
        with pytest.raises(CmcrError) as caught:
            read_items(tmp_path / f"{number}.jsonl")
        assert message in str(caught.value)
    with pytest.raises(CmcrError, match="is none"):
        RegionSettings(0)
    with pytest.raises(CmcrError, match="no rule"):
        LocalizationSettings("best")  # type: ignore[arg-type]
