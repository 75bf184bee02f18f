"""Official lists of the benchmarks, and a user's media folder beside them."""

from ....cache.errors import CmcrError as CmcrError
from .entries import Entry as Entry
from .entries import Prepared as Prepared
