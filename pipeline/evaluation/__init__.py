"""Evaluation protocols beside retrieval, and what all of them share: rows, result files, benchmark lists."""

from __future__ import annotations

from .results import read_result, write_result

__all__ = ["read_result", "write_result"]
