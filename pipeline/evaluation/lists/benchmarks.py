"""The official lists as entries: AVE, VGG-SS, Flickr-SoundNet, ModelNet40, ESC-50, AudioCaps, Clotho, COCO.

Each reader is a function of the list's path and :class:`ListOptions`; formats and sources are in
``docs/evaluation.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....cache.errors import CmcrError
from .entries import Box, Entry
from .tables import malformed, read_json, read_records, read_rows, read_text, read_xml_boxes

_FLICKR_SIDE = 256


@dataclass(frozen=True)
class ListOptions:
    """What a list needs beside itself.

    Parameters
    ----------
    annotations : path, optional
        Flickr-SoundNet: folder of the XML files with boxes.
    silent : path, optional
        VGG-SS and Flickr-SoundNet: SLAVC's extended list, of which the non-sounding lines are added.
    split : str, optional
        COCO in Karpathy's form: the split; ESC-50: the fold.
    """

    annotations: str | Path | None = None
    silent: str | Path | None = None
    split: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: what it is called, its modalities, and the reader of its list."""

    name: str
    title: str
    modalities: tuple[str, ...]
    read: Callable[[Path, ListOptions], list[Entry]]
    localization: bool = False
    consensus: int = 1


def read_ave(path: Path, options: ListOptions) -> list[Entry]:
    """AVE (Tian et al. 2018): ``category&video&quality&start&end``; a header line starts with ``Category``."""
    entries, seen = [], dict[str, int]()
    for line, cells in read_rows(path, "&"):
        if cells[0] == "Category":
            continue
        if len(cells) != 5:
            raise CmcrError(f"{len(cells)} fields, AVE has five.", where=f"{path}, line {line}")
        label, video, quality, start, end = cells
        # a video that is listed with several events keeps its name the first time
        seen[video] = seen.get(video, 0) + 1
        key = video if seen[video] == 1 else f"{video}_{seen[video]}"
        names = (f"{video}_{start}_{end}", video)
        extra = {"quality": quality, "start": start, "end": end}
        entries.append(Entry(key, {"audio": names, "image": names}, label, extra=extra))
    return entries


def read_vggss(path: Path, options: ListOptions) -> list[Entry]:
    """VGG-SS (Chen et al. 2021), ``vggss.json``: a list of ``file``, ``class`` and ``bbox`` in shares."""
    try:
        entries = [
            Entry(_text(record["file"]), _both(_text(record["file"])), record["class"], boxes=_shares(record["bbox"]))
            for record in read_json(path)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(path, error) from error
    return entries + _silent(options, {entry.key for entry in entries})


def read_flickr(path: Path, options: ListOptions) -> list[Entry]:
    """Flickr-SoundNet (Senocak et al. 2018): first column of ``flickr_test.csv``, boxes from the XML folder."""
    entries = []
    for _, cells in read_rows(path):
        boxes = None
        if options.annotations is not None:
            found = read_xml_boxes(Path(options.annotations) / f"{cells[0]}.xml")
            boxes = tuple(_share_of(box) for box in found)
        entries.append(Entry(cells[0], _both(cells[0]), boxes=boxes))
    return entries + _silent(options, {entry.key for entry in entries})


def _silent(options: ListOptions, known: set[str]) -> list[Entry]:
    """Non-sounding lines of SLAVC's extended list: ``video,audio,label``."""
    if options.silent is None:
        return []
    entries = []
    for line, record in read_records(options.silent, ("video", "audio", "label")):
        if record["label"] != "non-sounding":
            continue
        video, audio = record["video"], record["audio"]
        key = f"silent/{video}" if video == audio else f"mismatched/{video}+{audio}"
        if key in known:
            raise CmcrError(f"{key} is listed twice.", where=f"{options.silent}, line {line}", todo="keep one line")
        known.add(key)
        entries.append(Entry(key, {"audio": (audio,), "image": (video,)}, boxes=()))
    return entries


def read_modelnet40(path: Path, options: ListOptions) -> list[Entry]:
    """ModelNet40, ``modelnet40_test.txt``: a shape a line, ``night_stand_0201``; its class is the part before."""
    entries = []
    for number, line in enumerate(read_text(path).split(), 1):
        found = re.fullmatch(r"(.+)_(\d+)", line)
        if found is None:
            raise CmcrError(f"{line!r} is no shape of ModelNet40.", where=f"{path}, entry {number}")
        label = found[1]
        entries.append(Entry(line, {"pointcloud": (f"{label}/{line}", line)}, label.replace("_", " ")))
    return entries


def read_esc50(path: Path, options: ListOptions) -> list[Entry]:
    """ESC-50 (Piczak 2015), ``meta/esc50.csv``: columns filename, fold, target, category."""
    return [
        Entry(_stem(r["filename"]), {"audio": (_stem(r["filename"]),)}, r["category"], extra={"fold": r["fold"]})
        for _, r in read_records(path, ("filename", "fold", "target", "category"))
        if options.split is None or r["fold"] == options.split
    ]


def read_audiocaps(path: Path, options: ListOptions) -> list[Entry]:
    """AudioCaps (Kim et al. 2019): columns audiocap_id, youtube_id, start_time, caption; a clip has several lines."""
    captions: dict[tuple[str, str], list[str]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    for _, record in read_records(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
        clip = record["youtube_id"], record["start_time"]
        captions.setdefault(clip, []).append(record["caption"])
        numbers.setdefault(clip, []).append(record["audiocap_id"])
    entries = []
    for (video, start), texts in captions.items():
        begin = start.removesuffix(".0")
        names = (f"{video}_{begin}", video, f"Y{video}", f"Y{video}_{begin}", *numbers[video, start])
        entries.append(Entry(f"{video}_{begin}", {"audio": names}, captions=tuple(texts)))
    return entries


def read_clotho(path: Path, options: ListOptions) -> list[Entry]:
    """Clotho (Drossos et al. 2020), ``clotho_captions_evaluation.csv``: file_name, caption_1 to caption_5."""
    columns = [f"caption_{n}" for n in range(1, 6)]
    return [
        Entry(
            _stem(record["file_name"]),
            {"audio": (_stem(record["file_name"]),)},
            captions=tuple(record[name] for name in columns),
        )
        for _, record in read_records(path, ("file_name", *columns))
    ]


def read_coco(path: Path, options: ListOptions) -> list[Entry]:
    """COCO captions: ``captions_val2017.json``, or a split (test, if not said) of Karpathy's ``dataset_coco.json``.

    The first five captions of an image, as the published 5K tables count them.
    """
    data = read_json(path)
    try:
        if "annotations" not in data:
            wanted = options.split or "test"
            images = [image for image in data["images"] if image["split"] == wanted]
            listed = [(_stem(image["filename"]), [s["raw"] for s in image["sentences"]]) for image in images]
        else:
            texts: dict[Any, list[str]] = {}
            for note in data["annotations"]:
                texts.setdefault(note["image_id"], []).append(note["caption"])
            listed = [(_stem(image["file_name"]), texts.get(image["id"], [])) for image in data["images"]]
    except (KeyError, TypeError) as error:
        raise malformed(path, error) from error
    return [
        Entry(name, {"image": (name,)}, captions=tuple(" ".join(text.split()) for text in captions[:5]))
        for name, captions in listed
    ]


def _both(name: str) -> dict[str, tuple[str, ...]]:
    return {"audio": (name,), "image": (name,)}


def _stem(name: str) -> str:
    """A file name without its folder and last extension."""
    return re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name.rpartition("/")[2])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name")
    return value


def _shares(boxes: Any) -> tuple[Box, ...]:
    return tuple((float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in boxes)


def _share_of(box: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = (side / _FLICKR_SIDE for side in box)
    return left, top, right, bottom


BENCHMARKS: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark("ave", "AVE", ("audio", "image"), read_ave),
        Benchmark("vggss", "VGG-SS", ("audio", "image"), read_vggss, localization=True),
        Benchmark(
            "flickr-soundnet", "Flickr-SoundNet", ("audio", "image"), read_flickr, localization=True, consensus=2
        ),
        Benchmark("modelnet40", "ModelNet40", ("pointcloud",), read_modelnet40),
        Benchmark("esc50", "ESC-50", ("audio",), read_esc50),
        Benchmark("audiocaps", "AudioCaps", ("audio", "text"), read_audiocaps),
        Benchmark("clotho", "Clotho", ("audio", "text"), read_clotho),
        Benchmark("coco", "COCO", ("image", "text"), read_coco),
    )
}
