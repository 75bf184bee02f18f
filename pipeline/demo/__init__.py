"""The demo: the whole job in the sandbox world through the public API."""

from ...cache.errors import CmcrError as CmcrError
