"""Cluster jobs: ranks of other schedulers, job arrays, and how far a cache is."""

from ...cache.errors import CmcrError as CmcrError
