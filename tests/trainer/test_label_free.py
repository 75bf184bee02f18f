"""A fit sees overlap and banks alone: no test set, no label, no class name, whatever the method."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.trainer.methods import method_names

FIT = """
import os, sys
kit, folder, *methods = sys.argv[1:]
import torch
torch.set_num_threads(1)
refused = []

def guard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        if os.path.realpath(os.fsdecode(arguments[0])).startswith(os.path.realpath(kit)):
            refused.append(arguments[0])
            raise PermissionError(f"the data kit is closed: {arguments[0]}")

sys.addaudithook(guard)
try:
    open(os.path.join(kit, "audio_image", "test_audio.jsonl"))
except PermissionError:
    refused.clear()
else:
    sys.exit("the guard lets files through")
import cmcr
space = {s: {"overlap": f"{folder}/{s}-texts", "bank": f"{folder}/{s}-bank"} for s in ("audio", "image")}
for method in methods:
    small = dict(epochs=1, batch_size=256, hidden=64, out_dim=512, output=f"{folder}/out-{method}")
    print(method, cmcr.fit(space=space, method=method, **small).connector.dim)
sys.exit(f"it asked for {refused}" if refused else 0)
"""


@pytest.mark.kit
@pytest.mark.timeout(900)
def test_no_method_reads_test_sets_labels_or_class_names(
    kit: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    """All methods on a part of the kit's text and memories, in a process that cannot open a single file of the kit."""
    for space in ("audio", "image"):
        folder = kit / f"{space}_text"
        make_cache(f"{space}-texts", np.load(folder / "texts.npy")[:1500], space=space)
        make_cache(f"{space}-bank", np.load(folder / f"{space}_memory.npy")[:700], space=space, modality=space)
    arguments = [sys.executable, "-c", FIT, str(kit), str(tmp_path), *method_names()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fitted = dict(line.split() for line in done.stdout.splitlines())
    assert fitted.keys() == set(method_names())
    assert all(int(dim) > 0 for dim in fitted.values())
