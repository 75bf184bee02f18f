"""The family ``ulip``: ULIP and ULIP-2 with PointBERT; points, image and text in one space.

Names
-----
``ulip:PointBERT/TAG``            xyz, 512-d: ``ulip:PointBERT/pointbert_ULIP-2``, short ``ulip2``
``ulip:PointBERT-Colored/TAG``    xyz and rgb, 1280-d: the 10k checkpoint, short ``ulip2-colored``
``ulip:MODEL/FILE``               a local checkpoint of either
``ulip:...?points=4096``          with options: ``points``, ``towers``, ``allow_pickle``, ``cache_dir``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache.errors import EncoderError
from .base import Encoder, Modality, Space, digest
from .ulip_networks import ImageTower, PointSpec, PointTower, SlipSpec, text_tower
from .ulip_weights import PAPER_TAG, Choice, choose, locate, missing_towers

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Variant:
    """A model of the family.

    Parameters
    ----------
    points : PointSpec
    dim : int
        Of the space.
    count : int
        Points of a cloud in pretraining and evaluation.
    slip : SlipSpec
        Its image and text towers, unless ``open_clip`` has them.
    open_clip : tuple of str, optional
        Model and tag of the image and text towers.
    """

    points: PointSpec
    dim: int
    count: int
    slip: SlipSpec = field(default_factory=SlipSpec)
    open_clip: tuple[str, str] | None = None


# models/pointbert/PointTransformer_8192point.yaml and ULIP_2_PointBERT_10k_colored_pointclouds.yaml of ULIP
MODELS = {
    "PointBERT": Variant(PointSpec(), 512, 8192),
    "PointBERT-Colored": Variant(
        PointSpec(channels=6, depth=18), 1280, 10_000, open_clip=("ViT-bigG-14", "laion2b_s39b_b160k")
    ),
}


class UlipFamily:
    """Loads a tower of ``ulip:model/weights``."""

    name = "ulip"

    def load(
        self,
        model: str,
        weights: str | None,
        *,
        modality: Modality,
        device: str = "cpu",
        precision: str = "fp32",
        points: int | str | None = None,
        towers: str | None = None,
        allow_pickle: bool | str = False,
        cache_dir: str | None = None,
    ) -> Encoder:
        """The point, image or text tower; see the module for the names.

        Parameters
        ----------
        points : int, optional
            Points of a cloud at most, if not the model's own number (8192; coloured 10,000).
        towers : str, optional
            File of the image and text towers, where the checkpoint carries none: SLIP's ``slip_base_100ep.pt``; for
            the coloured variant a file of the weights of open_clip's ViT-bigG-14.
        allow_pickle : bool
            Open ``.npy`` files that hold pickled objects, which can run code. It stands in no cache and no connector.

        Raises
        ------
        EncoderError
            If the name, an option or the file does not fit.
        MissingWeightsError
            If the checkpoint, or that of the tower asked for, is not on this machine and cannot be downloaded.
        """
        choice = choose(model, weights, tuple(MODELS))
        variant = MODELS[choice.model]
        count = _count(points, variant)
        pickles = _flag("allow_pickle", allow_pickle)
        path = locate(choice, modality, cache_dir)
        opened = _Opened(choice, variant, path)
        if modality == "pointcloud":
            from .ulip_towers import UlipPoints

            name = choice.name if count == variant.count else f"{choice.name}?points={count}"
            return UlipPoints(
                name,
                opened.space,
                opened.points,
                variant.points,
                dim=variant.dim,
                points=count,
                allow_pickle=pickles,
                device=device,
                precision=precision,
            )
        if variant.open_clip is not None:
            return opened.open_clip_tower(modality, towers, device, precision, cache_dir)
        return opened.slip_tower(modality, towers, device, precision)


class _Opened:
    """A checkpoint that was read and fits its model."""

    def __init__(self, choice: Choice, variant: Variant, path: Path) -> None:
        import torch

        from .open_clip_build import tensors_digest
        from .ulip_checkpoint import OPEN_CLIP, POINTS, check, fill, part, read_checkpoint

        self.choice = choice
        self.variant = variant
        self.path = path
        self._state = read_checkpoint(path)
        with torch.device("meta"):
            points: nn.Module = PointTower(variant.points, variant.dim)
        expected = {f"{choice.model}'s point tower": points}
        if variant.open_clip is None and self._carried():
            expected |= {"its image tower": self._slip("image"), "its text tower": self._slip("text")}
        own = {
            name: t for name, t in self._state.items() if variant.open_clip is None or not name.startswith(OPEN_CLIP)
        }
        check(own, expected, path)
        self.points = fill(points, part(self._state, POINTS))
        towers = variant.open_clip or ("SLIP", "ViT-B/16")
        identity = digest({"points": tensors_digest(self.points.state_dict()), "towers": towers})
        self.space = Space(identity, _space_name(choice, identity))

    def _carried(self) -> dict[str, Tensor]:
        """The tensors of SLIP's towers that the checkpoint carries."""
        from .ulip_checkpoint import IMAGE, TEXT, part

        return part(self._state, (*IMAGE, *TEXT))

    def _slip(self, modality: Modality) -> nn.Module:
        """A tower of SLIP without memory."""
        import torch

        with torch.device("meta"):
            spec, dim = self.variant.slip, self.variant.dim
            return ImageTower(spec, dim) if modality == "image" else text_tower(spec, dim)

    def slip_tower(self, modality: Modality, towers: str | None, device: str, precision: str) -> Encoder:
        """The image or text tower of the checkpoint, else of SLIP's own file."""
        from .ulip_checkpoint import IMAGE, TEXT, check, fill, part, read_checkpoint
        from .ulip_towers import UlipImage, UlipText

        state = self._carried()
        if state and towers:
            raise EncoderError("the checkpoint carries its own towers", where=str(self.path), todo="leave towers out")
        if not state:
            if towers is None:
                raise missing_towers(self.choice, modality, self.path)
            path = _existing(towers)
            state = read_checkpoint(path)
            check(
                state,
                {"SLIP's image tower": self._slip("image"), "its text tower": self._slip("text")},
                path,
                others="the towers of ULIP are those of slip_base_100ep.pt (github.com/facebookresearch/SLIP)",
            )
        network = fill(self._slip(modality), part(state, IMAGE if modality == "image" else TEXT))
        kind = UlipImage if modality == "image" else UlipText
        spec, dim = self.variant.slip, self.variant.dim
        return kind(self.choice.name, self.space, network, spec, dim=dim, device=device, precision=precision)

    def open_clip_tower(
        self, modality: Modality, towers: str | None, device: str, precision: str, cache_dir: str | None
    ) -> Encoder:
        """The image or text tower that open_clip loads by itself."""
        from .open_clip import OpenClipFamily
        from .ulip_checkpoint import OPEN_CLIP, part
        from .ulip_towers import OpenClipOfUlip

        if part(self._state, OPEN_CLIP):
            raise EncoderError(
                f"the checkpoint carries towers of open_clip; {self.choice.model} has those that open_clip publishes",
                where=str(self.path),
                todo="remove open_clip_model.* from the file if they were not trained on",
            )
        model, tag = self.variant.open_clip or ("", "")
        weights = f"{tag}@{_existing(towers)}" if towers else tag
        inner = OpenClipFamily().load(
            model, weights, modality=modality, device=device, precision=precision, cache_dir=cache_dir
        )
        return OpenClipOfUlip(self.choice.name, self.space, inner)


def _space_name(choice: Choice, identity: str) -> str:
    """``ulip`` for the paper's checkpoint, also as a local file of that name; otherwise what tells it apart."""
    if choice.stem == PAPER_TAG:
        return "ulip"
    return f"ulip-{choice.model.removeprefix('PointBERT').strip('-').lower() or 'pointbert'}-{identity[:6]}"


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise EncoderError(f"there is no file {file}", where=f"towers={path}", todo="check the path")
    return file


def _count(points: int | str | None, variant: Variant) -> int:
    if points is None:
        return variant.count
    try:
        count = int(points)
    except ValueError:
        count = 0
    if count < 1:
        raise EncoderError(f"points is {points!r}; it is a number of points, at least 1", where="points")
    return count


def _flag(name: str, value: bool | str) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "1", "yes", "false", "0", "no"):
        return value.lower() in ("true", "1", "yes")
    raise EncoderError(f"{name} is {value!r}; it is true or false", where=name)
