"""RoBERTa's tokenizer for CLAP's text tower: from a folder, the hub's cache or a download, and never a wrong one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...cache.errors import MissingWeightsError
from .base import digest
from .hub import cached_file, endpoint, hub_offline_unless, why_away
from .laion_clap_checkpoint import brief

if TYPE_CHECKING:
    import torch

VOCABULARY = 50_265
CONTEXT = 77
REPOSITORIES = ("roberta-base", "FacebookAI/roberta-base")  # the old name and the new one of the same repository
_SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 50_264}
_PAD = 1


class Tokens(NamedTuple):
    """One tokenised text: ids (CONTEXT,) int64, padded, and how many tokens the whole text has."""

    ids: torch.Tensor
    length: int


class Tokenizer:
    """The original's tokenizer with its settings: 77 tokens, padded to that length, truncated.

    Parameters
    ----------
    inner : object
        A RobertaTokenizer of transformers, of the official vocabulary.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        # Fast tokenizers set their truncation in a call and then refuse a second thread ("Already borrowed").
        self._lock = threading.Lock()

    def __call__(self, text: str) -> Tokens:
        """Tokens of one text; its whole length is counted only where the context is full."""
        import torch

        with self._lock:
            made = self._inner(text, padding="max_length", truncation=True, max_length=CONTEXT, verbose=False)
            length = sum(made["attention_mask"])
            if length == CONTEXT:
                length = len(self._inner(text, padding=False, truncation=False, verbose=False)["input_ids"])
        return Tokens(torch.tensor(made["input_ids"], dtype=torch.int64), length)

    def record(self) -> dict[str, Any]:
        """What decides the tokens, for the fingerprint: vocabulary and merges."""
        backend = getattr(self._inner, "backend_tokenizer", None)
        model = json.loads(backend.to_str())["model"] if backend is not None else {}
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
        return {
            "context": CONTEXT,
            "vocabulary": digest(self._inner.get_vocab()),
            "merges": digest({"merges": pairs}),
        }


def mask_of(tokens: Tokens) -> torch.Tensor:
    """Attention mask (CONTEXT,) int64: one for tokens, zero for padding."""
    import torch

    return (torch.arange(CONTEXT) < tokens.length).to(torch.int64)


def load_tokenizer(folder: str | None = None, cache_dir: str | None = None) -> Tokenizer:
    """The tokenizer of roberta-base.

    Parameters
    ----------
    folder : str, optional
        A local folder with ``vocab.json`` and ``merges.txt``, or with ``tokenizer.json``. Without one: the hub's cache,
        else a download.
    cache_dir : str, optional
        Of the hub, where it is not the usual one.

    Raises
    ------
    MissingWeightsError
        If there is none, or it is not the one of roberta-base. transformers gives a tokenizer of five tokens, and no
        error, where the vocabulary is missing.
    """
    place = _checked_folder(folder) if folder is not None else _cached_folder(cache_dir)
    why = why_away(endpoint()) if place is None else None
    if why is not None:
        raise _missing(f"the tokenizer of roberta-base is not on this machine, and {why}", "roberta-base")
    from transformers import RobertaTokenizer

    source = str(place or REPOSITORIES[0])
    settings = {"local_files_only": True} if place else {"cache_dir": cache_dir}
    try:
        with hub_offline_unless(place is None):
            inner = RobertaTokenizer.from_pretrained(source, **settings)
    except Exception as error:  # hub, JSON and vocabulary errors share no class
        raise _missing(f"the tokenizer of roberta-base cannot be loaded: {brief(error)}", source) from error
    vocabulary = inner.get_vocab()
    if len(vocabulary) != VOCABULARY or any(vocabulary.get(token) != i for token, i in _SPECIAL.items()):
        raise _missing(
            f"this is not the tokenizer of roberta-base: it has {len(vocabulary)} tokens, not {VOCABULARY}"
            if len(vocabulary) != VOCABULARY
            else "this is not the tokenizer of roberta-base: its special tokens have other numbers",
            source,
        )
    return Tokenizer(inner)


def _checked_folder(folder: str) -> Path:
    place = Path(folder).expanduser()
    if not _has_vocabulary(place):
        raise _missing("the folder has neither vocab.json with merges.txt nor tokenizer.json", folder)
    return place


def _cached_folder(cache_dir: str | None) -> Path | None:
    """The snapshot of the hub's cache that has the vocabulary, if any."""
    for repository in REPOSITORIES:
        for name in ("vocab.json", "tokenizer.json"):
            found = cached_file(repository, [name], cache_dir)
            if found is not None and _has_vocabulary(Path(found).parent):
                return Path(found).parent
    return None


def _has_vocabulary(place: Path) -> bool:
    both = (place / "vocab.json").is_file() and (place / "merges.txt").is_file()
    return both or (place / "tokenizer.json").is_file()


def _missing(what: str, where: str) -> MissingWeightsError:
    return MissingWeightsError(
        what,
        where=where,
        todo=(
            f"on a machine with network: hf download {REPOSITORIES[0]} vocab.json merges.txt config.json; then copy "
            "the three files (1.4 MB) to a folder roberta-base beside the checkpoint, or give tokenizer=FOLDER; "
            "to try the job now without any download: --encoder sandbox:clap --modality text"
        ),
    )
