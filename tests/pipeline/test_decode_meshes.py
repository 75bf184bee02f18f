"""Mesh files: the points of a file of points, the surface of a mesh by area, and one clear line for the rest."""

from __future__ import annotations

import builtins
import struct
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import ItemError
from cmcr.pipeline.decoders.points import decode_points
from hypothesis import given, settings
from hypothesis import strategies as st

trimesh = pytest.importorskip("trimesh")

# two triangles in the planes z = 0 and z = 5, the second nine times as large
OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\no other\nv 0 0 5\nv 3 0 5\nv 0 3 5\nf 4 5 6\n"
OFF = b"OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"
HEADER = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
RGB = b"property uchar red\nproperty uchar green\nproperty uchar blue\n"
FACES = b"element face 1\nproperty list uchar int vertex_indices\n"
PLY = HEADER + RGB + FACES + b"end_header\n0 0 0 255 0 0\n1 0 0 0 255 0\n0 1 0 0 0 255\n3 0 1 2\n"
POINTS = HEADER + b"end_header\n0 0 0\n1 2 3\n4 5 6\n"
COLOURED_POINTS = HEADER + RGB + b"end_header\n0 0 0 255 0 0\n1 2 3 0 255 0\n4 5 6 0 51 255\n"


def test_a_file_of_points_gives_its_points() -> None:
    assert decode_points(POINTS, "a.ply").tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    coloured = decode_points(COLOURED_POINTS, "a.ply")
    assert coloured[2].tolist() == pytest.approx([4, 5, 6, 0, 0.2, 1])
    assert decode_points(b"v 0 0 0\nv 1 2 3\n", "a.obj").tolist() == [[0, 0, 0], [1, 2, 3]]


def test_a_binary_ply_reads_as_its_ascii_twin() -> None:
    header = POINTS.split(b"end_header\n")[0].replace(b"ascii", b"binary_little_endian") + b"end_header\n"
    binary = header + struct.pack("<9f", 0, 0, 0, 1, 2, 3, 4, 5, 6)
    assert np.array_equal(decode_points(binary, "no-ending"), decode_points(POINTS, "a.ply"))


def test_a_surface_is_sampled_by_area_on_the_triangles() -> None:
    cloud = decode_points(OBJ, "a.obj", key="k", surface_points=4001)
    assert cloud.shape == (4001, 3)
    low, high = cloud[cloud[:, 2] == 0], cloud[cloud[:, 2] == 5]
    assert len(low) + len(high) == 4001
    assert len(high) / 4001 == pytest.approx(0.9, abs=0.02)
    for part, side in ((low, 1), (high, 3)):
        assert (part[:, :2] >= 0).all()
        assert (part[:, :2].sum(1) <= side * (1 + 1e-6)).all()
        # uniform: the mean is the centroid, and a quarter lies in the corner triangle of half the size
        assert part[:, :2].mean(0) == pytest.approx([side / 3] * 2, abs=0.07 * side)
        assert (part[:, :2].sum(1) < side / 2).mean() == pytest.approx(0.25, abs=0.1)


def test_the_key_alone_decides_where_the_points_are() -> None:
    first = decode_points(OFF, "folder/a.off", key="a", surface_points=50)
    assert np.array_equal(first, decode_points(OFF, "elsewhere/b.off", key="a", surface_points=50))
    assert not np.array_equal(first, decode_points(OFF, "folder/a.off", key="b", surface_points=50))
    # raw bits of a fixed generator: the same points on every machine and with every release
    assert first[0].tolist() == pytest.approx([0.98934579, 0.37598357, 0.0], abs=1e-6)


def test_colours_at_vertices_blend_over_the_surface() -> None:
    cloud = decode_points(PLY, "a.ply", key="k", surface_points=200)
    assert cloud.shape == (200, 6)
    x, y = cloud[:, 0], cloud[:, 1]
    assert np.allclose(cloud[:, 3:], np.stack([1 - x - y, x, y], 1), atol=1e-5)


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b"ply\nformat ascii 1.0\n", "a.ply", "cannot be decoded"),
        (PLY[: len(PLY) // 2], "a.ply", "cannot be decoded|no points"),
        (HEADER.replace(b"vertex 3", b"vertex 0") + b"end_header\n", "a.ply", "cannot be decoded|no points"),
        (b"nonsense", "b.OBJ", "cannot be decoded|no points"),
        (b"OFF\n4 1 0\n0 0", "c.off", "cannot be decoded"),
        (b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "n.obj", "not finite"),
        (b"", "e.ply", "zero bytes"),
    ],
)
def test_what_is_no_mesh_says_why(data: bytes, name: str, said: str) -> None:
    with pytest.raises(ItemError, match=said) as caught:
        decode_points(data, name)
    assert name in str(caught.value)


def test_a_mesh_without_area_gives_its_vertices() -> None:
    assert len(decode_points(b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "line.obj")) == 3


def test_without_trimesh_the_item_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "trimesh":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ItemError, match="needs the package trimesh") as caught:
        decode_points(OFF, "a.off")
    assert "pip install 'cmcr[mesh]'" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from([(OBJ, "a.obj"), (OFF, "a.off"), (PLY, "a.ply"), (COLOURED_POINTS, "b.ply")]),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_mesh_decodes_or_says_why(
    which: tuple[bytes, str], keep: float, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(which[0])
    for place, value in flips:
        data[place % len(data)] = value
    try:
        points = decode_points(bytes(data[: int(keep * len(data))]), which[1], surface_points=20)
    except ItemError:
        return
    assert points.shape[1] in (3, 6)
    assert np.isfinite(points).all()
