"""webdataset tars: audited before they are read, nothing lost in silence."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from cmcr.cache.errors import CorpusError
from cmcr.cache.ledger import Failure
from cmcr.cache.plan import Plan
from cmcr.pipeline.corpora import CorpusSettings, open_corpus
from cmcr.pipeline.corpora.audit import audit_tar
from cmcr.pipeline.encoders.base import Item, Modality
from hypothesis import example, given, settings
from hypothesis import strategies as st

Members = Sequence[tuple[str, bytes]]


def make_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(count)
        for member in ((f"{i:04d}.jpg", bytes([i % 256]) * (size + 37 * i)), (f"{i:04d}.txt", f"caption {i}".encode()))
    ]


def read_tar(
    path: Path, modality: Modality = "image", options: CorpusSettings = CorpusSettings()
) -> tuple[list[Item], list[Failure]]:
    corpus = open_corpus([path], modality, options)
    found = [f for unit in corpus.plan([], 10).units for f in corpus.read(unit)]
    return [f for f in found if isinstance(f, Item)], [f for f in found if isinstance(f, Failure)]


def test_a_sound_tar_gives_its_samples_with_captions_and_records(tmp_path: Path) -> None:
    members = [*samples(3), ("0001.json", b'{"source": "x"}')]
    path = make_tar(tmp_path / "s-000.tar", members)
    items, failures = read_tar(path)
    assert [(i.key, i.caption) for i in items] == [(f"s-000/{i:04d}", f"caption {i}") for i in range(3)]
    assert [i.data for i in items] == [data for name, data in members if name.endswith("jpg")]
    assert items[1].meta == {"source": "x"}
    assert failures == []
    texts, _ = read_tar(path, "text")
    assert [(i.key, i.data) for i in texts] == [(i.key, i.caption) for i in items]


def test_a_tar_is_a_unit_alone(tmp_path: Path) -> None:
    for name in "ab":
        make_tar(tmp_path / f"{name}.tar", samples(2))
    (tmp_path / "c.txt").write_text("x\n")
    units = open_corpus([tmp_path], "text").plan([], 100).units
    assert [[p.kind for p in unit.pieces] for unit in units] == [["tar"], ["tar"], ["lines"]]
    assert units[0].rows is None


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 20479), modality=st.sampled_from(["image", "text"]))
@example(cut=0, modality="image")
@example(cut=512, modality="image")
@example(cut=20480, modality="image")
def test_a_cut_anywhere_is_said_and_gives_the_whole_samples_before_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, modality: Modality
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    members = samples(5)
    path = make_tar(folder / "t.tar", members)
    whole = path.read_bytes()
    assert len(whole) == 20480
    with tarfile.open(path) as archive:
        ends = {info.name: info.offset_data + info.size for info in archive}
    path.write_bytes(whole[:cut])
    items, failures = read_tar(path, modality)
    suffix = "jpg" if modality == "image" else "txt"
    expected = [data for name, data in members if name.endswith(suffix) and ends[name] <= cut]
    assert [i.data if isinstance(i.data, bytes) else i.data.encode() for i in items] == expected
    last = max(ends.values())
    end = -(-last // 512) * 512 + 512
    assert [f.error == "DamagedTar" and (str(cut) in f.message or "zero bytes" in f.message) for f in failures[:1]] == (
        [True] if cut < end else []
    )


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_hostile_names_are_only_names(tmp_path: Path, format: int) -> None:
    long = "d/" * 80 + "n" * 120
    names = [long, "../../up", "/abs/olute", "./here", "ünï", "a.b/c"]
    path = make_tar(tmp_path / "t.tar", [(f"{name}.jpg", name.encode()) for name in names], format)
    items, failures = read_tar(path)
    assert [i.key for i in items] == [f"t/{name.removeprefix('./')}" for name in names]
    assert [i.data for i in items] == [name.encode() for name in names]
    assert failures == []
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar"]


def test_a_key_that_comes_again_keeps_the_first_sample(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"b"), ("a.jpg", b"2"), ("a.txt", b"two"), ("a.jpg", b"3")]
    path = make_tar(tmp_path / "t.tar", members)
    items, failures = read_tar(path)
    assert [(i.key, i.data, i.caption) for i in items] == [("t/a", b"1", "one"), ("t/b", b"b", None)]
    again = [f for f in failures if f.error == "DuplicateKey"]
    assert [f.message for f in again] == [
        "the key comes again at byte 3072; kept is the sample at byte 0",
        "the key comes again at byte 5120; kept is the sample at byte 0",
    ]
    assert all(f.lost for f in again)


def test_members_of_a_key_need_not_be_neighbours(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", sorted(samples(3), key=lambda member: member[0][-3:]))
    items, failures = read_tar(path)
    assert [i.caption for i in items] == ["caption 0", "caption 1", "caption 2"]
    assert failures == []


def test_dotted_names_are_one_failure_or_by_the_last_dot_several_items(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", [(f"img.{i}.jpg", b"x") for i in range(3)])
    items, (failure,) = read_tar(path)
    assert items == []
    assert failure.lost
    assert "img.0.jpg, img.1.jpg, img.2.jpg" in failure.message
    assert "--tar-key last-dot" in failure.message
    items, failures = read_tar(path, options=CorpusSettings(tar_key="last-dot"))
    assert [i.key for i in items] == ["t/img.0", "t/img.1", "t/img.2"]
    assert failures == []


def test_members_that_need_unpickling_are_remarks_and_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "boom",))  # type: ignore[return-value]

    path = make_tar(tmp_path / "t.tar", [("a.jpg", b"x"), ("a.pyd", pickle.dumps(Bomb())), ("a.cls", b"3")])
    items, failures = read_tar(path)
    assert [i.key for i in items] == ["t/a"]
    assert [(f.error, f.lost, f.message) for f in failures] == [
        ("NotDecoded", False, "t.tar: 1 .cls members are of a type that is not decoded"),
        ("NotDecoded", False, "t.tar: 1 .pyd members would need unpickling"),
    ]
    assert not (tmp_path / "boom").exists()


def test_links_folders_and_files_without_extension_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("README", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("._a.jpg"))
    items, failures = read_tar(path)
    assert items == []
    messages = [f.message for f in failures]
    assert messages == [
        "t.tar: 1 members are no samples: hidden files",
        "t.tar: 1 members are no samples: links and special files",
        "t.tar: 1 members are no samples: without extension",
        "t.tar: no samples",
    ]


def test_a_tar_without_the_modality_says_what_it_has(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
    items, (failure,) = read_tar(path, "audio")
    assert items == []
    assert not failure.lost
    assert failure.message == "t.tar: no audio member in 2 samples (found image)"


def test_several_captions_of_a_sample_get_numbered_keys(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"one\n\ntwo\n"),
        ("b.json", b'{"captions": ["three", "", 4]}'),
        ("c.txt", b"\xff"),
        ("d.txt", b""),
    ]
    items, failures = read_tar(make_tar(tmp_path / "t.tar", members), "text")
    assert [(i.key, i.data) for i in items] == [("t/a#0", "one"), ("t/a#1", "two"), ("t/b#0", "three")]
    assert [f.key for f in failures if f.lost] == ["t/b#1", "t/b#2", "t/c", "t/d"]


def test_data_after_the_end_and_a_damaged_header_are_said(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", samples(3))
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    items, (failure,) = read_tar(path)
    assert len(items) == 3
    assert "data after the end-of-archive" in failure.message
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[2].offset
    path.write_bytes(whole[:offset] + b"\xff" * 512 + whole[offset + 512 :])
    items, failures = read_tar(path)
    assert len(items) == 1
    assert f"header at byte {offset} is damaged" in failures[0].message
    path.write_bytes(b"\x1f\x8b" + b"x" * 2000)
    items, (failure,) = read_tar(path)
    assert "compressed" in failure.message
    path.write_bytes(b"no tar at all" * 100)
    items, (failure,) = read_tar(path)
    assert "no tar archive" in failure.message


def test_a_tar_that_changed_is_listed_and_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", samples(2))
    first = open_corpus([tmp_path / "a.tar"], "image").plan([], 10).units
    make_tar(tmp_path / "b.tar", samples(3))
    corpus = open_corpus([tmp_path], "image")
    update = corpus.plan([Plan(0, 10, first)], 10, first_shard=1)
    assert (update.known, [p.source for unit in update.units for p in unit.pieces]) == (1, ["b.tar"])
    make_tar(tmp_path / "a.tar", samples(4))
    update = corpus.plan([Plan(0, 10, first)], 10, first_shard=1)
    assert update.changed == ("a.tar",)
    with pytest.raises(CorpusError, match="changed since it was planned"):
        list(corpus.read(first[0]))


def test_an_audit_keeps_headers_not_data(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "t.tar", samples(4))
    audit = audit_tar(path)
    assert (audit.whole(), audit.end, audit.expected()) == (4, None, {"image", "caption"})


# file: (images, lost images, captions, lost captions, what the ledger of the images says)
KIT = {
    "good.tar": (20, 0, 20, 0, ""),
    "truncated_at_member_boundary.tar": (13, 0, 12, 1, "without the end-of-archive blocks; 12 whole samples"),
    "truncated_mid_data.tar": (7, 1, 7, 1, "inside the data of a member; 7 whole samples"),
    "truncated_mid_header.tar": (9, 0, 9, 0, "inside a header; 9 whole samples"),
    "duplicate_key.tar": (6, 1, 6, 1, "kept is the sample at byte 15360"),
    "dotted_key.tar": (1, 1, 1, 1, "--tar-key last-dot"),
    "missing_txt.tar": (6, 0, 5, 1, "no caption member"),
    "corrupt_jpg_member.tar": (6, 0, 6, 0, ""),
    "zero_bytes.tar": (0, 0, 0, 0, "zero bytes"),
}


@pytest.mark.kit
@pytest.mark.parametrize("name", sorted(KIT))
def test_kit_tars_end_as_their_manifest_expects(kit: Path, name: str) -> None:
    images, lost_images, captions, lost_captions, said = KIT[name]
    path = kit / "raw" / "webdataset" / name
    items, failures = read_tar(path)
    assert (len(items), sum(f.lost for f in failures)) == (images, lost_images)
    assert said in " ".join(f.message for f in failures)
    assert bool(failures) == bool(said)
    texts, failures = read_tar(path, "text")
    assert (len(texts), sum(f.lost for f in failures)) == (captions, lost_captions)


@pytest.mark.kit
def test_every_tar_of_the_kit_is_tested(kit: Path) -> None:
    assert {p.name for p in (kit / "raw" / "webdataset").glob("*.tar")} == set(KIT)
