"""Point clouds: (N, 3) or (N, 6) finite float32, and never a pickle that was not asked for."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from cmcr.cache.errors import ItemError
from cmcr.pipeline.decoders.points import decode_points
from hypothesis import given, settings
from hypothesis import strategies as st

CLOUD = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def npy(array: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8, ">f8"])
@pytest.mark.parametrize("columns", [3, 6])
def test_numbers_of_every_type_become_float32(dtype: type, columns: int) -> None:
    array = np.arange(10 * columns).reshape(10, columns).astype(dtype)
    points = decode_points(npy(array))
    assert points.dtype == np.float32
    assert np.array_equal(points, array.astype(np.float32))


def test_order_and_layout_do_not_matter() -> None:
    assert np.array_equal(decode_points(npy(np.asfortranarray(CLOUD))), CLOUD)


def test_an_npz_gives_its_points_or_its_first_array() -> None:
    assert np.array_equal(decode_points(npz(other=CLOUD + 1, xyz=CLOUD)), CLOUD)
    assert np.array_equal(decode_points(npz(cloud=CLOUD, other=CLOUD + 1)), CLOUD)
    with pytest.raises(ItemError, match="no array"):
        decode_points(npz())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "zero bytes"),
        (b"no array", r"neither \.npy nor \.npz"),
        (npy(CLOUD)[:300], "700 bytes|are promised"),
        (npy(CLOUD[:, 0]), r"shape \(50,\)"),
        (npy(CLOUD[:, :2]), r"shape \(50, 2\)"),
        (npy(CLOUD[:0]), "no points"),
        (npy(np.where(CLOUD > 1, np.nan, CLOUD)), "not finite"),
        (npy(np.full((2, 3), 1e300)), "6 of 6 values are not finite"),
        (npy(np.array([["a", "b", "c"]])), "not numbers"),
        (npy(CLOUD.astype(np.complex64)), "not numbers"),
    ],
)
def test_what_is_no_cloud_says_why(data: bytes, said: str) -> None:
    with pytest.raises(ItemError, match=said) as caught:
        decode_points(data, "a/b.npy")
    assert "a/b.npy" in str(caught.value)


def test_a_header_that_promises_too_much_allocates_nothing() -> None:
    huge = npy(CLOUD).replace(b"(50, 3), ", b"(10**15, 3), "[:9])
    for shape in (b"(999999999999, 3)", b"(-1, 3)"):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b", }"
        header += b" " * (117 - len(header)) + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x" * 24
        with pytest.raises(ItemError):
            decode_points(data)
    with pytest.raises(ItemError):
        decode_points(huge)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.place,))


def test_a_pickle_is_never_opened_unless_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "boom"
    for data in (npy(np.array(Bomb(place), dtype=object), allow_pickle=True), pickle.dumps(Bomb(place))):
        with pytest.raises(ItemError):
            decode_points(data, "x.npy")
        assert not place.exists()
    held = npz(points=np.array(Bomb(place), dtype=object))
    with pytest.raises(ItemError, match="pickled"):
        decode_points(held, "x.npz")
    assert not place.exists()


def test_a_pickled_dict_opens_when_asked_for() -> None:
    record = np.array({"xyz": CLOUD, "rgb": CLOUD + 1, "name": "x"}, dtype=object)
    data = npy(record, allow_pickle=True)
    with pytest.raises(ItemError, match="pickled") as caught:
        decode_points(data, "x.npy")
    assert "allow_pickle=True" in str(caught.value)
    assert np.allclose(decode_points(data, allow_pickle=True), np.concatenate([CLOUD, CLOUD + 1], axis=1))
    with pytest.raises(ItemError, match="none of"):
        decode_points(npy(np.array({"a": 1}, dtype=object), allow_pickle=True), allow_pickle=True)


@settings(max_examples=80, deadline=None)
@given(
    zipped=st.booleans(),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_cloud_decodes_or_says_why(zipped: bool, keep: float, flips: list[tuple[int, int]]) -> None:
    data = bytearray(npz(points=CLOUD) if zipped else npy(CLOUD))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        points = decode_points(bytes(data[: int(keep * len(data))]), "x")
    except ItemError:
        return
    assert points.shape[1] in (3, 6)
    assert np.isfinite(points).all()


@pytest.mark.kit
def test_kit_clouds_end_as_their_manifest_expects(kit: Path) -> None:
    bad = kit / "raw" / "bad"
    refused = set()
    for line in (bad / "MANIFEST.jsonl").read_text().splitlines():
        path = bad / json.loads(line)["file"]
        if path.suffix == ".npy":
            try:
                decode_points(path.read_bytes(), path.name)
            except ItemError:
                refused.add(path.stem)
    assert refused == {"points_nan", "points_zero_rows", "points_1d", "pickled_object", "points_truncated"}
    assert decode_points((bad / "points_n6.npy").read_bytes()).shape[1] == 6
    assert decode_points((bad / "pickled_object.npy").read_bytes(), allow_pickle=True).shape[1] in (3, 6)


@pytest.mark.kit
def test_every_cloud_of_the_kit_decodes(kit: Path) -> None:
    paths = sorted((kit / "raw" / "points").iterdir())
    assert len(paths) == 40
    for path in paths:
        assert decode_points(path.read_bytes(), path.name).shape[1] == 3
