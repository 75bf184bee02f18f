"""Make torchvision importable beside a CPU-only torch.

The torchvision wheel of PyPI is built for CUDA. Beside a CPU-only torch its compiled operators cannot be loaded, and
the import fails with ``operator torchvision::nms does not exist``, although transforms and models need none of them.
open_clip, timm and laion_clap all import torchvision, so :func:`prepare_torchvision` runs before any of them.
"""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LOCK = threading.Lock()
_kept: list[Any] = []  # a torch.library.Library takes its schemas with it when it is collected


def prepare_torchvision() -> None:
    """Load torchvision's operators, or else define the schemas that its import looks for.

    Idempotent. Without torchvision it does nothing. Beside a CPU-only torch ``torchvision.ops.nms`` and
    ``torchvision.io.read_image`` still raise; images are read with Pillow here.
    """
    torch: Any = import_module("torch")  # parts of torch.ops and torch.library carry no types
    with _LOCK:
        spec = find_spec("torchvision")
        if spec is None or _has_nms(torch):
            return
        for folder in spec.submodule_search_locations or ():
            for library in sorted(Path(folder).glob("_C*.so")):
                try:
                    torch.ops.load_library(str(library))
                except OSError:  # built for CUDA libraries that are not here: the case that this module is for
                    continue
        if not _has_nms(torch):
            schemas = torch.library.Library("torchvision", "DEF")
            schemas.define(f"nms{_SCHEMA}")
            schemas.define(f"qnms{_SCHEMA}")
            _kept.append(schemas)


def _has_nms(torch: Any) -> bool:
    return hasattr(torch.ops.torchvision, "nms")
