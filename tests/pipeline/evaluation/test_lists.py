"""Official lists beside a media folder: what is found, what is missing, and that encode and evaluate take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import CmcrError
from cmcr.cli import app
from cmcr.pipeline.corpora import open_corpus
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.evaluation.items import read_items
from cmcr.pipeline.evaluation.lists.benchmarks import BENCHMARKS, ListOptions
from cmcr.pipeline.evaluation.lists.prepare import prepare
from cmcr.pipeline.relevance import read_pairs
from typer.testing import CliRunner

CAPTIONS = {"annotations": [{"image_id": 7, "caption": f"text {n}\n"} for n in range(6)]}
LISTS: dict[str, tuple[str, str, list[str]]] = {  # name of the list, its text, media files
    "ave": ("a.txt", "Category&VideoID&Quality&Start&End\nBark&v1&good&0&10\nDog&v1&good&2&5\nCat&-v2&good&0&3\n",
            ["sounds/v1.wav", "frames/v1.jpg", "frames/-v2.jpg"]),
    "vggss": ("v.json", json.dumps([{"file": "v_1", "class": "c", "bbox": [[0, 0, 1, 0.5]]},
                                    {"file": "v_2", "class": "d", "bbox": []}]), ["v_1.wav", "v_1.jpg", "v_2.jpg"]),
    "flickr-soundnet": ("f.csv", "11,202\n12,0\n", ["11.wav", "11.jpg"]),
    "modelnet40": ("m.txt", "night_stand_0201\nsofa_0001\n",
                   ["night_stand/night_stand_0201.npy", "sofa/sofa_0001.off"]),
    "esc50": ("e.csv", "filename,fold,target,category\n1-1-A-0.wav,1,0,dog\n2-1-A-0.wav,2,0,dog\n", ["1-1-A-0.wav"]),
    "audiocaps": ("c.csv", 'audiocap_id,youtube_id,start_time,caption\n5,y1,30,"a, b"\n6,y1,30,c\n7,y2,10,d\n',
                  ["Yy1.wav"]),
    "clotho": ("l.csv", "file_name," + ",".join(f"caption_{n}" for n in range(1, 6)) + "\nrain (1).wav,a,b,c,d,e\n",
               ["rain (1).wav"]),
    "coco": ("o.json", json.dumps({"images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 8, "file_name": "8.jpg"}],
                                   **CAPTIONS}), ["val2017/000007.jpg"]),
}  # fmt: skip


def media(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_list_is_paired_and_its_tables_are_inputs_of_encode(name: str, tmp_path: Path) -> None:
    file, text, files = LISTS[name]
    (tmp_path / file).write_text(text, encoding="utf-8")
    made = prepare(name, media=media(tmp_path / "media", files), list_file=tmp_path / file, output=tmp_path / "out")
    for modality in BENCHMARKS[name].modalities:
        table = tmp_path / "out" / f"{modality}.jsonl"
        rows = records(table)
        assert rows, modality
        corpus = open_corpus([table], modality)  # type: ignore[arg-type]
        items = [item for unit in corpus.plan([], 1000).units for item in corpus.read(unit)]
        assert len(items) == sum(len(row.get("caption", [0])) for row in rows)
        assert all(isinstance(item, Item) for item in items)
        if modality != "text":
            assert made.found[modality] + len(made.missing[modality]) == made.entries
            assert all((table.parent / row["path"]).exists() for row in rows)
    report = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert report["missing"] == {key: list(value) for key, value in made.missing.items()}
    assert made.lines()[0].endswith("items in the list")


def test_what_each_list_says_is_kept(tmp_path: Path) -> None:
    found = {}
    for name, (file, text, files) in LISTS.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
        output = tmp_path / name
        made = prepare(name, media=media(tmp_path / f"m-{name}", files), list_file=tmp_path / file, output=output)
        found[name] = made, output
    made, out = found["ave"]
    assert [row["key"] for row in records(out / "audio.jsonl")] == ["v1", "v1_2"]  # one video, two events
    assert made.missing == {"audio": ("-v2",), "image": ()}
    assert read_pairs(out / "pairs.csv") == [(2, ("v1", "v1")), (3, ("v1_2", "v1_2"))]
    assert (out / "classes.txt").read_text() == "Bark\nCat\nDog\n"
    (item,) = read_items(found["vggss"][1] / "items.jsonl")
    assert item.boxes == ((0.0, 0.0, 1.0, 0.5),)
    assert item.path == (found["vggss"][1] / "../m-vggss/v_1.jpg")
    assert item.path.exists()
    (row,) = records(found["modelnet40"][1] / "pointcloud.jsonl")
    assert (row["key"], row["label"]) == ("night_stand_0201", "night stand")
    assert found["modelnet40"][0].missing["pointcloud"] == ("sofa_0001",)  # a mesh is no point cloud
    assert records(found["audiocaps"][1] / "text.jsonl")[0] == {"key": "y1_30", "caption": ["a, b", "c"]}
    assert [pair for _, pair in read_pairs(found["audiocaps"][1] / "pairs.csv")] == [
        ("y1_30", "y1_30#0"), ("y1_30", "y1_30#1"),
    ]  # fmt: skip
    assert records(found["coco"][1] / "text.jsonl")[0]["caption"] == [f"text {n}" for n in range(5)]
    assert records(found["clotho"][1] / "audio.jsonl")[0]["key"] == "rain (1)"


def test_karpathys_split_and_folds_choose_a_part(tmp_path: Path) -> None:
    images = [{"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "a"}]} for n, split in enumerate("ab")]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    assert [e.key for e in BENCHMARKS["coco"].read(tmp_path / "k.json", ListOptions(split="b"))] == ["1"]
    (tmp_path / "e.csv").write_text(LISTS["esc50"][1])
    assert len(BENCHMARKS["esc50"].read(tmp_path / "e.csv", ListOptions(split="2"))) == 1


def test_flickr_boxes_come_from_xml_and_need_two_annotators(tmp_path: Path) -> None:
    box = "<bbox><name>{}</name><a>0</a><b>64</b><c>128</c><d>256</d></bbox>"
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "11.xml").write_text(f"<r><one>{box}</one><two>{box}</two></r>")
    (tmp_path / "f.csv").write_text("11,202\n")
    (tmp_path / "s.csv").write_text("video,audio,label\n11,99,non-sounding\n")
    options = ListOptions(annotations=tmp_path / "xml", silent=tmp_path / "s.csv")
    folder = media(tmp_path / "m", ["11.wav", "11.jpg", "99.wav"])
    prepare("flickr-soundnet", media=folder, list_file=tmp_path / "f.csv", output=tmp_path / "o", options=options)
    sounding, silent = read_items(tmp_path / "o" / "items.jsonl")
    assert sounding.boxes == ((0.0, 0.25, 0.5, 1.0),) * 2
    assert sounding.consensus == 2
    assert (silent.audio, silent.image, silent.boxes) == ("99", "11", ())
    assert [row["key"] for row in records(tmp_path / "o" / "image.jsonl")] == ["11"]  # one frame, two items
    assert [row["key"] for row in records(tmp_path / "o" / "audio.jsonl")] == ["11", "99"]


def test_bad_lists_and_folders_get_one_clear_line(tmp_path: Path) -> None:
    folder = media(tmp_path / "m", ["x.wav"])
    cases = [
        ("kinetics", "", "no benchmark"), ("ave", "a&b\n", "line 1"), ("ave", "", "no items"),
        ("vggss", "{", "no JSON"),
        ("vggss", '[{"file": "a"}]', "form of this benchmark"), ("esc50", "a,b\n1,2\n", "no column 'filename'"),
        ("modelnet40", "sofa\n", "no shape"), ("flickr-soundnet", "1,2\n1,3\n", "twice"),
        ("ave", "B&q&g&0&1\n", "None of"),
    ]  # fmt: skip
    for number, (name, text, message) in enumerate(cases):
        (tmp_path / f"{number}").write_text(text)
        with pytest.raises(CmcrError) as caught:
            prepare(name, media=folder, list_file=tmp_path / f"{number}", output=tmp_path / "out")
        assert message in str(caught.value), (name, text)
    with pytest.raises(CmcrError, match="media folder does not exist"):
        prepare("clotho", media=tmp_path / "gone", list_file=_saved(tmp_path, "clotho"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _saved(folder: Path, name: str) -> Path:
    file, text, _ = LISTS[name]
    (folder / file).write_text(text, encoding="utf-8")
    return folder / file


@pytest.mark.kit
def test_the_official_lists_of_the_kit_are_read_whole(kit: Path, tmp_path: Path) -> None:
    home = kit / "official" / "audio_visual"
    ave = BENCHMARKS["ave"].read(home / "AVE_Annotations.txt", ListOptions())
    assert len(ave) == len({entry.key for entry in ave}) == 4143
    assert len({entry.label for entry in ave}) == 28
    vggss = BENCHMARKS["vggss"].read(home / "vggss.json.gz", ListOptions(silent=home / "vggss_test_plus_silent.csv"))
    assert sum(bool(entry.boxes) for entry in vggss) == 5158
    assert sum(entry.boxes == () for entry in vggss) == 5158
    assert sum(entry.key.startswith("silent/") for entry in vggss) == 379
    folder = media(tmp_path / "m", ["audio/zpWuikVorYg_000032.wav", "frames/zpWuikVorYg_000032.jpg"])
    result = CliRunner().invoke(app, [
        "evaluate", "prepare", "vggss", "--media", str(folder), "--list", str(home / "vggss.json.gz"),
        "--silent", str(home / "vggss_test_plus_silent.csv"), "--output", str(tmp_path / "out"), "--json",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["found"] == {"audio": 6, "image": 1}  # the sound is also the wrong one of five other frames
    assert len(report["missing"]["audio"]) == 10310
