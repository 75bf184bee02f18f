"""The towers of ULIP as encoders: points, image, text; the coloured variant's image and text are open_clip's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...cache.errors import ItemError
from .base import Encoder, Item, Modality, Remarking, Space, Vectors, digest
from .open_clip_build import Tokens, tensors_digest
from .torchvision_shim import prepare_torchvision
from .ulip_networks import PointSpec, SlipSpec
from .ulip_ops import GREY, ORIGIN, Cloud, group, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

CODE_VERSION = 1
"""Raise it whenever these modules change a vector."""
# SLIP's evaluation (eval_zeroshot.py); ULIP trains with the same mean and standard deviation (main.py).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class _Tower:
    """What the towers share: names, the forward pass, the fingerprint."""

    modality: Modality

    def __init__(self, name: str, space: Space, network: nn.Module, *, dim: int, device: str, precision: str) -> None:
        self.name = name
        self.space = space
        self.dim = dim
        self.device = device
        self.precision = precision
        self._weights = tensors_digest(network.state_dict())
        self._network = network.to(device)

    def _digest(self, **inputs: Any) -> str:
        """Hash of weights, inputs, precision and versions."""
        return digest(
            {
                "family": "ulip",
                "code": CODE_VERSION,
                "space": self.space.id,
                "weights": self._weights,
                "modality": self.modality,
                "precision": self.precision,
                "inputs": inputs,
                "torch": ".".join(torch.__version__.split(".")[:2]),
            }
        )

    def _unit_rows(self, *inputs: Tensor) -> Vectors:
        """The network's output for inputs on the device, L2-normalised float32 rows (B, D)."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=self.precision != "fp32"):
            features = self._network(*inputs)
        rows = torch.nn.functional.normalize(features.float(), dim=-1)  # (B, D)
        return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


class UlipPoints(_Tower):
    """The point tower: PointBERT."""

    modality: Modality = "pointcloud"

    def __init__(
        self,
        name: str,
        space: Space,
        network: nn.Module,
        spec: PointSpec,
        *,
        dim: int,
        points: int,
        allow_pickle: bool,
        device: str,
        precision: str,
    ) -> None:
        super().__init__(name, space, network, dim=dim, device=device, precision=precision)
        self.points = points
        self._spec = spec
        self._allow_pickle = allow_pickle

    def fingerprint(self) -> str:
        """Hash of weights, sampling policy, precision and versions."""
        return self._digest(points=self.points, sampling="key-1", origin=ORIGIN, grey=GREY)

    def decode(self, item: Item) -> Cloud:
        """Points (N, 3) or (N, 6) in the unit ball, N at most ``points``; raises ItemError for a bad item."""
        from ..decoders.points import decode_points

        if not isinstance(item.data, bytes):
            raise ItemError("pointcloud data must be the bytes of a file", where=item.key)
        cloud = decode_points(
            item.data,
            item.name or item.key,
            allow_pickle=self._allow_pickle,
            key=item.key,
            surface_points=self.points,
        )
        return prepare(cloud, self._spec.channels, self.points, item.key)

    def encode(self, batch: Sequence[Cloud]) -> Vectors:
        """Decoded clouds to unit rows (B, D); a row does not depend on its neighbours in the batch."""
        clouds = [torch.as_tensor(cloud).to(self.device) for cloud in batch]
        with torch.inference_mode():
            neighbourhoods, centres = group(clouds, self._spec.groups, self._spec.group_size)
        return self._unit_rows(neighbourhoods, centres)


class UlipImage(_Tower):
    """The image tower of the xyz variant: SLIP's ViT-B/16, with the preprocessing of SLIP's evaluation."""

    modality: Modality = "image"

    def __init__(
        self, name: str, space: Space, network: nn.Module, spec: SlipSpec, *, dim: int, device: str, precision: str
    ) -> None:
        super().__init__(name, space, network, dim=dim, device=device, precision=precision)
        self.size = spec.image_size
        self._transform = image_transform(self.size)

    def fingerprint(self) -> str:
        """Hash of weights, preprocessing, precision and versions."""
        import PIL
        import timm
        import torchvision

        versions = [PIL.__version__, timm.__version__, torchvision.__version__.split("+")[0]]
        return self._digest(resize=self.size, crop="centre", mean=MEAN, std=STD, versions=versions)

    def decode(self, item: Item) -> Tensor:
        """The pixel tensor (3, S, S) of one encoded image; raises ItemError for a bad one."""
        from ..decoders.image import decode_image

        data = item.data.encode() if isinstance(item.data, str) else item.data
        return self._transform(decode_image(data, item.name))

    def encode(self, batch: Sequence[Tensor]) -> Vectors:
        """Pixel tensors (3, S, S) to unit rows (B, D)."""
        return self._unit_rows(torch.stack([torch.as_tensor(pixels) for pixels in batch]).to(self.device))


class UlipText(_Tower):
    """The text tower of the xyz variant: SLIP's transformer over CLIP's tokens."""

    modality: Modality = "text"

    def __init__(
        self, name: str, space: Space, network: nn.Module, spec: SlipSpec, *, dim: int, device: str, precision: str
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        super().__init__(name, space, network, dim=dim, device=device, precision=precision)
        self.context_length = spec.context
        self._tokenizer = SimpleTokenizer(context_length=spec.context)

    def fingerprint(self) -> str:
        """Hash of weights, vocabulary, precision and versions."""
        return self._digest(vocabulary=digest(self._tokenizer.encoder), context=self.context_length)

    def decode(self, item: Item) -> Tokens:
        """The tokens (77,) of a caption.

        As in the original (``utils/tokenizer.py``), a text that is cut loses its end token with the rest, and the
        tower reads the feature at its highest token.
        """
        try:
            text = item.data if isinstance(item.data, str) else item.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ItemError(f"the text is not UTF-8: {error.reason}", where=item.key) from error
        inner = self._tokenizer
        tokens = [inner.sot_token_id, *inner.encode(text), inner.eot_token_id]
        ids = torch.zeros(self.context_length, dtype=torch.long)
        kept = tokens[: self.context_length]
        ids[: len(kept)] = torch.tensor(kept)
        return Tokens(ids, len(tokens))

    def encode(self, batch: Sequence[Tokens]) -> Vectors:
        """Tokens to unit rows (B, D)."""
        return self._unit_rows(torch.stack([entry.ids for entry in batch]).to(self.device))

    def remark(self, decoded: Tokens) -> tuple[str, str] | None:
        """Says so where a text is longer than the context."""
        if decoded.length <= self.context_length:
            return None
        return "TruncatedText", f"{decoded.length} tokens, the first {self.context_length} kept"


class OpenClipOfUlip:
    """The image or text tower of the coloured variant: open_clip's, in ULIP's space."""

    def __init__(self, name: str, space: Space, inner: Encoder) -> None:
        self.name = name
        self.space = space
        self.modality = inner.modality
        self.dim = inner.dim
        self._inner = inner

    def fingerprint(self) -> str:
        """Hash of the space and of open_clip's own fingerprint."""
        return digest({"family": "ulip", "space": self.space.id, "inner": self._inner.fingerprint()})

    def decode(self, item: Item) -> Any:
        """As open_clip's tower."""
        return self._inner.decode(item)

    def encode(self, batch: Sequence[Any]) -> Vectors:
        """As open_clip's tower."""
        return self._inner.encode(batch)

    def remark(self, decoded: Any) -> tuple[str, str] | None:
        """As open_clip's tower, if it makes any."""
        return self._inner.remark(decoded) if isinstance(self._inner, Remarking) else None


def image_transform(size: int) -> Callable[[Image], Tensor]:
    """RGB image to pixels (3, size, size): shorter side to ``size``, centre, ImageNet's mean and deviation."""
    prepare_torchvision()
    from torchvision import transforms

    steps: Callable[[Image], Tensor] = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=MEAN, std=STD),
        ]
    )
    return steps
