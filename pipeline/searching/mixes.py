"""Weighted mixes of queries: ``audio:rain.wav + text:at night*0.5 - text:people``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ...cache.errors import CmcrError
from ...cache.vectors import Float32

Source = Literal["text", "image", "audio", "points", "key"]
_TERM = re.compile(
    rf"(?:^\s*(?P<first>[+-]?)\s*|\s(?P<sign>[+-])\s+)(?P<kind>{'|'.join(get_args(Source))})"
    r"(?:@(?P<space>[^:\s]+))?:"
)
_WEIGHT = re.compile(r"\*\s*(\d+(?:\.\d*)?|\.\d+)\s*$")
SMALLEST = 1e-3  # norm of a mix of unit vectors below which its direction means nothing


@dataclass(frozen=True)
class Term:
    """One query of a mix: what it is, its value (words, path or key), its signed weight, the space that it enters."""

    kind: Source
    value: str
    weight: float
    space: str | None = None


def read_mix(text: str) -> tuple[Term, ...]:
    """The terms of a mix.

    A term is ``KIND:VALUE``, ``KIND@SPACE:VALUE`` where two spaces have the modality, with ``*WEIGHT`` at its end (1
    if not said); terms are joined by `` + `` and `` - ``, a minus turns away from what follows. Kinds: ``text``,
    ``image``, ``audio``, ``points`` (paths), ``key`` (a row of the query cache, or of the gallery without one).

    Raises
    ------
    CmcrError
        It does not begin with a term, a value is empty, or nothing is added.
    """
    starts = list(_TERM.finditer(text))
    if not starts or starts[0].start() != 0:
        raise CmcrError(
            f"The mix {text!r} does not begin with a kind.",
            todo="for example --mix 'audio:rain.wav + text:at night*0.5 - text:people'; "
            f"kinds: {', '.join(get_args(Source))}",
        )
    terms = []
    for match, end in zip(starts, [*(one.start() for one in starts[1:]), len(text)], strict=True):
        value = text[match.end() : end]
        weight = _WEIGHT.search(value)
        words = (value[: weight.start()] if weight else value).strip()
        if not words:
            raise CmcrError(f"A term of the mix {text!r} has no value.", todo="write it after the colon")
        sign = -1.0 if "-" in (match["first"], match["sign"]) else 1.0
        kind: Source = match["kind"]  # type: ignore[assignment]
        terms.append(Term(kind, words, sign * float(weight[1]) if weight else sign, match["space"]))
    if not any(term.weight > 0 for term in terms):
        raise CmcrError(f"The mix {text!r} only turns away from things.", todo="add a term with a plus")
    return tuple(terms)


def shown_mix(terms: tuple[Term, ...]) -> str:
    """The mix in words, for a reader: files by their names, texts in quotes."""
    said: list[str] = []
    for term in terms:
        value = f"“{term.value}”" if term.kind == "text" else term.value
        value = value if term.kind in ("text", "key") else Path(value).name
        times = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        sign = "− " if term.weight < 0 else "+ " if said else ""
        said.append(f"{sign}{times}{value}")
    return " ".join(said)


def blend(vectors: Float32, weights: list[float], what: str) -> Float32:
    """The unit vector (D,) of the weighted sum of unit vectors (T, D).

    Raises
    ------
    CmcrError
        The terms cancel each other.
    """
    total = np.asarray(weights, np.float64) @ vectors.astype(np.float64)  # (D,)
    size = float(np.linalg.norm(total))
    if size < SMALLEST:
        raise CmcrError(f"The terms of the mix {what!r} cancel each other.", todo="change a weight")
    return np.asarray(total / size, np.float32)
