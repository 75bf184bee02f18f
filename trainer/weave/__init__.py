"""The parts of the method ``weave``: data, experts, the label-free criterion, hubness."""

from __future__ import annotations

from ...cache.errors import CmcrError as CmcrError
