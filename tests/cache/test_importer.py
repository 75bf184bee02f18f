from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from cmcr.cache.errors import CacheError, CorpusError, DuplicateKeyError, FingerprintError, MissingExtraError
from cmcr.cache.importer import import_clip_retrieval, import_npy
from cmcr.cache.join import join
from cmcr.cache.verify import verify


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((23, 6)).astype(np.float32)


@pytest.fixture
def bring(tmp_path):
    """``bring(array, **options)``: save and import it."""

    def make(array, name="in", **options):
        np.save(tmp_path / f"{name}.npy", array)
        return import_npy(
            tmp_path / f"{name}.npy", tmp_path / f"cache-{name}", **{"space": "clip", "modality": "text", **options}
        )

    return make


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_every_row_arrives_whatever_its_type_order_and_shard_size(bring, vectors, dtype, order, size):
    cache = bring(np.array(vectors, dtype=dtype, order=order), shard_size=size, dtype="float32")
    assert np.array_equal(cache.read(0, 23, normalize=False), vectors.astype(dtype).astype(np.float32))
    assert len(cache.shards) == -(-23 // size)
    assert cache.keys([0, 22]) == ["000000000", "000000022"]
    assert cache.manifest.space_id == "declared:clip"
    assert cache.manifest.kind == "imported"


def test_zero_and_non_finite_rows_become_ledger_lines(bring, vectors):
    vectors[3], vectors[7, 2], vectors[21, 0] = 0, np.nan, np.inf
    cache = bring(vectors, shard_size=10)
    assert len(cache) == 20
    assert [(failure.key, failure.message) for failure in cache.failures()] == [
        ("000000003", "The vector is all zero."),
        ("000000007", "The vector holds NaN or infinity."),
        ("000000021", "The vector holds NaN or infinity."),
    ]
    assert [(m.ok, m.failed) for m in cache.shards] == [(8, 2), (10, 0), (2, 1)]
    assert verify(cache.path).ok


def test_other_fields_of_the_keys_file_go_to_meta(bring, vectors, tmp_path):
    records = [{"id": f"k{i}", "text": f"t{i}", "label": "dog" if i % 2 else "cat", "n": i} for i in range(23)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    cache = bring(vectors, keys=tmp_path / "rows.jsonl", caption_field="text", shard_size=4)
    assert cache.meta([0, 5]) == [{"label": "cat", "n": 0}, {"label": "dog", "n": 5}]
    assert cache.captions([5]) == ["t5"]
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "n": NaN}\n' * 23)
    with pytest.raises(CorpusError, match="NaN is no value of JSON"):
        bring(vectors, name="other", keys=tmp_path / "rows.jsonl")


def test_values_beyond_half_precision_ask_for_float32(bring, vectors):
    vectors[4, 1] = 1e6
    with pytest.raises(CacheError, match="float32"):
        bring(vectors)
    assert len(bring(vectors, name="wide", dtype="float32")) == 23


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(5), r"shape \(5,\)"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.ones((4, 0)), r"shape \(4, 0\)"),
        (np.ones((2, 3), int), "int64"),
        (np.ones((2, 3), complex), "complex"),
        (np.array([["a"]]), "<U1"),
        (np.array([{"xyz": 1}], dtype=object), "pickled objects"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(bring, array, message):
    with pytest.raises(CorpusError, match=message) as caught:
        bring(array)
    assert "in.npy" in str(caught.value)


def test_files_that_are_no_arrays_are_refused(tmp_path, vectors):
    def attempt(name: str):
        return import_npy(tmp_path / name, tmp_path / "c", space="s", modality="text")

    np.save(tmp_path / "cut.npy", vectors)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    with pytest.raises(CorpusError, match="cut short"):
        attempt("cut.npy")
    np.savez(tmp_path / "a.npz", vectors)
    (tmp_path / "text.npy").write_text("hello there, this is text")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("a.npz", "text.npy", "empty.npy"):
        with pytest.raises(CorpusError, match=r"not a \.npy array"):
            attempt(name)
    with pytest.raises(CorpusError, match="No such file"):
        attempt("missing.npy")
    assert not (tmp_path / "c").exists()


def test_keys_come_from_a_text_file_one_a_line(bring, tmp_path, vectors):
    (tmp_path / "keys.txt").write_bytes("".join(f"bild {i} ü\r\n" for i in range(23)).encode())
    cache = bring(vectors, keys=tmp_path / "keys.txt", shard_size=4)
    assert cache.keys() == [f"bild {i} ü" for i in range(23)]


def test_keys_and_captions_come_from_json_lines(bring, tmp_path, vectors):
    lines = [json.dumps({"name": f"n{i}", "text": f"t{i}" if i % 2 else None}) for i in range(23)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    cache = bring(vectors, keys=tmp_path / "rows.jsonl", key_field="name", caption_field="text", shard_size=4)
    assert cache.keys([5]) == ["n5"]
    assert cache.captions([5, 6]) == ["t5", None]
    with pytest.raises(CorpusError, match=r"no field 'id'; it has name, text\.[\s\S]*rows\.jsonl:1"):
        bring(vectors, name="other", keys=tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n" * 22, "22 lines for 23 rows"),
        ("".join(f"{i}\n" for i in range(25)), "25 lines for 23 rows"),
        ("a\n\nb\n" * 10, r"non-empty text[\s\S]*keys\.txt:2"),
        ("".join(f"{i % 20}\n" for i in range(23)), r"the key '0': row 0 of in\.npy and row 20 of in\.npy"),
    ],
)
def test_keys_that_do_not_fit_the_rows_are_refused_before_anything_is_written(
    bring, tmp_path, vectors, content, message
):
    (tmp_path / "keys.txt").write_text(content)
    with pytest.raises((CorpusError, DuplicateKeyError), match=message):
        bring(vectors, keys=tmp_path / "keys.txt", shard_size=7)
    assert not (tmp_path / "cache-in").exists()


def test_keys_that_are_not_utf8_or_json_name_the_file(bring, tmp_path, vectors):
    (tmp_path / "keys.txt").write_bytes(b"\xff\xfe\n" * 23)
    with pytest.raises(CorpusError, match=r"not UTF-8[\s\S]*keys\.txt"):
        bring(vectors, keys=tmp_path / "keys.txt")
    (tmp_path / "keys.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(CorpusError, match=r"not JSON[\s\S]*keys\.jsonl:2"):
        bring(vectors, keys=tmp_path / "keys.jsonl")


def test_captions_give_the_keys_that_encoding_their_file_gives_and_join_two_spaces(bring, tmp_path, vectors):
    (tmp_path / "texts.txt").write_text("".join(f"caption {i}\n" for i in range(23)))
    left = bring(vectors, name="l", captions=tmp_path / "texts.txt", shard_size=5)
    right = bring(vectors[:, :2], name="r", space="clap", captions=tmp_path / "texts.txt", shard_size=9)
    assert left.keys([0, 22]) == ["texts:000000001", "texts:000000023"]
    assert left.captions([22]) == ["caption 22"]
    assert join(left, right).report.matched == 23
    rows = bring(vectors, name="rows", keys="rows", captions=tmp_path / "texts.txt")
    assert (rows.keys([1]), rows.captions([1])) == (["000000001"], ["caption 1"])
    with pytest.raises(CorpusError, match="--captions"):
        bring(vectors, name="none", keys="lines")


def test_an_interrupted_import_is_completed_and_other_content_is_refused(bring, tree, vectors):
    cache = bring(vectors, shard_size=5)
    whole = tree(cache.path)
    (cache.path / "shards/00002.json").unlink()
    assert tree(bring(vectors, shard_size=5).path) == whole
    with pytest.raises((FingerprintError, CacheError)):
        bring(vectors[::-1], shard_size=5)
    assert len(bring(vectors[:9], shard_size=5, overwrite=True)) == 9


@pytest.fixture
def folder(tmp_path, vectors):
    """A clip-retrieval folder of eleven parts, so that 10 comes after 9 only as a number."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "cr" / name).mkdir(parents=True)
    at = 0
    for part in range(11):
        rows = range(at, at + 2 + part % 2)
        np.save(tmp_path / f"cr/img_emb/img_emb_{part}.npy", np.full((len(rows), 4), part + 1, np.float16))
        np.save(tmp_path / f"cr/text_emb/text_emb_{part}.npy", np.full((len(rows), 4), -part - 1, np.float16))
        columns = {
            "image_path": [f"img/{r:03d}.jpg" for r in rows],
            "caption": [f"c{r}" for r in rows],
            "similarity": [0.5] * len(rows),
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / f"cr/metadata/metadata_{part}.parquet", row_group_size=2)
        at += len(rows)
    return tmp_path / "cr"


def test_a_clip_retrieval_folder_gives_image_and_text_caches_that_join(folder, tmp_path):
    image, text = import_clip_retrieval(folder, tmp_path / "out", space="clip", encoder="open_clip:x", shard_size=2)
    assert (image.modality, text.modality, image.manifest.encoder) == ("image", "text", "open_clip:x")
    assert image.read(0, len(image), normalize=False)[:, 0].tolist() == sorted(
        image.read(0, len(image), normalize=False)[:, 0]
    )
    assert image.keys() == [f"img/{row:03d}.jpg" for row in range(len(image))]
    assert image.captions([26]) == ["c26"]
    assert image.sources([3]) == ["img/003.jpg"]
    joined = join(image, text)
    assert np.array_equal(text.rows(joined.right), -image.rows(joined.left))


def test_without_metadata_rows_are_numbered_through_all_parts(folder, tmp_path):
    for file in (folder / "metadata").iterdir():
        file.unlink()
    image, text = import_clip_retrieval(folder, tmp_path / "out", space="clip")
    assert image.keys([0, 26]) == text.keys([0, 26]) == ["000000000", "000000026"]


def test_parts_that_do_not_fit_together_are_refused(folder, tmp_path):
    def attempt(message: str, **options) -> None:
        with pytest.raises((CorpusError, DuplicateKeyError), match=message):
            import_clip_retrieval(folder, tmp_path / "out", space="clip", **options)

    attempt("no column 'uid'; it has image_path, caption, similarity", key_column="uid")
    attempt("the key '0.5'", key_column="similarity")
    np.save(folder / "img_emb/img_emb_3.npy", np.ones((7, 4), np.float16))
    attempt("3 rows of metadata for 7 vectors")
    np.save(folder / "img_emb/img_emb_03.npy", np.ones((3, 4), np.float16))
    attempt("Two parts have the number 3")
    (folder / "img_emb/img_emb_03.npy").unlink()
    (folder / "metadata/metadata_3.parquet").unlink()
    attempt(r"\[3\] stand in one of them only")
    (folder / "metadata/metadata_3.parquet").write_bytes(b"PAR1 not really")
    attempt("metadata cannot be read")
    with pytest.raises(CorpusError, match="looked for img_emb/"):
        import_clip_retrieval(tmp_path, tmp_path / "out2", space="clip")


def test_metadata_without_pyarrow_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"cmcr\[parquet\]"):
        import_clip_retrieval(folder, tmp_path / "out", space="clip")


@pytest.mark.kit
def test_the_memories_of_the_kit_import_with_their_ids(kit, tmp_path):
    folder = kit / "audio_text"
    cache = import_npy(
        folder / "audio_memory.npy",
        tmp_path / "c",
        space="clap",
        modality="audio",
        keys=folder / "audio_memory.jsonl",
        shard_size=500,
    )
    first = json.loads((folder / "audio_memory.jsonl").read_text().splitlines()[0])["id"]
    assert (len(cache), cache.dim, cache.keys([0])) == (1361, 256, [first])
    assert cache.index_of([first]).tolist() == [0]
