"""Families whose names are fixed and whose adapter this version does not ship: an honest error that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from ...cache.errors import EncoderError, MissingWeightsError
from .base import Modality


@dataclass(frozen=True)
class AnnouncedFamily:
    """A family that has a name and no adapter yet.

    Parameters
    ----------
    name : str
        Family name, as in ``family:model/weights``.
    modalities : tuple of str
        What its towers encode.
    file, get : str
        The official checkpoint and the command or page that it comes from.
    sandbox : str
        The sandbox encoder that does the same job on made-up data.
    """

    name: str
    modalities: tuple[Modality, ...]
    file: str
    get: str
    sandbox: str

    def load(self, model: str, weights: str | None, *, modality: Modality, **options: Any) -> NoReturn:
        """Raise, saying which file the encoder needs, where it is published, and what works today."""
        if modality not in self.modalities:
            raise EncoderError(
                f"{self.name} has no {modality} tower; it encodes {' and '.join(self.modalities)}",
                todo=f"cmcr encode --modality {self.modalities[0]} --encoder {self.name}:{model} ...",
            )
        file = f"{weights}.pt" if weights and "." not in weights else weights or self.file
        raise MissingWeightsError(
            f"{self.name}:{model} needs the checkpoint {file}, and this version of cmcr has no adapter for it yet",
            where=f"{self.name}:{model}/{weights or self.file}",
            todo=(
                f"to try the job now, without download: --encoder {self.sandbox}; or your own: my.py:MyEncoder; "
                f"the checkpoint is published: {self.get}"
            ),
        )


# Checkpoints of the paper, as its authors' repository names them (github.com/MCR-PEFT/C-MCR, README).
ULIP = AnnouncedFamily(
    name="ulip",
    modalities=("pointcloud", "image", "text"),
    file="pointbert_ULIP-2.pt",
    get="github.com/salesforce/ULIP; https://storage.googleapis.com/sfr-ulip-code-release-research/pretrained_models/"
    "ckpt_zero-sho_classification/pointbert_ULIP-2.pt",
    sandbox="sandbox:ulip",
)
