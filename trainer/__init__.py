"""The trainer room: completion, losses, projectors, connectors, methods, the fit loop, metrics."""

from ..cache.errors import CmcrError

__all__ = ["CmcrError"]
