"""Names of the laion_clap family, and what is said where weights, tokenizer or package are not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cmcr.cache.errors import EncoderError, MissingWeightsError
from cmcr.pipeline.encoders import laion_clap_build, laion_clap_weights, registry
from cmcr.pipeline.encoders.laion_clap_text import load_tokenizer
from cmcr.pipeline.encoders.registry import load_encoder


def test_names_that_do_not_fit_are_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    choose = laion_clap_weights.choose
    assert choose("HTSAT-tiny", "630k-best.pt") == choose("HTSAT-tiny", "630k-best")
    assert choose("HTSAT-tiny", f"custom@{tmp_path / 'w.pt'}").tag is None
    for model, weights, said in (
        ("HTSAT-tny", "630k-best", "did you mean HTSAT-tiny"),
        ("HTSAT-tiny", "630k-audoset-best", "did you mean laion_clap:HTSAT-tiny/630k-audioset-best"),
        ("HTSAT-tiny", "music_speech_epoch_15_esc_89.25", "--encoder laion_clap:HTSAT-base/music_speech"),
        ("HTSAT-tiny", None, "630k-fusion-best"),
        ("HTSAT-tiny", str(tmp_path / "absent.pt"), "check the path"),
    ):
        with pytest.raises(EncoderError) as caught:
            choose(model, weights)
        assert said in str(caught.value)
    with pytest.raises(EncoderError, match="laion_clap has no image tower"):
        load_encoder("clap", modality="image")
    with pytest.raises(EncoderError, match="fp16 is unusably slow"):
        load_encoder("clap", modality="audio", precision="fp16")


def test_a_package_that_is_not_installed_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (registry, laion_clap_build):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for load in (lambda: load_encoder("clap", modality="audio"), laion_clap_build.package_folder):
        with pytest.raises(EncoderError, match="needs the package laion_clap") as caught:
            load()
        assert "pip install" in str(caught.value)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_missing_weights_name_the_file_and_what_to_do(modality: Any, no_network: list[Any]) -> None:
    with pytest.raises(MissingWeightsError, match="cannot be reached") as caught:
        load_encoder("clap", modality=modality)
    text = str(caught.value)
    assert "hf download lukewys/laion_clap 630k-fusion-best.pt" in text
    assert f"--encoder sandbox:clap --modality {modality}" in text


def test_a_tokenizer_that_is_missing_or_another_is_refused(
    roberta_folder: Path, tmp_path: Path, no_network: list[Any]
) -> None:
    with pytest.raises(MissingWeightsError, match="not on this machine") as caught:
        load_tokenizer()
    assert "hf download roberta-base vocab.json merges.txt" in str(caught.value)
    with pytest.raises(MissingWeightsError, match=r"neither vocab\.json with merges\.txt"):
        load_tokenizer(str(tmp_path))
    vocabulary = json.loads((roberta_folder / "vocab.json").read_text(encoding="utf-8"))
    small = {token: i for token, i in vocabulary.items() if i < 5}
    swapped = {**vocabulary, "<pad>": 0, "<s>": 1}
    for words, said in ((small, "it has .* tokens, not 50265"), (swapped, "special tokens have other numbers")):
        (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(MissingWeightsError, match=said):
            load_tokenizer(str(tmp_path))
