"""The data kit as caches and recipes, so that `cmcr compare` runs on it: ``python scripts/kit_caches.py KIT OUTPUT``.

Everything goes through the public import of .npy files. Two recipes are written beside the caches:

``audio_image.toml``
    Sounds and photographs that only captions connect: macro mAP and P@10 over twelve classes, without (core) and with
    (full) photographs of other classes.
``clip_minilm.toml``
    Captions in MiniLM and photographs in CLIP that only class names connect: R@1, 5, 10.

Ties count as in the kit's own tables. Labels, class names and test sets are named in ``[[eval]]`` and ``[[damage]]``
only: no fit reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import cmcr
import numpy as np

Record = dict[str, Any]

AUDIO_IMAGE = """\
# Made by scripts/kit_caches.py. Sounds find photographs through captions alone.
[space.audio_text]
overlap = "caches/captions-audio"
bank = "caches/sounds"
[space.image_text]
overlap = "caches/captions-image"
bank = "caches/photographs"

[fit]
method = "c-mcr"
output = "connector"

[[eval]]                                  # 181 sounds, 216 photographs of the twelve classes
name = "core"
query = "caches/test-sounds"
gallery = "caches/test-photographs"
label = "label"
no_class = ["other"]
distractors = false
ties = "optimistic"
[[eval]]                                  # the same sounds, all 820 photographs
name = "full"
query = "caches/test-sounds"
gallery = "caches/test-photographs"
label = "label"
no_class = ["other"]
ties = "optimistic"

[[damage]]                                # twelve class names among photographs
name = "photographs"
query = "caches/test-photographs"
classes = "caches/names-photographs"
label = "label"
[[damage]]                                # 50 classes of ESC-50
name = "ESC-50"
query = "caches/test-esc50"
classes = "caches/names-esc50"
label = "label"
[[damage]]                                # 10 kinds of animals
name = "animals"
query = "caches/test-animals"
classes = "caches/names-animals"
label = "label"
"""

CLIP_MINILM = """\
# Made by scripts/kit_caches.py. Captions in MiniLM find photographs in CLIP through class names alone.
[space.minilm]
overlap = "caches/names-minilm"
bank = "caches/captions-minilm"
[space.clip]
overlap = "caches/names-clip"
bank = "caches/photographs-clip"

[fit]
method = "c-mcr"
output = "connector"
batch_size = 512                          # 1,612 names

[[eval]]                                  # caption 0 of each of 500 photographs
name = "captions"
query = "caches/test-captions"
gallery = "caches/test-photographs-clip"
ties = "optimistic"
[[eval]]                                  # all five captions of each
name = "five captions"
query = "caches/test-captions5"
gallery = "caches/test-photographs-clip"
ties = "optimistic"
"""

# Rows that reproduce the kit's printed baselines with --methods; the same in both recipes.
ROWS = """
[compare.procrustes-raw]
method = "procrustes"
options = { centre = "none" }
[compare.ridge-raw]
method = "ridge"
options = { centre = "none" }
[compare.ridge-cv]
method = "ridge"
options = { penalty = "auto" }
[compare.bridge-raw]
method = "bridge"
options = { centre = "none" }
"""


def main() -> None:
    """Make caches and recipes; run again, what is there already stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, help="import only so many captions of the overlap, evenly spread")
    given = parser.parse_args()
    for folder in kit_caches(given.kit, given.output, rows=given.rows):
        print(f"cmcr compare --config {folder} --methods bridge,ridge,procrustes,identity")


def kit_caches(kit: Path, output: Path, *, rows: int | None = None) -> list[Path]:
    """Caches and recipes of both parts of the kit; the recipes' paths."""
    with tempfile.TemporaryDirectory() as scratch:
        audio_image(kit, output / "audio_image" / "caches", Path(scratch), rows)
        clip_minilm(kit, output / "clip_minilm" / "caches", Path(scratch))
    made = []
    for name, text in (("audio_image", AUDIO_IMAGE), ("clip_minilm", CLIP_MINILM)):
        place = output / name / f"{name}.toml"
        place.write_text(text + ROWS, encoding="utf-8")
        made.append(place)
    return made


def audio_image(kit: Path, caches: Path, scratch: Path, rows: int | None) -> None:
    """Caches of the two spaces that share captions."""
    texts = (kit / "texts.txt").read_text(encoding="utf-8").splitlines()
    kept = np.arange(len(texts)) if rows is None else np.linspace(0, len(texts) - 1, rows).astype(np.int64)
    keys = [{"id": f"caption/{n:05d}", "text": texts[n]} for n in kept]
    audio, image, test = (lines(kit / name) for name in _TESTS)
    names = lines(kit / "class_texts.jsonl")
    save = _Saver(kit, caches, scratch)
    for side in ("audio", "image"):
        save(f"captions-{side}", f"{side}_text/texts.npy", f"{side}_text", "text", keys, kept, caption_field="text")
    save("sounds", "audio_text/audio_memory.npy", "audio_text", "audio", only_keys(audio))
    save("photographs", "image_text/image_memory.npy", "image_text", "image", only_keys(image))
    save(
        "test-sounds", "audio_image/test_audio.npy", "audio_text", "audio", lines(kit / "audio_image/test_audio.jsonl")
    )
    pictures = lines(kit / "audio_image/test_image.jsonl")
    save("test-photographs", "audio_image/test_image.npy", "image_text", "image", pictures)
    for name, source, flag in (("esc50", "esc50", "esc50"), ("animals", "animal-sound", "animal_sound")):
        mine = np.array([n for n, one in enumerate(test) if one["source"] == source])
        save(f"test-{name}", "audio_text/test_audio.npy", "audio_text", "audio", [test[n] for n in mine], mine)
        _classes(save, f"names-{name}", "audio_text", names, [one[flag] for one in names])
    _classes(save, "names-photographs", "image_text", names, [one["benchmark"] for one in names])


_TESTS = ("audio_text/audio_memory.jsonl", "image_text/image_memory.jsonl", "audio_text/test_audio.jsonl")


def _classes(save: _Saver, cache: str, space: str, names: list[Record], wanted: Sequence[bool]) -> None:
    """A cache of class names, their names as keys."""
    rows = np.flatnonzero(wanted)
    save(cache, f"{space}/class_texts.npy", space, "text", [{"id": names[n]["name"]} for n in rows], rows)


def clip_minilm(kit: Path, caches: Path, scratch: Path) -> None:
    """Caches of MiniLM and CLIP, which share class names."""
    save = _Saver(kit, caches, scratch)
    names = [
        {"id": f"{one['source_list']}/{n:04d}", "text": one["minilm_prompt"]}
        for n, one in enumerate(lines(kit / "clip_minilm/names.jsonl"))
    ]
    save("names-minilm", "clip_minilm/names_minilm.npy", "minilm", "text", names, caption_field="text")
    save("names-clip", "clip_minilm/names_clip_text.npy", "clip", "text", names, caption_field="text")
    save("captions-minilm", "clip_minilm/caption_memory_minilm.npy", "minilm", "text")
    save("photographs-clip", "clip_minilm/image_memory_clip.npy", "clip", "image")
    test = [{"id": one["flickr8k_image"]} for one in lines(kit / "clip_minilm/test.jsonl")]
    save("test-captions", "clip_minilm/test_caption_minilm.npy", "minilm", "text", test)
    save("test-photographs-clip", "clip_minilm/test_image_clip.npy", "clip", "image", test)
    five = [{"id": f"{one['id']}#{n}"} for one in test for n in range(5)]
    save("test-captions5", "clip_minilm/test_captions5_minilm.npy", "minilm", "text", five)


class _Saver:
    """Imports one array of the kit as a cache, whole or some of its rows."""

    def __init__(self, kit: Path, caches: Path, scratch: Path) -> None:
        self.kit, self.caches, self.scratch = kit, caches, scratch

    def __call__(
        self,
        name: str,
        npy: str,
        space: str,
        modality: str,
        records: list[Record] | None = None,
        rows: np.ndarray | None = None,
        caption_field: str | None = None,
    ) -> None:
        vectors = np.load(self.kit / npy)
        vectors = vectors.reshape(-1, vectors.shape[-1])  # (N, D); captions of one item come as (N, 5, D)
        array = self.scratch / f"{name}.npy"
        np.save(array, vectors if rows is None else vectors[rows])
        keys: str | Path = "rows"
        if records is not None:
            keys = self.scratch / f"{name}.jsonl"
            keys.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        cmcr.import_npy(
            array,
            self.caches / name,
            keys=keys,
            caption_field=caption_field,
            space=space,
            modality=modality,
            dtype=str(vectors.dtype),
        )


def lines(path: Path) -> list[Record]:
    """Objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def only_keys(records: list[Record]) -> list[Record]:
    """Keys alone: the ids of a memory carry the class, which nothing that claims to need no labels may read."""
    return [{"id": f"{n:06d}"} for n in range(len(records))]


if __name__ == "__main__":
    main()
