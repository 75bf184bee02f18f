"""Files that are no published checkpoint, connectors that fit none, folders in use: each refused in words."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cmcr.cache.errors import CmcrError, ConnectorError
from cmcr.trainer.connector import Connector
from cmcr.trainer.made_folder import write_made
from cmcr.trainer.official import export_official, import_official, official_state

Write = Callable[..., Path]
Seeded = Callable[[str], OrderedDict[str, torch.Tensor]]


def damaged(seeded: Seeded, change: str) -> Any:
    """A state dict of ulip_clip.pt with one thing wrong."""
    state: Any = seeded("ulip_clip")
    weight = "Head_A.net.0.weight"
    if change == "missing":
        del state["Head_B.net.1.bias"]
    elif change == "surplus":
        state["Head_C.weight"] = torch.zeros(1)
    elif change == "shape":
        state[weight] = torch.zeros(512, 256)
    elif change == "half":
        state[weight] = state[weight].half()
    elif change == "nan":
        state[weight][3, 4] = torch.nan
    elif change == "variance":
        state["Head_A.net.1.running_var"][0] = -1
    elif change == "number":
        state[weight] = 3.0
    elif change == "sparse":
        state[weight] = torch.eye(512).to_sparse()
    elif change == "list":
        state = list(state)
    elif change == "wrapped":
        state = {"state_dict": state}
    elif change == "empty":
        state = {}
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing: Head_B\.net\.1\.bias"),
        ("surplus", r"not known: Head_C\.weight"),
        ("shape", r"Head_A\.net\.0\.weight of ulip_clip is torch\.float32 \(512, 256\)"),
        ("half", r"is torch\.float16"),
        ("nan", "not finite"),
        ("variance", "negative variances"),
        ("number", "is float, not a plain tensor"),
        ("sparse", "not a plain tensor"),
        ("list", "holds list, not a state dict"),
        ("wrapped", "not known: state_dict"),
        ("empty", "missing"),
    ],
)
def test_a_wrong_state_dict_is_one_clear_error(seeded: Seeded, write: Write, change: str, message: str) -> None:
    with pytest.raises(ConnectorError, match=message) as raised:
        import_official(write(damaged(seeded, change)))
    assert raised.value.where
    assert raised.value.todo


class Hostile:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_or_damaged_file_is_refused_and_runs_nothing(seeded: Seeded, write: Write, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    sound = write(seeded("ulip_clip"), "sound").read_bytes()
    cases: dict[str, bytes] = {
        "pickle": pickle.dumps({"Head_A.net.0.weight": Hostile(trap)}, protocol=2),
        "torch": write({**seeded("ulip_clip"), "x": Hostile(trap)}).read_bytes(),
        "cut": sound[:5000],
        "cut late": sound[:-200],
        "empty": b"",
        "text": b"not a checkpoint",
        "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "deep": b"\x80\x02" + b"(" * 5000,
    }
    for name, data in cases.items():
        (tmp_path / "bad.pt").write_bytes(data)
        with pytest.raises(ConnectorError, match="no state dict that loads without running code"):
            import_official(tmp_path / "bad.pt")
        assert not trap.exists(), name
    with pytest.raises(ConnectorError, match="no such checkpoint"):
        import_official(tmp_path / "nowhere.pt")
    with pytest.raises(ConnectorError, match="cannot be read"):
        import_official(tmp_path)


def test_a_file_that_unpacks_to_far_more_than_a_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(80 << 20))
    (tmp_path / "bomb.pt").write_bytes(bomb.getvalue())
    assert len(bomb.getvalue()) < 1 << 20
    with pytest.raises(ConnectorError, match="the largest published checkpoint"):
        import_official(tmp_path / "bomb.pt")


def test_a_connector_of_another_architecture_is_one_clear_error(seeded: Seeded, write: Write, tmp_path: Path) -> None:
    from cmcr.trainer.connector_info import ConnectorInfo, SpaceInfo
    from cmcr.trainer.projectors import identity

    plain = Connector({"clap": identity(6)}, ConnectorInfo({"clap": SpaceInfo("x")}, "identity"))
    with pytest.raises(ConnectorError, match="not the architecture of a published checkpoint") as raised:
        official_state(plain)
    assert "clap_clip: no space 'clip'" in str(raised.value.where)
    ulip = import_official(write(seeded("ulip_clip")))
    with pytest.raises(ConnectorError) as raised:
        official_state(ulip, "ex_ulip")
    assert "the head of 'clip' is half 512-512, not identity 512-512" in str(raised.value.where)
    (tmp_path / "file").touch()
    with pytest.raises(CmcrError, match="file"):
        export_official(ulip, tmp_path / "file" / "x.pt")


def test_a_folder_with_other_things_is_never_touched(seeded: Seeded, write: Write, tmp_path: Path) -> None:
    connector = import_official(write(seeded("ulip_clip")))
    folder = write_made(connector, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Connector of clip and ulip" in card
    assert "CC BY 4.0" in card
    assert "curve.png" not in card
    with pytest.raises(ConnectorError, match="holds a connector already"):
        write_made(connector, folder)
    write_made(connector, folder, overwrite=True)
    (folder / "metrics.jsonl").touch()
    with pytest.raises(ConnectorError, match=r"other things: metrics\.jsonl"):
        write_made(connector, folder, overwrite=True)
    with pytest.raises(ConnectorError, match="is a file"):
        write_made(connector, folder / "metrics.jsonl")
