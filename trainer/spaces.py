"""Whether a query and a memory bank stand in one space."""

from __future__ import annotations

from ..cache.errors import FitError
from ..cache.reader import Cache


def check_space(query: Cache, bank: Cache) -> None:
    """Refuse a bank of another space than the query's; the error names both."""
    if query.manifest.space_id != bank.manifest.space_id or query.dim != bank.dim:
        raise FitError(
            f"query and bank are not of one space: {query.modality} of {describe_space(query)}, "
            f"{bank.modality} of {describe_space(bank)}",
            where=f"{query.path} and {bank.path}",
            todo="give a bank that the same model encoded",
        )


def describe_space(cache: Cache) -> str:
    """Name, id and width of a cache's space, for messages."""
    return f"{cache.manifest.space_name!r} (id {cache.manifest.space_id}, {cache.dim} dimensions)"
