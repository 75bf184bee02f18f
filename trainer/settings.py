"""Settings of a fit and of a completion: one set of names for the command line, the recipe and Python."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..cache.sizes import parse_size

# Settings of a fit that are places on a machine; with the memory budget, those that decide no vector.
PLACES = frozenset({"output", "completions"})
DECIDES_NOTHING = PLACES | {"memory_budget"}
Precision = Literal["fp32", "bf16"]
Search = Literal["exact", "auto", "topk", "ivf", "hnsw"]
HeadKind = Literal["mlp", "half", "linear", "identity"]
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _temperature(value: object) -> float | Literal["auto"]:
    """A temperature: a number above 0, or ``auto``."""
    if value == "auto":
        return "auto"
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise PydanticCustomError("temperature", "Input should be a number greater than 0, or auto")
    return number


Temperature = Annotated[float | Literal["auto"], PlainValidator(_temperature)]


class CompletionSettings(BaseModel):
    """What decides the value of a completed vector, apart from the query and the bank.

    Parameters
    ----------
    tau : float or "auto"
        Temperature τ1 of the softmax over the bank; ``auto`` takes the one at which the median query averages 16 rows.
    bank_rows : int, optional
        Use a seeded sample of this many bank rows; all of them when None.
    seed : int
        Seed of that sample, of the probe, of an index; where nothing is drawn it decides nothing.
    search : str
        ``exact``: every bank row takes part. ``topk``: the exact k best, with a certificate. ``ivf``, ``hnsw``: what an
        approximate index proposes. ``auto``: the cheapest of exact, topk and ivf, by a probe.
    tolerance : float
        How far the unit vector of a row that is not completed exactly may be off.
    precision : str
        ``fp32``, or ``bf16`` products in place of exact ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: Temperature = 0.01
    bank_rows: int | None = Field(default=None, ge=1)
    seed: int = 0
    search: Search = "exact"
    tolerance: float = Field(default=1e-3, gt=0, lt=2)
    precision: Precision = "fp32"

    @model_validator(mode="after")
    def _bf16_is_of_the_whole_stream(self) -> CompletionSettings:
        if self.precision == "bf16" and self.search != "exact":
            raise PydanticCustomError("precision", "bf16 goes with every bank row: leave search as it is, or use fp32")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether nothing is left to choose or to measure: exact, float32, a given temperature."""
        return self.tau != "auto" and self.search == "exact" and self.precision == "fp32"

    def fingerprint_fields(self) -> dict[str, Any]:
        """The settings that decide the result: no seed where nothing is drawn, no tolerance where none is used."""
        fields: dict[str, Any] = {
            "tau": self.tau, "bank_rows": self.bank_rows, "precision": self.precision, "version": 1
        }  # fmt: skip
        if self.bank_rows is not None or self.tau == "auto" or self.search != "exact":
            fields["seed"] = self.seed
        if self.search != "exact":
            fields |= {"search": self.search, "tolerance": self.tolerance}
        return fields


class FitSettings(BaseModel):
    """Everything that a fit can be told; the defaults are the paper's (Wang et al., arXiv 2305.14381).

    Parameters
    ----------
    method : str
        Name of a method, or ``my.py:MyMethod``; a recipe must say which.
    output : str, optional
        Folder of the connector.
    epochs, batch_size, lr, weight_decay
        AdamW under a schedule; a batch is ``min(batch_size, N)`` rows and the last partial one is dropped.
    schedule : str
        Course of the learning rate after the warm-up: ``cosine`` or ``linear`` down to 0, or ``constant``.
    warmup : float
        Steps in which the learning rate rises from 0; below 1 a share of all steps.
    clip_grad : float, optional
        Largest norm of the gradient over all parameters; longer ones are scaled down to it.
    tau1, tau2, tau3 : float
        Temperatures of completion, of the overlap loss and of the completed loss.
    noise_variance : float
        σ² of the perturbation in every dimension: a variance, not a standard deviation.
    noise_norm : float, optional
        Instead of the variance: the expected norm of the noise, so that spaces of any width get noise of one strength.
    lambda_intra : float
        λ, the weight of the intra term.
    intra : str
        ``plain`` distances or ``squared`` ones.
    renormalise_completed : bool
        Bring completed vectors to unit length before the noise; False adds the noise to the sums as they are.
    bn_pass : str
        ``joint``: overlap and completed rows of a space pass its projector as one batch; ``separate``: as two.
    projector : str, or mapping of space name to str
        ``mlp`` (Linear BN ReLU Linear BN), ``half`` (Linear BN ReLU), ``linear`` or ``identity`` (nothing trained; the
        space is then as wide as ``out_dim``); spaces that a mapping leaves out get ``mlp``.
    keep : str, optional
        Name of a space whose vectors stay as they are: its head is the identity, the other head maps into it, and
        ``out_dim`` is its width.
    hidden, out_dim : int
        Widths inside the projector and of the shared space.
    chunk : int, optional
        Rows whose logits are held at a time; chosen from the batch size when not given.
    validate_every : int, optional
        Steps between two looks at the recipe's ``[validation]`` pair; an epoch when not given.
    patience : int, optional
        End the fit after so many looks without a better one. The best weights seen are the ones that are kept, with
        ``patience`` or without.
    seed : int
        Seed of the first weights, the order of the rows, the noise and the bank sample.
    device, precision : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``bf16`` is autocast over the projectors only.
    memory_budget : str
        What the cached vectors may take on an accelerator; beyond it batches are gathered from the caches.
    bank_rows : int, optional
        Use a seeded sample of each bank.
    completion_search, completion_tolerance, completion_precision : str, float, str
        ``search``, ``tolerance`` and ``precision`` of :class:`CompletionSettings`.
    min_join : float
        Least share of the larger overlap cache that must find its key in the other.
    completions : str, optional
        Folder that keeps completed caches for the next fit; beside the overlap cache when not given.
    log_every, checkpoint_every : int, optional
        Steps between metric lines and between checkpoints; the default is about 50 lines and 20 checkpoints a fit.
    options : mapping
        Settings of a method that are not named above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(min_length=1)
    output: str | None = None
    epochs: int = Field(default=36, ge=1)
    batch_size: int = Field(default=4096, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    clip_grad: float | None = Field(default=None, gt=0)
    tau1: Temperature = 0.01
    tau2: float = Field(default=0.01, gt=0)
    tau3: float = Field(default=0.01, gt=0)
    noise_variance: float = Field(default=0.004, ge=0)
    noise_norm: float | None = Field(default=None, ge=0)
    lambda_intra: float = Field(default=0.1, ge=0)
    intra: Literal["plain", "squared"] = "plain"
    renormalise_completed: bool = True
    bn_pass: Literal["joint", "separate"] = "joint"
    projector: HeadKind | dict[str, HeadKind] = "mlp"
    keep: str | None = None
    hidden: int = Field(default=1024, ge=1)
    out_dim: int = Field(default=512, ge=1)
    chunk: int | None = Field(default=None, ge=1)
    validate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: str = "auto"
    precision: Precision = "fp32"
    memory_budget: str = "2GB"
    bank_rows: int | None = Field(default=None, ge=1)
    completion_search: Search = "exact"
    completion_tolerance: float = Field(default=1e-3, gt=0, lt=2)
    completion_precision: Precision = "fp32"
    min_join: float = Field(default=0.99, ge=0, le=1)
    completions: str | None = None
    log_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    options: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("device")
    @classmethod
    def _device_has_a_known_form(cls, value: str) -> str:
        if _DEVICE.fullmatch(value) is None:
            raise ValueError("a device is auto, cpu, mps, cuda or cuda:1")
        return value

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _size_can_be_read(cls, value: str | int) -> str:
        parse_size(value)
        return str(value)

    @field_validator("warmup")
    @classmethod
    def _steps_are_whole(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("warmup is a whole number of steps, or a share of them below 1")
        return value

    @field_validator("projector")
    @classmethod
    def _something_is_trained(cls, value: HeadKind | dict[str, HeadKind]) -> HeadKind | dict[str, HeadKind]:
        kinds = [] if isinstance(value, str) else list(value.values())
        if value == "identity" or kinds.count("identity") > 1:
            raise ValueError("two identity heads train nothing; name one of the spaces, or keep it")
        return value

    def head_kind(self, name: str) -> HeadKind:
        """Kind of the head of a space, ``keep`` in it."""
        if name == self.keep:
            return "identity"
        return self.projector.get(name, "mlp") if isinstance(self.projector, dict) else self.projector

    def shared_dim(self, dims: Mapping[str, int]) -> int:
        """Width of the shared space, given those of the spaces: ``out_dim``, or that of the space that is kept."""
        return self.out_dim if self.keep is None else dims[self.keep]

    def warmup_steps(self, steps: int) -> int:
        """``warmup`` in steps, of so many in all."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def completion(self) -> CompletionSettings:
        """The part of these settings that decides a completion."""
        return CompletionSettings(
            tau=self.tau1,
            bank_rows=self.bank_rows,
            seed=self.seed,
            search=self.completion_search,
            tolerance=self.completion_tolerance,
            precision=self.completion_precision,
        )

    def noise_std(self, dim: int) -> float:
        """σ in one dimension of a space of width ``dim``: E‖ε‖² = σ² dim, so a norm n gives σ = n/√dim."""
        std: float = self.noise_variance**0.5 if self.noise_norm is None else self.noise_norm / dim**0.5
        return std

    def memory_bytes(self) -> int:
        """``memory_budget`` in bytes."""
        return parse_size(self.memory_budget)
