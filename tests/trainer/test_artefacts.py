"""What a fit leaves to look at: the same metrics give the same bytes, and the usual readers read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cmcr.trainer.artefacts import EVENT_FILE, model_card, read_metrics, write_curve, write_events
from cmcr.trainer.connector import Connector
from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
from cmcr.trainer.projectors import ProjectorSpec, build_projector
from PIL import Image


def metrics_file(folder: Path, count: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "metrics.jsonl"
    with path.open("w") as file:
        for n in range(1, count + 1):
            record = {"step": 10 * n, "epoch": n, "lr": 1e-3 / n, "loss": 5 / n + 1, "loss_overlap": 5 / n}
            file.write(json.dumps({**record, "loss_intra": math.inf if n == 1 else 1.0, "grad_norm": 2 / n}) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [metrics_file(tmp_path / name) for name in ("one", "two")]


def test_curve_is_the_same_bytes_and_names_no_software(files: list[Path]) -> None:
    pictures = [path.with_name("curve.png") for path in files]
    for path, png in zip(files, pictures, strict=True):
        assert write_curve(path, png, title="c-mcr: clap and clip")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    with Image.open(pictures[0]) as image:
        image.load()
        assert image.size == (960, 672)
        assert not {"Software", "Creation Time", "date"} & set(image.info)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 20  # lines and text, not an empty frame


def test_one_step_alone_can_be_drawn(tmp_path: Path) -> None:
    assert write_curve(metrics_file(tmp_path, 1), tmp_path / "curve.png")


def test_event_file_is_the_same_bytes_and_tensorboard_reads_it(files: list[Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = [path.with_name("tensorboard") for path in files]
    for path, folder in zip(files, folders, strict=True):
        assert write_events(path, folder)
        assert write_events(path, folder)  # again over the first: one file, not two runs
    assert [path.name for path in folders[0].iterdir()] == [EVENT_FILE]
    assert (folders[0] / EVENT_FILE).read_bytes() == (folders[1] / EVENT_FILE).read_bytes()
    events = EventAccumulator(str(folders[0])).Reload()
    assert set(events.Tags()["scalars"]) == {"epoch", "lr", "loss/total", "loss/overlap", "loss/intra", "grad_norm"}
    scalars = events.Scalars("loss/total")
    assert [event.step for event in scalars] == [10 * n for n in range(1, 13)]
    assert [event.value for event in scalars] == pytest.approx([5 / n + 1 for n in range(1, 13)])
    assert [event.wall_time for event in scalars] == [10.0 * n for n in range(1, 13)]
    assert len(events.Scalars("loss/intra")) == 11  # the infinite one is left out


def test_a_method_without_steps_leaves_no_curve_and_no_events(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"note": "closed form"}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == read_metrics(tmp_path / "none.jsonl") == []
    assert not write_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert not write_events(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def connector(method: str, **specs: ProjectorSpec) -> Connector:
    spaces = {
        "clap": SpaceInfo("id1", ("audio", "text"), {"audio": "laion_clap:a|b", "text": "laion_clap:t"}),
        "clip": SpaceInfo("id2", ("image", "text"), {"image": "open_clip:i"}),
    }
    info = ConnectorInfo(spaces, method, {"seed": 7}, {"torch": "2.9"}, {"laion_clap:t": "CC0-1.0"})
    return Connector({name: build_projector(spec) for name, spec in specs.items()}, info)


def test_model_card_says_what_the_connector_joins_and_what_is_not_known() -> None:
    card = model_card(connector("c-mcr", clap=ProjectorSpec("mlp", 512, 256), clip=ProjectorSpec("half", 384, 256)))
    for part in (
        "# Connector of clap and clip",
        "It compares audio with image, which no training pair ever joined.",
        "| `clap` | audio | `laion_clap:a\\|b` | 512 | Linear 512-1024, BN, ReLU, Linear 1024-256, BN |",
        "| `clip` | text | not stated | 384 | Linear 384-256, BN, ReLU |",
        "--audio FILE",
        'connector.similarity(vectors, others, spaces=("clap", "clip"))',
        "60.58 to 23.16",
        '"seed": 7',
        "torch 2.9",
        "| laion_clap:t | CC0-1.0 |",
        "| open_clip:i | not stated |",
    ):
        assert part in card
    assert card.endswith("\n")
    assert "curve.png" in card


def test_model_card_of_a_kept_space_and_a_linear_map_says_so() -> None:
    specs = {"clap": ProjectorSpec("affine", 4, 6, centred=True), "clip": ProjectorSpec("identity", 6, 6)}
    card = model_card(connector("procrustes", **specs))
    assert "Kept as they are: `clip`" in card
    assert "| minus a mean, matrix 4 × 6 |" in card
    assert "computed in closed form" in card
    assert "23.16" not in card
    bridge = ProjectorSpec("bridge", 4, 6, rows=36000, scale=30.0)
    assert "softmax over 36,000 overlap items at scale 30" in model_card(
        connector("bridge", **{**specs, "clap": bridge})
    )
