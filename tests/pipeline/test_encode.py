"""The encode run: rows, ledger, fixed batches, resume, append."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import CmcrError, CorpusError, EncoderError, FingerprintError, RecipeError
from cmcr.cache.join import join
from cmcr.cache.reader import open_cache
from cmcr.cache.verify import verify
from cmcr.pipeline.encode import EncodeConfig, encode, plan_encode
from cmcr.pipeline.progress import Event, RichProgress

FILE = Path(__file__).with_name("my_encoders.py")


@pytest.fixture(scope="module")
def mine() -> ModuleType:
    """The encoders of my_encoders.py, as a module."""
    spec = importlib.util.spec_from_file_location("my_encoders_of_test_encode", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def captions(count: int, first: int = 0) -> list[str]:
    return [f"caption number {i}" for i in range(first, first + count)]


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def content(cache: Path) -> dict[str, bytes]:
    """Every file of a cache that has to be the same in every run."""
    files = sorted(p for p in cache.rglob("*") if p.is_file())
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in files if p.relative_to(cache).parts[0] != "runs"}


def vectors_by_key(cache: Path) -> dict[str, bytes]:
    opened = open_cache(cache)
    rows = opened.rows(np.arange(len(opened)), normalize=False)
    return dict(zip(opened.keys(), (row.tobytes() for row in rows), strict=True))


def test_texts_become_rows_in_the_order_of_the_file(tmp_path: Path) -> None:
    texts = captions(103)
    report = encode(
        write(tmp_path / "day.txt", texts),
        tmp_path / "cache",
        modality="text",
        encoder=f"{FILE}:OtherTable",
        shard_size=20,
        batch_size=8,
        dtype="float32",
    )
    cache = open_cache(tmp_path / "cache")
    assert (report.rows, report.failed, report.shards_now, len(cache)) == (103, 0, 6, 103)
    assert cache.keys([0, 102]) == ["day:000000001", "day:000000103"]
    assert cache.captions(np.arange(103)) == texts
    assert cache.manifest.encoder == f"{FILE.name}:OtherTable"
    assert verify(tmp_path / "cache").ok


def test_vectors_are_those_of_the_encoder_batch_by_batch(tmp_path: Path, mine: ModuleType) -> None:
    texts = captions(45)
    encode(
        write(tmp_path / "t.txt", texts), tmp_path / "cache", modality="text", encoder=mine.TextTable(), shard_size=20,
        batch_size=8, dtype="float32",
    )  # fmt: skip
    bare = mine.TextTable()
    blocks = [(s, min(s + 8, e)) for b, e in ((0, 20), (20, 40), (40, 45)) for s in range(b, e, 8)]
    want = np.concatenate([bare.encode(texts[s:e]) for s, e in blocks])
    got = open_cache(tmp_path / "cache").rows(np.arange(45), normalize=False)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("bad", ["!decode", "!item", "!value", "!nan", "!zero", ""])
def test_bad_items_leave_their_neighbours_bits_alone(tmp_path: Path, mine: ModuleType, bad: str) -> None:
    good = captions(70)
    holes = {3: bad, 8: bad, 9: bad, 69: bad}
    spoiled = [holes.get(i, text) + (f" {i}" if i in holes and bad else "") for i, text in enumerate(good)]
    settings: dict[str, Any] = {"modality": "text", "shard_size": 32, "batch_size": 8}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    encode(write(tmp_path / "a" / "t.txt", good), tmp_path / "clean", encoder=mine.TextTable(), **settings)
    report = encode(write(tmp_path / "b" / "t.txt", spoiled), tmp_path / "holed", encoder=mine.TextTable(), **settings)
    clean, holed = vectors_by_key(tmp_path / "clean"), vectors_by_key(tmp_path / "holed")
    lost = [f"t:{i + 1:09d}" for i in holes]
    assert holed == {key: row for key, row in clean.items() if key not in lost}
    failures = list(open_cache(tmp_path / "holed").failures())
    assert [failure.key for failure in failures] == lost
    assert report.failed == 4
    kind = {"!decode": "ItemError", "!item": "ItemError", "!value": "ValueError", "!nan": "NonFiniteVector"}
    kind |= {"!zero": "ZeroVector", "": "BlankLine"}
    assert report.errors == {kind[bad]: 4}
    assert not any("0x" in failure.message for failure in failures)


def test_the_same_run_twice_gives_identical_files(tmp_path: Path) -> None:
    texts = [*captions(50), "!item", *captions(20, 50)]
    source = write(tmp_path / "t.txt", texts)
    for name in ("one", "two"):
        encode(
            source,
            tmp_path / name,
            modality="text",
            encoder=f"{FILE}:TextTable",
            shard_size=16,
            batch_size=8,
            workers=2,
        )
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_interrupted_run_resumes_to_the_bytes_of_an_undisturbed_one(tmp_path: Path, mine: ModuleType) -> None:
    source = write(tmp_path / "t.txt", [*captions(90), "!nan", *captions(9, 90)])
    settings: dict[str, Any] = {"modality": "text", "shard_size": 10, "batch_size": 4}
    encode(source, tmp_path / "whole", encoder=mine.TextTable(), **settings)

    def stop_after(shards: int) -> Any:
        count = 0

        def show(event: Event) -> None:
            nonlocal count
            count += event.kind == "shard"
            if count == shards and event.kind == "advance":
                raise KeyboardInterrupt

        return show

    with pytest.raises(KeyboardInterrupt):
        encode(source, tmp_path / "torn", encoder=mine.TextTable(), progress=stop_after(4), **settings)
    rest = mine.TextTable()
    report = encode(source, tmp_path / "torn", encoder=rest, **settings)
    assert (report.shards_before, report.shards_now) == (4, 6)
    assert min(int(text.rsplit(" ", 1)[1]) for text in rest.seen if text[0] != "!") == 40
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_two_encoders_over_one_corpus_are_row_parallel_and_join_without_loss(tmp_path: Path, mine: ModuleType) -> None:
    source = write(tmp_path / "t.txt", captions(77))
    encode(source, tmp_path / "one", modality="text", encoder=mine.TextTable(), shard_size=25, batch_size=8)
    encode(source, tmp_path / "two", modality="text", encoder=mine.OtherTable(), shard_size=25, batch_size=5)
    one, two = open_cache(tmp_path / "one"), open_cache(tmp_path / "two")
    joined = join(one, two)
    assert (joined.report.matched, joined.report.left_only, joined.report.right_only) == (77, 0, 0)
    assert np.array_equal(joined.left, joined.right)
    assert (tmp_path / "one" / "plan-00000.json").read_bytes() == (tmp_path / "two" / "plan-00000.json").read_bytes()


def test_appending_new_files_encodes_only_those(tmp_path: Path, mine: ModuleType) -> None:
    folder = tmp_path / "days"
    folder.mkdir()
    write(folder / "monday.txt", captions(30))
    settings: dict[str, Any] = {"modality": "text", "shard_size": 16, "batch_size": 8}
    encode(folder, tmp_path / "cache", encoder=mine.TextTable(), **settings)
    before = content(tmp_path / "cache")
    write(folder / "tuesday.txt", captions(11, 30))
    second = mine.TextTable()
    report = encode(folder, tmp_path / "cache", encoder=second, **settings)
    assert sorted(set(second.seen)) == sorted(captions(11, 30))
    assert (report.rows, report.known, report.shards_before) == (11, 30, 2)
    after = content(tmp_path / "cache")
    assert {name: data for name, data in after.items() if name in before} == before
    assert len(open_cache(tmp_path / "cache")) == 41


def test_retry_failed_takes_up_only_shards_with_failures(tmp_path: Path, mine: ModuleType) -> None:
    class Moody(mine.TextTable):  # type: ignore[misc,name-defined]
        mended = False

        def decode(self, item: Any) -> str:
            return str(item.data) if self.mended else super().decode(item)

    source = write(tmp_path / "t.txt", [*captions(10), "!decode", *captions(9, 10)])
    settings: dict[str, Any] = {"modality": "text", "shard_size": 5, "batch_size": 5}
    first = encode(source, tmp_path / "cache", encoder=Moody(), **settings)
    mended = Moody()
    mended.mended = True
    second = encode(source, tmp_path / "cache", encoder=mended, retry_failed=True, **settings)
    assert (first.failed, second.failed, second.shards_now, len(mended.seen)) == (1, 0, 1, 5)
    assert len(open_cache(tmp_path / "cache")) == 20
    assert verify(tmp_path / "cache").ok


def test_a_wrong_encoder_is_refused_before_anything_is_written(tmp_path: Path, mine: ModuleType) -> None:
    source = write(tmp_path / "t.txt", captions(3))
    for encoder in (mine.Pixels(), f"{FILE}:Pixels"):
        with pytest.raises(EncoderError, match="encodes image, not text"):
            encode(source, tmp_path / "cache", modality="text", encoder=encoder)
    with pytest.raises(EncoderError, match="has no Missing"):
        encode(source, tmp_path / "cache", modality="text", encoder=f"{FILE}:Missing")
    assert not (tmp_path / "cache").exists()


def test_another_encoder_does_not_go_on_with_a_cache(tmp_path: Path, mine: ModuleType) -> None:
    class Newer(mine.TextTable):  # type: ignore[misc,name-defined]
        def fingerprint(self) -> str:
            return "text-table-2"

    source = write(tmp_path / "t.txt", captions(30))
    encode(source, tmp_path / "cache", modality="text", encoder=mine.TextTable(), shard_size=10)
    with pytest.raises(FingerprintError, match="text-table-2"):
        encode(source, tmp_path / "cache", modality="text", encoder=Newer(), shard_size=10)
    kept = encode(source, tmp_path / "cache", modality="text", encoder=Newer(), shard_size=10, accept_fingerprint=True)
    assert (kept.shards_before, kept.shards_now) == (3, 0)
    made = encode(source, tmp_path / "cache", modality="text", encoder=Newer(), shard_size=10, overwrite=True)
    assert (made.shards_before, made.shards_now) == (0, 3)
    assert open_cache(tmp_path / "cache").manifest.fingerprint == "text-table-2"


def test_too_many_failures_end_the_run_after_the_shard_is_written(tmp_path: Path, mine: ModuleType) -> None:
    source = write(tmp_path / "t.txt", [*captions(10), *["!item"] * 6, *captions(14, 10)])
    settings: dict[str, Any] = {"modality": "text", "encoder": mine.TextTable(), "shard_size": 10, "batch_size": 5}
    with pytest.raises(CmcrError, match="6 of 20 items failed"):
        encode(source, tmp_path / "cache", max_failure_rate=0.25, **settings)
    assert len(open_cache(tmp_path / "cache")) == 14
    assert encode(source, tmp_path / "cache", max_failure_rate=0.25, **settings).rows == 10


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path, mine: ModuleType) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Cramped(mine.TextTable):  # type: ignore[misc,name-defined]
        by_batch = False

        def encode(self, batch: Sequence[str]) -> Any:
            if len(batch) > 3:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().encode(batch)

    source = write(tmp_path / "t.txt", captions(40))
    encoder = Cramped()
    report = encode(source, tmp_path / "cache", modality="text", encoder=encoder, batch_size=16)
    assert report.rows == 40
    assert report.failed == 0
    assert [note.rsplit(" ", 1)[1] for note in report.notes] == ["8", "4", "2"]
    assert max(encoder.sizes) == 2


def test_a_broken_encoder_ends_the_run_and_fills_no_ledger(tmp_path: Path, mine: ModuleType) -> None:
    class Breaks(mine.TextTable):  # type: ignore[misc,name-defined]
        def encode(self, batch: Sequence[str]) -> Any:
            if len(self.sizes) >= 3:
                raise RuntimeError("device-side assert triggered")
            return super().encode(batch)

    source = write(tmp_path / "t.txt", captions(60))
    with pytest.raises(EncoderError, match="fails on every input: RuntimeError: device-side assert"):
        encode(source, tmp_path / "cache", modality="text", encoder=Breaks(), shard_size=10, batch_size=5)
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 10
    assert list(cache.failures()) == []


@pytest.mark.parametrize(
    ("method", "error", "match"),
    [
        ("encode", lambda self, batch: np.zeros((len(batch), 3)), r"shape \(5, 3\)"),
        ("decode", lambda self, item: item.nothing, "decodes none of the first 5 items: AttributeError"),
    ],
)
def test_a_wrong_encoder_class_is_told_what_is_wrong(
    tmp_path: Path, mine: ModuleType, method: str, error: Any, match: str
) -> None:
    wrong = type("Wrong", (mine.TextTable,), {method: error})
    with pytest.raises(EncoderError, match=match):
        encode(write(tmp_path / "t.txt", captions(12)), tmp_path / "c", modality="text", encoder=wrong(), batch_size=5)


def test_vectors_of_other_length_are_normalised_and_that_is_said(tmp_path: Path, mine: ModuleType) -> None:
    class Long(mine.TextTable):  # type: ignore[misc,name-defined]
        def encode(self, batch: Sequence[str]) -> Any:
            return 3.0 * super().encode(batch)

    source = write(tmp_path / "t.txt", captions(9))
    report = encode(source, tmp_path / "cache", modality="text", encoder=Long(), batch_size=4, dtype="float32")
    rows = open_cache(tmp_path / "cache").rows(np.arange(9), normalize=False)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert len([note for note in report.notes if "normalised" in note]) == 1


def test_remarks_of_the_encoder_are_counted_and_lose_nothing(tmp_path: Path, mine: ModuleType) -> None:
    class Remarks(mine.TextTable):  # type: ignore[misc,name-defined]
        def remark(self, decoded: str) -> tuple[str, str] | None:
            return ("TruncatedText", "9 tokens, the first 8 kept") if decoded.endswith("7") else None

    source = write(tmp_path / "t.txt", captions(30))
    report = encode(source, tmp_path / "cache", modality="text", encoder=Remarks(), batch_size=8)
    assert (report.rows, report.failed, report.truncated, report.remarks) == (30, 0, 3, 3)
    ledger = list(open_cache(tmp_path / "cache").failures())
    assert [failure.lost for failure in ledger] == [False] * 3


def test_a_vanished_source_costs_its_own_shards_only(tmp_path: Path, mine: ModuleType) -> None:
    one, two = write(tmp_path / "one.txt", captions(20)), write(tmp_path / "two.txt", captions(20, 20))
    settings: dict[str, Any] = {"modality": "text", "shard_size": 10, "batch_size": 5}

    def stop(event: Event) -> None:
        if event.kind == "shard":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode([one, two], tmp_path / "cache", encoder=mine.TextTable(), progress=stop, **settings)
    one.unlink()
    with pytest.raises(CorpusError, match="1 of 3 shards could not be read; the other 2 are done"):
        encode(two, tmp_path / "cache", encoder=mine.TextTable(), **settings)
    assert len(open_cache(tmp_path / "cache")) == 30


def test_a_dry_run_foresees_the_run_and_writes_nothing(tmp_path: Path, mine: ModuleType) -> None:
    source = write(tmp_path / "t.txt", captions(205))
    settings: dict[str, Any] = {"modality": "text", "encoder": mine.TextTable(), "shard_size": 50, "batch_size": 16}
    foreseen = plan_encode(source, tmp_path / "cache", **settings)
    assert not (tmp_path / "cache").exists()
    assert (foreseen.shards_now, foreseen.rows, foreseen.shards_before) == (5, 205, 0)
    assert foreseen.seconds is not None
    assert foreseen.seconds > 0
    encode(source, tmp_path / "cache", **settings)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "cache" / "shards").glob("*.h5"))
    assert 0.5 < foreseen.disk_bytes / on_disk < 1.5
    before = content(tmp_path / "cache")
    write(source, captions(215))
    again = plan_encode(source, tmp_path / "cache", **settings)
    assert (again.shards_now, again.rows, again.shards_before, again.known) == (1, 10, 5, 205)
    assert content(tmp_path / "cache") == before


def test_progress_counts_every_item_once(tmp_path: Path, mine: ModuleType) -> None:
    events: list[Event] = []
    source = write(tmp_path / "t.txt", [*captions(25), "!item", "", *captions(5, 25)])
    with RichProgress() as bar:

        def show(event: Event) -> None:
            events.append(event)
            bar(event)

        encode(
            source,
            tmp_path / "c",
            modality="text",
            encoder=mine.TextTable(),
            shard_size=10,
            batch_size=4,
            progress=show,
        )
    assert events[0] == Event("start", total=32, shards=4)
    assert sum(event.rows for event in events if event.kind == "advance") == 30
    assert sum(event.failed for event in events if event.kind == "advance") == 2
    assert sum(event.kind == "shard" for event in events) == 4
    assert events[-1].kind == "end"


def test_settings_are_checked_by_name_and_value(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        encode("x.txt", tmp_path / "c", modality="text", batchsize=3)
    assert "batch_size" in str(caught.value)
    for wrong in ({"modality": "txt"}, {"modality": "text", "batch_size": 0}, {"modality": "text", "dtype": "float64"}):
        with pytest.raises(RecipeError):
            EncodeConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.kit
@pytest.mark.parametrize(
    ("modality", "encoder", "folder", "good"),
    [("image", "Pixels", "images", 64), ("audio", "Spectrum", "audio", 48), ("pointcloud", "Extent", "points", 40)],
)
def test_real_media_encode_and_bad_ones_are_ledger_lines(
    kit: Path, tmp_path: Path, modality: str, encoder: str, folder: str, good: int
) -> None:
    name = f"{FILE}:{encoder}"
    report = encode(
        kit / "raw" / folder, tmp_path / "good", modality=modality, encoder=name, shard_size=30, batch_size=8
    )
    assert (report.rows, report.failed) == (good, 0)
    bad = encode(kit / "raw" / "bad", tmp_path / "bad", modality=modality, encoder=name, batch_size=4)
    cache = open_cache(tmp_path / "bad")
    lost = {failure.key for failure in cache.failures() if failure.lost}
    assert bad.failed == len(lost) > 0
    assert not lost & set(cache.keys())
    assert verify(tmp_path / "bad").ok


@pytest.mark.kit
def test_two_thousand_real_captions_encode(kit: Path, tmp_path: Path, mine: ModuleType) -> None:
    report = encode(kit / "raw" / "text" / "captions.txt", tmp_path / "c", modality="text", encoder=mine.TextTable())
    assert (report.rows, report.failed) == (2000, 0)
