"""Every error that cmcr raises on purpose. Imports nothing heavy."""

from __future__ import annotations


class CmcrError(Exception):
    """Base of all deliberate errors: what happened, where, and what to do next.

    Parameters
    ----------
    what : str
        What went wrong, as one sentence.
    where : str, optional
        The file, shard, key or setting that it went wrong at.
    todo : str, optional
        The next step for the reader, often a command.
    """

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  next:  {self.todo}")
        return "\n".join(lines)


class CacheError(CmcrError):
    """A cache is missing, damaged, of an unknown version, or used against its manifest."""


class FingerprintError(CacheError):
    """The encoder (or another producer) is not the one that the cache was made with."""


class DuplicateKeyError(CmcrError):
    """Two items of a corpus or cache have the same key."""


class JoinError(CmcrError):
    """Two caches do not share enough keys, or the same key stands for different captions."""


class CorpusError(CmcrError):
    """An input cannot be read as a corpus of the modality asked for."""


class ItemError(CmcrError):
    """One item cannot be decoded or encoded; becomes a line of the error ledger, never ends a run."""


class EncoderError(CmcrError):
    """An encoder is unknown, not installed, or does not fit the modality."""


class MissingWeightsError(EncoderError):
    """The weights of an encoder are not on this machine."""


class DeviceError(CmcrError):
    """A device is not known, or not on this machine."""


class RecipeError(CmcrError):
    """A recipe, setting or flag is not valid."""


class FitError(CmcrError):
    """Training cannot start or go on."""


class PeerError(FitError):
    """Another process of the same fit failed, and says why itself: nothing to tell a second time."""


class ConnectorError(CmcrError):
    """A connector is missing, damaged, or asked for a space that it does not have."""


class MissingExtraError(CmcrError):
    """A library of an optional extra is not installed."""
