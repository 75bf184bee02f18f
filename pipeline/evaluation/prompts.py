"""Class names and prompt templates of zero-shot classification, and the class vectors that they give."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache import fsio
from ...cache.errors import CmcrError

Vectors = npt.NDArray[np.float32]
Ensemble = Literal["project-then-average", "average-then-project"]
ENSEMBLES: tuple[Ensemble, ...] = ("project-then-average", "average-then-project")

# Sets of our own, in the manner of CLIP's (Radford et al. 2021, section 3.1.4). The exact sets of papers come from
# their files: --templates FILE.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "image": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close photo of a {}.",
        "a good photo of a {}.",
        "a blurry photo of a {}.",
        "a picture with a {} in it.",
        "a small picture of a {}.",
    ),
    "audio": (
        "a sound of {}.",
        "the sound of {}.",
        "a recording of {}.",
        "a clear recording of {}.",
        "{} can be heard.",
        "someone recorded {}.",
        "a noisy recording of {}.",
    ),
    "pointcloud": (
        "a point cloud of a {}.",
        "a 3D model of a {}.",
        "a 3D scan of a {}.",
        "a coarse 3D model of a {}.",
        "the shape of a {}.",
        "a rendering of a {}.",
    ),
}


def normal_name(name: str) -> str:
    """A class name for comparison: lower case, spaces for underscores; folders have ``night_stand``, lists a space."""
    return " ".join(name.replace("_", " ").split()).casefold()


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file (one a line), a JSON list, or a JSON object with one list.

    ``labels.json:modelnet40`` picks one list of several.

    Raises
    ------
    CmcrError
        The file is missing or of another form, is empty, or names a class twice.
    """
    names = _read_list(path, "class names")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normal_name(name), name)
        if other is not name:
            raise CmcrError(f"Two classes have the name {name!r}.", where=str(path), todo="name each class once")
    return names


def read_templates(source: str | Path, *, modality: str = "image") -> tuple[str, ...]:
    """Templates by the name of a set (``plain``, ``image``, ``audio``, ``pointcloud``, ``auto``), or from a file.

    ``auto`` is the set of the modality. Files are as for :func:`read_classes`; each template has one ``{}``.
    """
    name = modality if str(source) == "auto" else str(source)
    templates = TEMPLATES[name] if name in TEMPLATES else _read_list(source, "templates")
    for template in templates:
        if template.count("{}") != 1:
            raise CmcrError(
                f"The template {template!r} has not exactly one place for the class name.",
                where=str(source),
                todo=f"write {{}} where the name goes; built-in sets: {', '.join(TEMPLATES)}",
            )
    return templates


def _read_list(source: str | Path, what: str) -> tuple[str, ...]:
    path, wanted = Path(source), None
    if not path.exists() and ":" in str(source):
        start, _, wanted = str(source).rpartition(":")
        path = Path(start)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except FileNotFoundError as error:
        raise CmcrError(f"The file of {what} does not exist.", where=str(source), todo="check the path") from error
    except (OSError, ValueError) as error:
        raise CmcrError(f"The file of {what} cannot be read: {error}", where=str(source)) from error
    if isinstance(found, dict):
        if wanted is None and len(found) == 1:
            (found,) = found.values()
        elif wanted in found:
            found = found[wanted]
        else:
            raise CmcrError(
                f"The file holds {len(found)} lists.",
                where=str(path),
                todo=f"name one after a colon, as in {path.name}:{next(iter(found), 'name')}",
            )
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise CmcrError(f"The {what} are not a list of texts.", where=str(source), todo="one a line, or a JSON list")
    names = tuple(entry.strip() for entry in found if entry.strip())
    if not names:
        raise CmcrError(f"The file of {what} is empty.", where=str(source), todo="write one a line")
    return names


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of one class; underscores of a folder's name become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for template in templates]


def prompt_lines(classes: Sequence[str], templates: Sequence[str]) -> str:
    """A JSONL corpus for ``cmcr encode --modality text``: a line a class, its prompts as the list of captions."""
    lines = ({"key": name, "caption": fill(templates, name), "class": name} for name in classes)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def class_vectors(
    prompts: Vectors,
    groups: npt.NDArray[np.int64],
    count: int,
    ensemble: Ensemble,
    project: Callable[[Vectors], Vectors],
) -> Vectors:
    """One unit vector of the shared space for each class: (C, D) float32.

    Parameters
    ----------
    prompts : (P, D_in) float32
        Vectors of the prompts in their own space; normalised first.
    groups : (P,) int64
        Class of each prompt.
    count : int
        Classes, C; each has at least one prompt.
    ensemble : str
        ``average-then-project``: mean of the unit vectors in the source space, normalised, through the head: what
        published evaluations of one space do (CLIP; ULIP, main.py, ``test_zeroshot_3d_core``), then one projection.
        ``project-then-average``: each prompt through the head, mean of the unit results, normalised: the head sees
        single sentences, as in its training.
    project : callable
        Source space to shared space, (N, D_in) to (N, D).
    """
    if ensemble == "average-then-project":
        return _unit(project(_means(_unit(prompts), groups, count)))
    return _means(_unit(project(_unit(prompts))), groups, count)


def _means(vectors: Vectors, groups: npt.NDArray[np.int64], count: int) -> Vectors:
    """Unit mean vector of each group: (C, D)."""
    total = np.zeros((count, vectors.shape[1]), np.float64)
    np.add.at(total, groups, vectors.astype(np.float64))
    return _unit(total.astype(np.float32))


def _unit(vectors: Vectors) -> Vectors:
    """Unit rows; a zero row stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def write_prompts(classes: str | Path, templates: str | Path, output: str | Path) -> int:
    """Write :func:`prompt_lines` for a file of class names, atomically; how many prompts there are."""
    names, forms = read_classes(classes), read_templates(templates)
    place = Path(output)
    with fsio.naming_folder(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
    fsio.write_atomic(place, prompt_lines(names, forms).encode())
    return len(names) * len(forms)
