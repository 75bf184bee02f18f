"""Evaluation protocols beside retrieval, and what all of them share: rows, result files, benchmark lists."""

from ...cache.errors import CmcrError as CmcrError
from .results import read_result as read_result
from .results import write_result as write_result
