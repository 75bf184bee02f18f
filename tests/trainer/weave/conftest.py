"""Small worlds for the tests of weave: spaces that see the same meanings through maps that are planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cmcr.trainer.weave.data import Side, WeaveData
from torch import Tensor

View = Callable[[np.ndarray], np.ndarray]


def _unit_rows(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _data(
    rows: int = 70, banks: tuple[int, int] = (45, 37), dims: tuple[int, int] = (9, 6), seed: int = 0
) -> WeaveData:
    """Both spaces see meanings of five dimensions linearly, with some noise; rows are centred units already."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    meaning, sides = drawn(rows, 5), []
    for name, bank, dim in zip(("a", "b"), banks, dims, strict=True):
        view = drawn(5, dim)
        overlap = _unit_rows(meaning @ view + 0.1 * drawn(rows, dim))
        others = _unit_rows(drawn(bank, 5) @ view + 0.1 * drawn(bank, dim))
        sides.append(Side(name, overlap, others, 0.1 * drawn(dim), 0.1 * drawn(dim)))
    return WeaveData((sides[0], sides[1]), np.arange(rows))


@pytest.fixture(scope="session")
def make_data() -> Callable[..., WeaveData]:
    """Data of two linearly related spaces: rows, bank sizes, dims, seed."""
    return _data


@pytest.fixture
def planted(make_cache: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a fit on two spaces that see the same meanings, each by its own map; few candidates, few steps."""

    def plant(first: View, second: View, *, meanings: np.ndarray, banks: bool = True, **options: Any) -> dict[str, Any]:
        third = len(meanings) // 3
        space = {}
        for name, see, other in (("clap", first, meanings[third : 2 * third]), ("clip", second, meanings[2 * third :])):
            make_cache(f"text-{name}", see(meanings[:third]), space=name)
            space[name] = {"overlap": tmp_path / f"text-{name}"}
            if banks:
                make_cache(f"bank-{name}", see(other), space=name, modality=f"of-{name}")
                space[name]["bank"] = tmp_path / f"bank-{name}"
        grid = {"powers": [0.0, 0.25], "scales": [12.0], "whitens": [1.0], "steps": 20, "batch_size": 64}
        return {"space": space, "method": "weave", "output": tmp_path / "out", "options": {**grid, **options}}

    return plant


@pytest.fixture
def linear_world(planted: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Two linear views, 16 and 12 wide, of meanings of eight dimensions; steps = 0."""
    return planted(_view(16, 1), _view(12, 2), meanings=_meanings(900), steps=0)


def _meanings(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 8))


def _view(width: int, seed: int) -> View:
    matrix = np.random.default_rng(seed).standard_normal((8, width))

    def see(rows: np.ndarray) -> np.ndarray:
        vectors = rows @ matrix
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return see


@pytest.fixture(scope="session")
def view() -> Callable[[int, int], View]:
    """A linear view of eight dimensions as unit vectors of a space: width, seed."""
    return _view
