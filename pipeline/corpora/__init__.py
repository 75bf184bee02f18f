"""Corpora: inputs of one modality as units of work. See docs/corpora.md for what is accepted and how keys are made."""

from ...cache.errors import CorpusError as CorpusError
from .base import Corpus as Corpus
from .base import CorpusSettings as CorpusSettings
from .base import PlanUpdate as PlanUpdate
from .corpus import FileCorpus as FileCorpus
from .inputs import open_corpus as open_corpus
