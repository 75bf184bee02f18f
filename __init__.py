"""cmcr connects frozen contrastive models without paired data.

Corpora become embedding caches, caches become a connector, the connector answers a search across modalities. The
functions below are the whole job from Python; each command of ``cmcr`` calls one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cache._version import __version__
from .cache.errors import CmcrError
from .trainer.hooks import InputEncoder, RelevanceReader, register_input_encoder, register_relevance_reader

if TYPE_CHECKING:
    from .cache.importer import import_clip_retrieval as import_clip_retrieval
    from .cache.importer import import_npy as import_npy
    from .cache.join import join as join
    from .cache.reader import open_cache as open_cache
    from .cache.verify import verify as verify
    from .pipeline.cluster.retry import retry as retry
    from .pipeline.cluster.status import status as status
    from .pipeline.cluster.submit import submit as submit
    from .pipeline.compare import compare as compare
    from .pipeline.demo.run import demo as demo
    from .pipeline.encode import encode as encode
    from .pipeline.encoders.registry import load_encoder as load_encoder
    from .pipeline.evaluate import evaluate as evaluate
    from .pipeline.project import project as project
    from .pipeline.reporting.run import report as report
    from .pipeline.search import search as search
    from .trainer.completed_cache import complete as complete
    from .trainer.connector import Connector as Connector
    from .trainer.fit import fit as fit
    from .trainer.pairs import load_pairs as load_pairs
    from .trainer.recipe import load_recipe as load_recipe

_HOMES = {
    "open_cache": ".cache.reader",
    "import_npy": ".cache.importer",
    "import_clip_retrieval": ".cache.importer",
    "join": ".cache.join",
    "verify": ".cache.verify",
    "complete": ".trainer.completed_cache",
    "fit": ".trainer.fit",
    "load_pairs": ".trainer.pairs",
    "load_recipe": ".trainer.recipe",
    "Connector": ".trainer.connector",
    "encode": ".pipeline.encode",
    "load_encoder": ".pipeline.encoders.registry",
    "project": ".pipeline.project",
    "search": ".pipeline.search",
    "evaluate": ".pipeline.evaluate",
    "compare": ".pipeline.compare",
    "submit": ".pipeline.cluster.submit",
    "status": ".pipeline.cluster.status",
    "retry": ".pipeline.cluster.retry",
    "report": ".pipeline.reporting.run",
    "demo": ".pipeline.demo.run",
}

__all__ = ["CmcrError", "__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import cmcr`` stays light."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cmcr' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home, __name__), name)


def _input_encoder() -> InputEncoder:
    """What ``Connector.embed`` encodes raw inputs with; the trainer itself never imports the pipeline."""
    from .pipeline.embed import encode_inputs

    return encode_inputs


def _relevance_reader() -> RelevanceReader:
    """What tells a validation pair which rows belong together."""
    from .pipeline.relevance import relevance_of

    return relevance_of


register_input_encoder(_input_encoder)
register_relevance_reader(_relevance_reader)
