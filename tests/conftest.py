"""Fixtures that every room uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kit() -> Path:
    """The data kit: real embeddings and small real corpora."""
    place = Path(os.environ.get("CMCR_KIT", Path(__file__).resolve().parents[2] / "shared" / "kit"))
    if not (place / "reference_metrics.py").exists():
        pytest.skip(f"the data kit is not at {place}; set CMCR_KIT to its folder")
    return place
