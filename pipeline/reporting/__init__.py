"""One page over many result files: reading, grouping, pictures, the page and its CSV."""

from ...cache.errors import CmcrError as CmcrError
