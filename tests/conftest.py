"""Fixtures that every room uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: spinning OpenMP threads slow small steps tenfold on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def kit() -> Path:
    """The data kit: real embeddings and small real corpora."""
    place = Path(os.environ.get("CMCR_KIT", Path(__file__).resolve().parents[2] / "shared" / "kit"))
    if not (place / "reference_metrics.py").exists():
        pytest.skip(f"the data kit is not at {place}; set CMCR_KIT to its folder")
    return place
