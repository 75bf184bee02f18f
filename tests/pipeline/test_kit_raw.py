"""The kit's raw files through whole encode runs: every item ends as its MANIFEST says, and none is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import cmcr
import pytest

pytestmark = pytest.mark.kit

SPACE = {"text": "clip", "image": "clip", "audio": "clap", "pointcloud": "ulip"}
SUFFIXES = {".jpg": "image", ".png": "image", ".gif": "image", ".wav": "audio", ".npy": "pointcloud"}
# What each expectation of bad/MANIFEST.jsonl means for a run: a row, or a line of the ledger.
FAILS = (
    "must fail",
    "decode fails",
    "must be reported",
    "must be caught",
    "non-finite input must be caught",
    "must be refused",
)


@pytest.fixture(scope="module")
def encoded(kit: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """``encoded(modality, *inputs)``: the cache and the ledger by key."""
    place = tmp_path_factory.mktemp("raw")
    made: dict[tuple[str, ...], Path] = {}

    def run(modality: str, *inputs: Path):  # type: ignore[no-untyped-def]
        name = (modality, *map(str, inputs))
        if name not in made:
            made[name] = place / f"cache-{len(made)}"
            cmcr.encode(list(inputs), made[name], modality=modality, encoder=f"sandbox:{SPACE[modality]}")
        cache = cmcr.open_cache(made[name])
        return cache, list(cache.failures())

    return run


def manifest(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "MANIFEST.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("modality", "folder", "count"),
    [
        ("image", "images", 64),
        ("audio", "audio", 48),
        ("pointcloud", "points", 40),
        ("text", "text/captions.txt", 2000),
    ],
)
def test_every_good_file_of_the_kit_gets_a_row(encoded, kit: Path, modality: str, folder: str, count: int) -> None:  # type: ignore[no-untyped-def]
    cache, ledger = encoded(modality, kit / "raw" / folder)
    assert len(cache) == count
    assert not ledger


def test_every_bad_media_file_ends_as_its_manifest_expects(encoded, kit: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = []
    for entry in manifest(kit / "raw" / "bad"):
        modality = SUFFIXES.get(Path(entry["file"]).suffix)
        if modality is None:
            continue
        cache, ledger = encoded(modality, kit / "raw" / "bad")
        key = Path(entry["file"]).stem
        row, lines = key in set(cache.keys()), [f for f in ledger if f.key == key and f.lost]
        fails = any(word in entry["expect"] for word in FAILS)
        either = " or " in entry["expect"] and not fails  # the manifest leaves it open: a row, or a clear refusal
        recorded_once = row != bool(lines)
        ended_well = recorded_once and (either or row != fails)
        if not ended_well or any(not f.message for f in lines):
            wrong.append((entry["file"], entry["expect"], "row" if row else [f.message for f in lines]))
    assert not wrong


def test_bad_text_files_end_as_their_manifest_expects(encoded, kit: Path) -> None:  # type: ignore[no-untyped-def]
    bad = kit / "raw" / "bad"
    cache, ledger = encoded("text", bad / "non_utf8_line.txt")
    assert cache.keys() == ["non_utf8_line:000000001", "non_utf8_line:000000003"]
    assert [f.key for f in ledger] == ["non_utf8_line:000000002"]
    cache, ledger = encoded("text", bad / "empty_lines.txt")
    assert cache.keys() == ["empty_lines:000000001", "empty_lines:000000004"]
    assert [f.key for f in ledger] == ["empty_lines:000000002", "empty_lines:000000003"]
    cache, ledger = encoded("text", bad / "no_final_newline_crlf_bom.txt")
    assert len(cache) == 2
    assert not ledger
    assert not any(c for c in cache.captions([0, 1]) if c is None or "\ufeff" in c or "\r" in c)
    cache, _ = encoded("text", bad / "zero_bytes.txt")
    assert len(cache) == 0


WHOLE = {
    "good": 20,
    "truncated_at_member_boundary": 12,
    "truncated_mid_data": 7,
    "truncated_mid_header": 9,
    "missing_txt": 5,
    "corrupt_jpg_member": 5,
    "zero_bytes": 0,
    "duplicate_key": 6,
    "dotted_key": 1,
}
REPORTS = {
    "truncated_at_member_boundary": "end",
    "truncated_mid_data": "byte",
    "truncated_mid_header": "byte",
    "missing_txt": "txt",
    "corrupt_jpg_member": "000004",
    "zero_bytes": "",
    "duplicate_key": "000003",
    "dotted_key": "last-dot",
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_every_tar_ends_as_its_manifest_expects(encoded, kit: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    folder = kit / "raw" / "webdataset"
    assert {entry["file"] for entry in manifest(folder)} == {f"{known}.tar" for known in WHOLE}
    images, image_ledger = encoded("image", folder / f"{name}.tar")
    texts, text_ledger = encoded("text", folder / f"{name}.tar")
    assert len(set(images.keys()) & set(texts.keys())) == WHOLE[name]
    if name == "good":
        assert not image_ledger
        assert not text_ledger
        return
    reported = [f"{f.key}: {f.message}" for f in (*image_ledger, *text_ledger)]
    assert any(REPORTS[name] in line for line in reported), reported
