from ...cache.errors import CmcrError as CmcrError
