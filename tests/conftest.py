"""Fixtures that every room uses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported: spinning OpenMP threads slow small steps tenfold on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests that a shell runs in the background are deaf to Ctrl-C, and so would be every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def kit() -> Path:
    """The data kit: real embeddings and small real corpora."""
    place = Path(os.environ.get("CMCR_KIT", Path(__file__).resolve().parents[2] / "shared" / "kit"))
    if not (place / "reference_metrics.py").exists():
        pytest.skip(f"the data kit is not at {place}; set CMCR_KIT to its folder")
    return place
