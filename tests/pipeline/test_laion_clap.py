"""The laion_clap family by itself: names, checkpoints, the policy for long sounds, whole runs; all without network."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cmcr.cache.errors import EncoderError, ItemError
from cmcr.cache.reader import open_cache
from cmcr.pipeline.decoders import decode_audio
from cmcr.pipeline.encode import encode
from cmcr.pipeline.encoders import laion_clap_audio as policy
from cmcr.pipeline.encoders import laion_clap_build
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.encoders.laion_clap_checkpoint import read_checkpoint
from cmcr.pipeline.encoders.registry import load_encoder

BOTH = [pytest.param(False, marks=pytest.mark.slow, id="unfused"), pytest.param(True, id="fused")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, roberta_folder: Path) -> Iterator[dict[bool, Path]]:
    """An unfused and a fused checkpoint of random weights, RoBERTa of one layer, the vocabulary beside them."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "roberta-base").symlink_to(roberta_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(laion_clap_build.ROBERTA_BASE, "num_hidden_layers", 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made = {}
            for fused in (False, True):
                network = laion_clap_build.empty_network("HTSAT-tiny", fused=fused)
                network.audio_branch.bn0.running_mean.fill_(-30.0)
                network.audio_branch.bn0.running_var.fill_(400.0)
                made[fused] = folder / f"{'fused' if fused else 'plain'}.pt"
                state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
                torch.save({"epoch": 1, "state_dict": state, "best": np.float64(0.5)}, made[fused])
        yield made
    for file in made.values():
        file.unlink()


@pytest.fixture(scope="module")
def towers(files: dict[bool, Path]) -> dict[Any, Any]:
    """Audio towers by fused; the text tower by its name."""
    loaded: dict[Any, Any] = {
        fused: load_encoder(f"laion_clap:HTSAT-tiny/{file}", modality="audio") for fused, file in files.items()
    }
    loaded["text"] = load_encoder(f"laion_clap:HTSAT-tiny/{files[False]}", modality="text")
    return loaded


def sound(seconds: float, seed: int = 0, rate: int = 48_000, channels: int = 1, kind: str = "PCM_16") -> bytes:
    samples = np.random.default_rng(seed).normal(scale=0.2, size=(round(seconds * rate), channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=kind)
    return buffer.getvalue()


def test_towers_share_their_space_and_nothing_else(towers: dict[Any, Any]) -> None:
    assert towers["text"].space == towers[False].space != towers[True].space
    assert len({tower.fingerprint() for tower in towers.values()}) == 3
    assert towers["text"].name == "laion_clap:HTSAT-tiny/plain.pt"
    assert [towers[kind].dim for kind in (False, True, "text")] == [512] * 3
    assert (towers[False].fused, towers[True].fused) == (False, True)


def test_nothing_asks_the_network_when_networks_are_imported_and_weights_loaded(
    files: dict[bool, Path], no_network: list[Any]
) -> None:
    for name in [name for name in sys.modules if name.startswith(laion_clap_build._ALIAS)]:
        del sys.modules[name]
    before = {name for name in sys.modules if name.split(".")[0] in ("laion_clap", "clap_module")}
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(laion_clap_build.original_model())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(module) for module in found}) == 1
    load_encoder(f"laion_clap:HTSAT-tiny/{files[True]}", modality="audio")
    assert {name for name in sys.modules if name.split(".")[0] in ("laion_clap", "clap_module")} == before
    assert not no_network


def test_loading_leaves_the_random_state_of_the_process_alone(files: dict[bool, Path]) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(f"laion_clap:HTSAT-tiny/{files[False]}", modality="audio")
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize(
    ("model", "fused"), [("HTSAT-tiny", True), pytest.param("HTSAT-base", False, marks=pytest.mark.slow)]
)
def test_state_dicts_of_the_official_keys_shapes_and_nesting_load(
    model: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(laion_clap_build.ROBERTA_BASE, "num_hidden_layers", 12)
    shapes = laion_clap_build.empty_network(model, fused=fused, text=False).state_dict()
    state = {  # one stored number a tensor
        f"module.{name}": torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in shapes.items()
    }
    assert "module.text_branch.encoder.layer.11.output.LayerNorm.bias" in state
    assert sum(tensor.numel() for tensor in state.values()) > 150_000_000
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    tag = "630k-fusion-best" if fused else "music_audioset_epoch_15_esc_90.14"
    file = tmp_path / f"{tag}.pt"
    torch.save({"epoch": 15, "name": tag, "optimizer": {"param_groups": [{"lr": 1e-4}]}, "state_dict": state}, file)
    encoder: Any = load_encoder(f"laion_clap:{model}/{tag}@{file}", modality="audio")
    assert encoder.fused is fused
    assert encoder.space.name == ("clap" if fused else f"clap-htsat-base-{tag}")
    assert encoder.name == f"laion_clap:{model}/{tag}@{tag}.pt"


def test_nesting_prefixes_and_position_ids_make_no_difference(files: dict[bool, Path], tmp_path: Path) -> None:
    want = read_checkpoint(files[False])
    ids = {"text_branch.embeddings.position_ids": torch.arange(514)[None]}
    torch.save({**want, **ids}, tmp_path / "bare.pt")
    torch.save(dict(want), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("bare.pt", "old.pt"):
        got = read_checkpoint(tmp_path / name)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in list(want)[::50])


def test_fused_files_and_unfused_models_do_not_mix(files: dict[bool, Path]) -> None:
    for fused, tag, said in ((True, "630k-best", "fused"), (False, "630k-fusion-best", "unfused")):
        with pytest.raises(EncoderError, match=f"^the file holds {said} weights, and {tag} is an? ") as caught:
            load_encoder(f"laion_clap:HTSAT-tiny/{tag}@{files[fused]}", modality="audio")
        assert f"--encoder laion_clap:HTSAT-tiny/{files[fused]}" in str(caught.value)
        assert "\n" not in caught.value.what
    with pytest.raises(EncoderError, match="holds weights of HTSAT-tiny, not of HTSAT-base"):
        load_encoder(f"laion_clap:HTSAT-base/{files[False]}", modality="audio")


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(files: dict[bool, Path], tmp_path: Path) -> None:
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in read_checkpoint(files[False]).items()}
    torch.save({name: state[name] for name in list(state)[:-2]} | {"more": torch.zeros(1)}, tmp_path / "short.pt")
    torch.save({**state, "logit_scale_a": torch.zeros(2)}, tmp_path / "shape.pt")
    torch.save({"audio_model.x": torch.zeros(1)}, tmp_path / "transformers.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, said in {
        "short": "2 missing .*; 1 unknown",
        "shape": r"1 of another shape \(logit_scale_a \(2,\), not \(\)\)",
        "transformers": "1 unknown",
        "module": "cannot be read",
        "list": "no state dict",
        "text": "cannot be read",
    }.items():
        with pytest.raises(EncoderError, match=said) as caught:
            load_encoder(f"laion_clap:HTSAT-tiny/{tmp_path / name}.pt", modality="audio")
        assert len(str(caught.value)) < 900
        assert "\n" not in caught.value.what


def test_positions_depend_on_the_key_alone_and_reach_every_place() -> None:
    assert [policy.draw(key, "crop", 1000) for key in ("", "a", "b/ü")] == [882, 155, 952]
    drawn = [policy.draw(str(i), "crop", 10) for i in range(400)]
    assert np.bincount(drawn, minlength=10).min() > 20
    assert policy.draw("k", "front", 10**6) != policy.draw("k", "back", 10**6)
    for frames in (1002, 1003, 1500, 3001):
        starts = policy.chunk_starts(frames, "key")
        assert all(0 <= start <= frames - policy.FRAMES for start in starts)


def test_the_same_long_sound_gives_the_same_bits_every_time(towers: dict[Any, Any]) -> None:
    item = Item("long", sound(12.3), name="long.wav")
    for fused in (False, True):
        tower = towers[fused]
        clips = []
        for seed in range(10):
            np.random.seed(seed)  # noqa: NPY002  the generator that the original draws from
            torch.manual_seed(seed)
            clips.append(tower.decode(item))
        assert clips[0].values.shape == ((4, 1001, 64) if fused else (480_000,))
        assert clips[0].longer is fused
        assert all(torch.equal(clip.values, clips[0].values) for clip in clips)
        rows = [tower.encode([clip]) for clip in clips]
        assert all(np.array_equal(row, rows[0]) for row in rows)
        assert torch.equal(tower.prepare(policy.at_rate(decode_audio(item.data)), "long").values, clips[0].values)
        other = tower.decode(Item("other", item.data, name="long.wav"))
        assert not torch.equal(other.values, clips[0].values)
        short = tower.decode(Item("short", sound(0.7, seed=2), name="short.wav"))
        mixed = tower.encode([short, clips[0], other])
        assert np.abs(mixed[1] - rows[0][0]).max() < 1e-5
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2 if threads == 1 else 1)
            assert np.abs(tower.encode([clips[0]]) - rows[0]).max() < 1e-5
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("fused", BOTH)
def test_half_precision_changes_the_fingerprint_and_little_else(
    files: dict[bool, Path], towers: dict[Any, Any], fused: bool
) -> None:
    half = load_encoder(f"laion_clap:HTSAT-tiny/{files[fused]}", modality="audio", precision="bf16")
    assert half.fingerprint() != towers[fused].fingerprint()
    clips = [half.decode(Item(str(i), sound(5 + 6 * i, seed=i), name="x.wav")) for i in range(2)]
    distance = np.abs(half.encode(clips) - towers[fused].encode(clips)).max()
    assert 1e-6 < distance < 0.02


@pytest.mark.kit
@pytest.mark.parametrize("fused", BOTH)
def test_bad_sounds_end_as_the_manifest_expects(
    files: dict[bool, Path], fused: bool, kit: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for path in (kit / "raw" / "bad").glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "six_channels.wav").write_bytes(sound(0.5, rate=22_050, channels=6))
    name = f"laion_clap:HTSAT-tiny/{files[fused]}"
    report = encode(folder, tmp_path / "cache", modality="audio", encoder=name, device="cpu", batch_size=2)
    cache = open_cache(tmp_path / "cache")
    good = {"pcm_8bit", "silent", "six_channels", "very_short_10_samples"}
    assert set(cache.keys()) == good
    assert np.isfinite(cache.rows(np.arange(4))).all()
    ledger = {failure.key: failure.message for failure in cache.failures()}
    assert report.failed == len(ledger) == 6
    for key, said in {
        "truncated": "truncated",
        "zero_bytes": "empty",
        "zero_samples": "no samples",
        "nan_float32": "not finite",
        "text_renamed": "cannot be decoded",
        "truncated_header": "cannot be decoded",
    }.items():
        assert said in ledger[key]


def test_texts_are_encoded_and_truncated_ones_remarked(
    files: dict[bool, Path], towers: dict[Any, Any], tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("a dog barks\n" + "thunder rolls over the hills " * 30 + "\n")
    name = f"laion_clap:HTSAT-tiny/{files[False]}"
    report = encode(tmp_path / "t.txt", tmp_path / "cache", modality="text", encoder=name, device="cpu")
    assert (report.rows, report.failed, report.truncated) == (2, 0, 1)
    (line,) = open_cache(tmp_path / "cache").failures()
    assert (line.key, line.error, line.lost) == ("t:000000002", "TruncatedText", False)
    assert line.message.endswith("tokens, the first 77 kept")


def test_inputs_of_the_wrong_kind_are_one_clear_line_each(towers: dict[Any, Any]) -> None:
    both: Any = ["a dog barks", "rain falls"]
    with pytest.raises(ItemError, match="2 captions for one item: a row has one text"):
        towers["text"].decode(Item("k", both))
    with pytest.raises(ItemError, match="not UTF-8"):
        towers["text"].decode(Item("k", b"\xff"))
    with pytest.raises(ItemError, match="bytes of one sound file"):
        towers[True].decode(Item("k", "a caption"))
