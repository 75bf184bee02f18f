"""The laion_clap family against the installed laion_clap at identical weights, stage by stage, with faults planted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cmcr.pipeline.encoders import laion_clap_audio as policy
from cmcr.pipeline.encoders.base import Item
from cmcr.pipeline.encoders.laion_clap_build import ROBERTA_BASE
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision

TOLERANCE = 1e-4
APART = 0.9
TEXTS = ["a dog barks while rain falls", "", "ein Hund – 😀 <mask>", "thunder " * 60, "a crowd of people claps"]
Stages = dict[str, Any]


@dataclass
class World:
    """The original with scaled random weights, its inputs, and both towers of ours from the checkpoint saved of it."""

    original: Any
    data: Any
    fused: bool
    sounds: list[Path]
    inputs: dict[str, dict[str, torch.Tensor]]
    audio: Any = None
    text: Any = None


def original_of(fused: bool, folder: Path) -> tuple[Any, Any]:
    """``laion_clap.CLAP_Module`` at initial weights and its module of features, made without a hub."""
    prepare_torchvision()
    import transformers

    tokenizer = transformers.RobertaTokenizer.from_pretrained(str(folder))
    config = transformers.RobertaConfig(**ROBERTA_BASE)
    with pytest.MonkeyPatch.context() as patch:
        for name, made in {
            "RobertaModel": lambda: transformers.RobertaModel(config),
            "BertTokenizer": lambda: None,
            "BartTokenizer": lambda: None,
            "RobertaTokenizer": lambda: tokenizer,  # last: in transformers 5 Bart's is the same class
        }.items():
            patch.setattr(
                getattr(transformers, name), "from_pretrained", lambda *_, made=made, **__: made(), raising=True
            )
        before = list(sys.path)
        import laion_clap
        from laion_clap.training import data

        sys.path[:] = before
        original = laion_clap.CLAP_Module(enable_fusion=fused, device="cpu", amodel="HTSAT-tiny")
    return original, data


def scale(model: Any, inputs: list[dict[str, torch.Tensor]], tokens: dict[str, torch.Tensor]) -> None:
    """Weights at which different inputs have different vectors; at initial ones all are nearly the same.

    Matrices are enlarged, the first batch norm is given the statistics of spectra, and the projections' biases take
    the mean of the pooled features away.
    """
    with torch.no_grad():
        model.audio_branch.bn0.running_mean.fill_(-35.0)
        model.audio_branch.bn0.running_var.fill_(400.0)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "logit_scale" in name:
                continue
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.02)
            else:
                parameter.mul_(1.5 if "patch_embed" in name or "tscam" in name else 3.0)
        batch = {name: torch.stack([one[name] for one in inputs]) for name in inputs[0]}
        pooled = model.encode_audio(batch, "cpu")["embedding"].mean(dim=0)  # (768,)
        model.audio_projection[0].bias.sub_(model.audio_projection[0].weight @ pooled)
        pooled = model.text_branch(**tokens).pooler_output.mean(dim=0)
        model.text_projection[0].bias.sub_(model.text_projection[0].weight @ pooled)


def save(model: Any, path: Path) -> None:
    """A checkpoint of exactly the official nesting: wrapped names, position ids, optimizer, epoch, name."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"epoch": 45, "name": "parity", "state_dict": state, "optimizer": optimizer}, path)


def torchaudio_mel(samples: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """torchaudio's MelSpectrogram and AmplitudeToDB, restated: (T,) to (F, M) decibels."""
    size, hop, rate, count = (config[name] for name in ("window_size", "hop_size", "sample_rate", "mel_bins"))
    window = torch.hann_window(size)
    power = torch.stft(samples, size, hop, window=window, pad_mode="reflect", return_complex=True).abs() ** 2
    low, high = (2595.0 * np.log10(1.0 + config[name] / 700.0) for name in ("fmin", "fmax"))
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, count + 2) / 2595.0) - 1.0)
    slopes = edges[None] - torch.linspace(0, rate // 2, size // 2 + 1)[:, None]
    gaps = edges[1:] - edges[:-1]
    bank = torch.minimum(-slopes[:, :-2] / gaps[:-1], slopes[:, 2:] / gaps[1:]).clamp(min=0)
    return 10.0 * torch.log10((power.T @ bank).clamp(min=1e-10))


def write_sounds(folder: Path) -> list[Path]:
    """Short and long, mono and stereo, several rates, one with a length that does not divide."""
    generator = np.random.default_rng(11)
    t = np.arange(22 * 48_000) / 48_000
    hiss = generator.normal(scale=0.003, size=2 * 44_100)
    noise = generator.normal(scale=0.1, size=16_003)
    chirp = 0.4 * np.sin(2 * np.pi * (100 + 300 * t) * t) + generator.normal(scale=0.05, size=len(t)) * (t % 2 < 1)
    bursts = generator.normal(scale=0.4, size=9 * 32_000) * (np.sin(3 * t[: 9 * 32_000]) > 0.2)
    made = {
        "hiss.wav": (np.stack([hiss, 0.2 * np.roll(hiss, 7)], axis=1), 44_100),
        "noise.flac": (noise, 16_000),
        "chirp.wav": (chirp, 48_000),
        "bursts.wav": (bursts, 32_000),
        "hop.wav": (np.sign(chirp[:480_100]) * 0.2, 48_000),
    }
    for name, (samples, rate) in made.items():
        soundfile.write(folder / name, samples, rate)
    return [folder / name for name in made]


@pytest.fixture(
    scope="module",
    params=[(False, 2), (True, 2), pytest.param((True, 12), marks=pytest.mark.slow)],
    ids=["unfused", "fused", "fused-whole"],
)
def world(
    request: pytest.FixtureRequest, roberta_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """RoBERTa has two layers here, for time (twelve under ``slow``); everything else is of the official size."""
    folder = tmp_path_factory.mktemp("clap")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        fused, layers = request.param
        patch.setitem(ROBERTA_BASE, "num_hidden_layers", layers)
        torch.manual_seed(7)
        original, data = original_of(fused, roberta_folder)
        if data.torchaudio is None:
            patch.setattr(data, "get_mel", torchaudio_mel)
        original.eval()
        made = World(original, data, fused, write_sounds(folder), {})
        for path in made.sounds:
            made.inputs[path.stem] = original_inputs(made, path)
        scale(original.model, [clean(one) for one in made.inputs.values()], original.tokenizer(TEXTS))
        save(original.model, folder / "clap.pt")
        name = f"laion_clap:HTSAT-tiny/{folder / 'clap.pt'}"
        made.audio = load_encoder(name, modality="audio")
        made.text = load_encoder(name, modality="text", tokenizer=str(roberta_folder))
        (folder / "clap.pt").unlink()
        yield made


def clean(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the original gives its model."""
    return {name: value for name, value in inputs.items() if name != "samples"}


def original_inputs(world: World, path: Path) -> dict[str, torch.Tensor]:
    """The original's own path from a file to its model, given the choices that our policy makes for the file's key."""
    import librosa

    names = iter(("front", "middle", "back"))
    samples, _ = librosa.load(path, sr=48_000)
    quantised = torch.from_numpy(world.data.int16_to_float32(world.data.float32_to_int16(samples))).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda low, high: policy_draw(path.stem, "crop", high))
        patch.setattr(np.random, "choice", lambda part: part[policy_draw(path.stem, next(names), len(part))])
        made: dict[str, torch.Tensor] = world.data.get_audio_features(
            {},
            quantised,
            480_000,
            data_truncating="fusion" if world.fused else "rand_trunc",
            data_filling="repeatpad",
            audio_cfg=world.original.model_cfg["audio_cfg"],
        )
    return {"samples": quantised, **made}


policy_draw: Callable[[str, str, int], int] = policy.draw  # kept apart: a test below replaces the module's


def item(path: Path) -> Item:
    return Item(path.stem, path.read_bytes(), name=path.name)


def check_inputs(world: World, path: Path) -> dict[str, float]:
    """Raise AssertionError, naming the stage, where an input of ours is not the original's; give the differences."""
    want = world.inputs[path.stem]
    samples = policy.quantised(policy.at_rate(policy_audio(path)))
    clip = world.audio.decode(item(path))
    assert samples.shape == tuple(want["samples"].shape), "samples"
    differences = {"samples": float(np.abs(samples - want["samples"].numpy()).max())}
    if world.fused:
        assert clip.longer == bool(want["longer"]), "longer"
        differences["mel"] = float((clip.values.expand(4, -1, -1) - want["mel_fusion"]).abs().max())
    else:
        differences["waveform"] = float((clip.values - want["waveform"]).abs().max())
    for stage, difference in differences.items():
        assert difference < TOLERANCE, f"{stage}: {difference}"
    return differences


def policy_audio(path: Path) -> Any:
    from cmcr.pipeline.decoders import decode_audio

    return decode_audio(path.read_bytes(), path.name)


def watched(module: Any, read: Callable[[Any], torch.Tensor], run: Callable[[], Any]) -> tuple[torch.Tensor, Any]:
    """What a module of a network puts out while something runs, and what that gives."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: seen.append(read(out).detach().clone()))
    with torch.no_grad():
        result = run()
    handle.remove()
    return seen[-1], result


def pooled_audio(out: Any) -> torch.Tensor:
    return out["embedding"]  # type: ignore[no-any-return]


def apart(vectors: np.ndarray) -> float:
    """The largest cosine of two different rows."""
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].max())


def test_sounds_are_decoded_cropped_filled_and_turned_into_spectra_as_by_the_original(world: World) -> None:
    for path in world.sounds:
        check_inputs(world, path)


def test_sounds_encode_as_the_original_encodes_them(world: World) -> None:
    inputs = [clean(world.inputs[path.stem]) for path in world.sounds]
    theirs, ours = world.original.model.audio_branch, world.audio._network.audio_branch
    clips = [world.audio.decode(item(path)) for path in world.sounds]
    pooled, want = watched(theirs, pooled_audio, lambda: world.original.model.get_audio_embedding(inputs))
    have, got = watched(ours, pooled_audio, lambda: world.audio.encode(clips))
    assert apart(want.numpy()) < APART, "weights at which sounds cannot be told apart prove nothing"
    assert (pooled - have).abs().max() < TOLERANCE
    assert np.abs(want.numpy() - got).max() < TOLERANCE
    assert got.shape == (len(world.sounds), world.audio.dim)


def test_unfused_spectra_are_the_originals(world: World) -> None:
    if world.fused:
        pytest.skip("the network of a fused model gets spectra: compared above")
    path = world.sounds[1]
    theirs, ours = (model.audio_branch.logmel_extractor for model in (world.original.model, world.audio._network))
    waveform = world.inputs[path.stem]["waveform"]
    want, _ = watched(
        theirs, lambda out: out, lambda: world.original.model.get_audio_embedding([{"waveform": waveform}])
    )
    got, _ = watched(ours, lambda out: out, lambda: world.audio.encode([world.audio.decode(item(path))]))
    assert (want - got).abs().max() < TOLERANCE


def test_texts_encode_as_the_original_encodes_them(world: World) -> None:
    tokens = [world.text.decode(Item(str(i), text)) for i, text in enumerate(TEXTS)]
    wanted = world.original.tokenizer(TEXTS)
    assert torch.equal(torch.stack([one.ids for one in tokens]), wanted["input_ids"])
    assert [min(one.length, 77) for one in tokens] == wanted["attention_mask"].sum(1).tolist()
    theirs, ours = world.original.model.text_branch, world.text._network.text_branch
    pooled, want = watched(theirs, lambda out: out.pooler_output, lambda: world.original.get_text_embedding(TEXTS))
    have, got = watched(ours, lambda out: out.pooler_output, lambda: world.text.encode(tokens))
    assert apart(want) < APART
    assert (pooled - have).abs().max() < TOLERANCE
    assert np.abs(want - got).max() < TOLERANCE
    assert np.array_equal(world.text.encode(TEXTS), got)


def test_a_mel_scale_of_slaney_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import librosa

    settings = {"sr": 48_000, "n_fft": 1024, "n_mels": 64, "fmin": 50, "fmax": 14_000}
    htk = librosa.filters.mel(**settings, htk=True, norm=None)
    assert np.abs(policy.mel_bank().numpy() - htk.T).max() < 1e-5
    bank = librosa.filters.mel(**settings)
    if not world.fused:
        path, network = world.sounds[1], world.audio._network
        good = world.audio.encode([world.audio.decode(item(path))])
        weight = network.audio_branch.logmel_extractor.melW
        assert torch.allclose(weight, torch.from_numpy(bank.T)), "unfused checkpoints carry Slaney's filters"
        monkeypatch.setattr(weight, "data", policy.mel_bank())
        assert np.abs(world.audio.encode([world.audio.decode(item(path))]) - good).max() > TOLERANCE
        return
    monkeypatch.setattr(policy, "mel_bank", lambda: torch.from_numpy(bank.T.copy()))
    with pytest.raises(AssertionError, match="mel"):
        check_inputs(world, world.sounds[1])


def test_a_wrong_crop_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "draw", lambda key, what, count: count // 2)
    with pytest.raises(AssertionError, match=r"mel|waveform"):
        check_inputs(world, world.sounds[2])


def test_padding_by_zeros_alone_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "fill", lambda samples: np.pad(samples, (0, 480_000 - len(samples))))
    with pytest.raises(AssertionError, match=r"mel|waveform"):
        check_inputs(world, world.sounds[1])


def test_a_resampled_sound_one_sample_short_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    right = policy.at_rate
    monkeypatch.setattr(policy, "at_rate", lambda audio: right(audio)[:-1])
    with pytest.raises(AssertionError, match="samples"):
        check_inputs(world, world.sounds[1])
