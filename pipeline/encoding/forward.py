"""The forward pass over fixed batches: a bad item costs its own row and changes no neighbour's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cache.errors import CmcrError, EncoderError, ItemError
from ..encoders.base import Encoder, Vectors
from .messages import one_line

UNIT_TOLERANCE = 1e-3
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True)
class Encoded:
    """Vectors of a batch.

    Parameters
    ----------
    vectors : ndarray of float32, shape (B, D)
        Row i belongs to input i; rows of inputs without a vector are zero.
    errors : dict of int to (str, str)
        Inputs without a vector: error class and message.
    """

    vectors: Vectors
    errors: dict[int, tuple[str, str]]


class Forward:
    """Runs an encoder over batches of constant shape.

    The place of an input that is missing, or that the encoder refuses, is filled with a good one of the same batch and
    the row dropped: the same batch shape in the same place gives the same bits.

    Parameters
    ----------
    encoder : Encoder
    note : callable
        Told, in a sentence, when memory runs out and batches are halved, and when vectors have to be normalised.
    """

    def __init__(self, encoder: Encoder, note: Callable[[str], None] = lambda text: None) -> None:
        self._encoder = encoder
        self._note = note
        self._limit: int | None = None
        self._normalises = False
        self._taken_before: list[Any] = []

    def __call__(self, inputs: Sequence[Any], present: Sequence[bool]) -> Encoded:
        """Encode one batch.

        Parameters
        ----------
        inputs : sequence
            B decoded inputs; those not ``present`` are ignored.
        present : sequence of bool
            Which inputs there are.

        Raises
        ------
        EncoderError
            If the encoder fails on every input alike, or returns something of another shape.
        """
        good = [i for i, here in enumerate(present) if here]
        vectors = np.zeros((len(inputs), self._encoder.dim), dtype=np.float32)  # (B, D)
        if not good:
            return Encoded(vectors, {})
        errors: dict[int, tuple[str, str]] = {}
        try:
            rows = self._run(_filled(inputs, good))
        except Exception as error:  # an encoder may raise anything; told apart below
            if isinstance(error, CmcrError) and not isinstance(error, ItemError):
                raise
            rows, errors = self._one_by_one(inputs, good, error)
        kept = [i for i in good if i not in errors]
        vectors[kept] = rows[kept]
        errors.update(self._refuse(vectors, kept))
        if not self._taken_before:
            self._taken_before = [inputs[i] for i in kept if i not in errors][:1]
        return Encoded(vectors, errors)

    def _one_by_one(
        self, inputs: Sequence[Any], good: Sequence[int], first: Exception
    ) -> tuple[Vectors, dict[int, tuple[str, str]]]:
        """Find the inputs that the encoder refuses, then encode the batch without them."""
        singles = np.zeros((len(inputs), self._encoder.dim), dtype=np.float32)
        refused: dict[int, Exception] = {}
        for i in good:
            try:
                singles[i] = self._run([inputs[i]])[0]
            except ItemError as error:
                refused[i] = error
            except CmcrError:
                raise
            except Exception as error:  # the encoder may raise anything on one input; the ledger has its name
                refused[i] = error
        self._raise_if_systematic(refused, good, first)
        errors = {i: (type(error).__name__, one_line(error)) for i, error in refused.items()}
        kept = [i for i in good if i not in refused]
        if not kept or not refused:
            return singles, errors
        try:
            return self._run(_filled(inputs, kept)), errors
        except CmcrError as error:
            if not isinstance(error, ItemError):
                raise
            return singles, errors
        except Exception:  # the good ones fail only together: their single vectors stand
            return singles, errors

    def _raise_if_systematic(self, refused: dict[int, Exception], good: Sequence[int], first: Exception) -> None:
        """An encoder that fails on a whole batch, and on an input that it took before if there is one, is broken."""
        if len(refused) < len(good) or any(isinstance(error, ItemError) for error in refused.values()):
            return
        if self._taken_before:
            try:
                self._run(self._taken_before)
                return
            except Exception as error:  # whatever it is, it is not the item's fault
                first = error
        raise EncoderError(
            f"the encoder fails on every input: {type(first).__name__}: {one_line(first)}",
            where=self._encoder.name,
            todo="what was encoded before is safe: correct the encoder or the machine, and run the same command again",
        ) from first

    def _run(self, inputs: Sequence[Any]) -> Vectors:
        """Vectors (B, D) of inputs that all exist, in halves where memory runs out."""
        while True:
            size = min(self._limit or len(inputs), len(inputs))
            try:
                parts = [self._checked(inputs[i : i + size]) for i in range(0, len(inputs), size)]
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise EncoderError(
                        f"a batch of one does not fit into memory: {one_line(error)}",
                        where=self._encoder.name,
                        todo="--device cpu, a smaller model, or --precision bf16",
                    ) from error
                self._limit = size // 2
                _release_memory()
                self._note(f"out of memory with a batch of {size}: going on with batches of {self._limit}")

    def _checked(self, inputs: Sequence[Any]) -> Vectors:
        rows = np.asarray(self._encoder.encode(inputs), dtype=np.float32)
        if rows.shape != (len(inputs), self._encoder.dim):
            raise EncoderError(
                f"the encoder returned shape {rows.shape}, not {(len(inputs), self._encoder.dim)}",
                where=self._encoder.name,
                todo="encode(batch) returns float32 of shape (len(batch), dim)",
            )
        return rows

    def _refuse(self, vectors: Vectors, rows: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Rows that are not finite or zero; rows that are not of unit length are made so, in place."""
        errors: dict[int, tuple[str, str]] = {}
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)  # (B,)
        for i in rows:
            if not np.isfinite(norms[i]):
                errors[i] = ("NonFiniteVector", "the encoder returned NaN or infinity")
            elif norms[i] == 0.0:
                errors[i] = ("ZeroVector", "the encoder returned a vector of zeros")
            elif abs(norms[i] - 1.0) > UNIT_TOLERANCE:
                vectors[i] /= norms[i]
                if not self._normalises:
                    self._normalises = True
                    self._note(f"{self._encoder.name} returns vectors of length {norms[i]:.4g}: normalised here")
        return errors


def _filled(inputs: Sequence[Any], good: Sequence[int]) -> list[Any]:
    """The batch with every place that has no good input taken by the first good one."""
    chosen = set(good)
    return [inputs[i] if i in chosen else inputs[good[0]] for i in range(len(inputs))]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _release_memory() -> None:
    """Give freed GPU blocks back, where torch and a GPU are in use."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
