"""The parts of a search: exact top-k, approximate indexes, filters, mixes and output."""

from __future__ import annotations

from ...cache.errors import CmcrError as CmcrError
