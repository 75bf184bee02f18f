"""Point clouds from ``.ply``, ``.obj`` and ``.off``: the points of a file of points, the surface of a mesh.

trimesh reads the files; it is optional (``pip install 'cmcr[mesh]'``). Surfaces are sampled here, from raw generator
bits, so that the same file and key give the same points with every release of trimesh and numpy.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import ItemError

KINDS = ("ply", "obj", "off")
SURFACE_POINTS = 10_000
"""Points on a mesh where nobody says how many."""

Array = npt.NDArray[np.float64]


def decode_mesh(
    data: bytes, kind: str, name: str = "", *, key: str = "", count: int = SURFACE_POINTS
) -> npt.NDArray[np.float64]:
    """Points of a mesh file.

    Parameters
    ----------
    data : bytes
        The file. Materials and textures are other files and are left out.
    kind : {"ply", "obj", "off"}
    name, key : str
        The name is for messages; the key alone decides where on the surface the points are.
    count : int
        Points on the surface, uniform by area. A file without faces gives its own points instead, all of them.

    Returns
    -------
    ndarray
        (N, 3) xyz, or (N, 6) with rgb in 0..1 where all parts have colours at vertices or faces.

    Raises
    ------
    ItemError
        If trimesh is not installed, or the file is damaged, empty, or has a surface of no area and no points.
    """
    try:
        import trimesh
    except ImportError as error:
        raise ItemError(
            f"a .{kind} file needs the package trimesh, which is not installed",
            where=name,
            todo="pip install 'cmcr[mesh]'",
        ) from error
    settings: dict[str, Any] = {"process": False, "skip_materials": True} if kind == "obj" else {"process": False}
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, **settings)
        parts = _placed(scene)
        meshes = [part for part in parts if len(getattr(part, "faces", ()))]
        cloud = _surface(meshes, count, key) if meshes else _points(parts)
    except Exception as error:  # its readers raise whatever a damaged file makes of them
        raise ItemError(
            f"the .{kind} file cannot be decoded: {type(error).__name__}: {_first(error)}", where=name
        ) from error
    if not len(cloud):
        raise ItemError(f"the .{kind} file has no points", where=name)
    return cloud


def _placed(scene: Any) -> list[Any]:
    """The parts of a scene, each where the scene puts it."""
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, geometry = scene.graph[node]
        part = scene.geometry[geometry].copy()
        part.apply_transform(transform)
        parts.append(part)
    return parts


def _points(parts: list[Any]) -> Array:
    """The vertices of parts without faces, with their colours where all have them."""
    if not parts:
        return np.zeros((0, 3))
    xyz = np.concatenate([np.asarray(part.vertices, dtype=np.float64) for part in parts])
    rgb = [_rgb(getattr(part, "colors", None), len(part.vertices)) for part in parts]
    found = [one for one in rgb if one is not None]
    return np.concatenate([xyz, np.concatenate(found)], axis=1) if len(found) == len(parts) else xyz


def _surface(meshes: list[Any], count: int, key: str) -> Array:
    """Points on the triangles of meshes, uniform by area."""
    corners = np.concatenate([np.asarray(mesh.triangles, dtype=np.float64) for mesh in meshes])  # (F, 3, 3)
    edges = corners[:, 1:] - corners[:, :1]
    areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)  # (F,), twice the area
    if not np.isfinite(areas).all():
        raise ValueError("the vertices are not finite")
    upto = np.cumsum(areas)
    if not upto[-1] > 0:
        return _points(meshes)
    where, along, across = _uniform(3 * count, key).reshape(3, count)
    face = np.searchsorted(upto, where * upto[-1], side="right").clip(max=len(areas) - 1)
    # uniform in a triangle: Osada et al., "Shape distributions", ACM Transactions on Graphics 2002, equation 1
    root = np.sqrt(along)
    weights = np.stack([1 - root, root * (1 - across), root * across], axis=1)  # (count, 3)
    xyz: Array = np.einsum("nc,ncd->nd", weights, corners[face])
    colours = [_corner_colours(mesh) for mesh in meshes]
    found = [one for one in colours if one is not None]
    if len(found) < len(meshes):
        return xyz
    return np.concatenate([xyz, np.einsum("nc,ncd->nd", weights, np.concatenate(found)[face])], axis=1)


def _corner_colours(mesh: Any) -> Array | None:
    """The rgb of every triangle's corners, (F, 3, 3) in 0..1, or None."""
    kind = getattr(mesh.visual, "kind", None)
    if kind == "vertex":
        rgb = _rgb(mesh.visual.vertex_colors, len(mesh.vertices))
        return None if rgb is None else rgb[np.asarray(mesh.faces)]
    if kind == "face":
        rgb = _rgb(mesh.visual.face_colors, len(mesh.faces))
        return None if rgb is None else np.repeat(rgb[:, None], 3, axis=1)
    return None


def _rgb(values: Any, count: int) -> Array | None:
    """Colours (count, 3) in 0..1 out of trimesh's, which are 8-bit with alpha; None where there are none."""
    array = np.asarray(values if values is not None else ())
    if array.ndim != 2 or len(array) != count or array.shape[1] < 3:
        return None
    scale = 255.0 if array.dtype.kind in "iu" else 1.0
    return np.asarray(array[:, :3], dtype=np.float64) / scale


def _uniform(count: int, key: str) -> Array:
    """Numbers in [0, 1) that depend on the key alone, from raw generator bits, which no release changes."""
    seed = int.from_bytes(hashlib.blake2b(f"surface\0{key}".encode(), digest_size=16).digest(), "little")
    raw: npt.NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _first(error: BaseException) -> str:
    """The beginning of a message."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
