"""What pydantic cannot see in a recipe: whether its parts fit together, and whether what it evaluates on is there."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from ..cache.errors import CacheError, RecipeError
from ..cache.manifest import CacheManifest, read_manifest

if TYPE_CHECKING:
    from .recipe import Recipe
    from .recipe_tables import DamageRecipe, EvalRecipe, ValidationRecipe


def check_names(recipe: Recipe, where: str) -> None:
    """Whether settings that name a space name one of this recipe, and settings of a validation have one.

    Raises
    ------
    RecipeError
    """
    projector = recipe.fit.projector
    named = {"fit.keep": [recipe.fit.keep] if recipe.fit.keep else []}
    named["fit.projector"] = list(projector) if isinstance(projector, dict) else []
    for setting, names in named.items():
        for name in names:
            if name not in recipe.space:
                close = difflib.get_close_matches(name, list(recipe.space), n=1)
                raise RecipeError(
                    f"{setting} names {name!r}, which is no space of this recipe"
                    + (f"; did you mean {close[0]!r}?" if close else ""),
                    where=f"{where}: {setting}",
                    todo=f"spaces here: {', '.join(recipe.space)}",
                )
    if recipe.validation is None and (recipe.fit.patience or recipe.fit.validate_every):
        raise RecipeError(
            "patience and validate_every need a validation pair",
            where=f"{where}: fit.patience",
            todo="add a table [validation] with query and gallery, or drop them",
        )


def check_evals(recipe: Recipe) -> None:
    """Whether all that ``[[eval]]``, ``[validation]`` and ``[[damage]]`` name is there and can be projected.

    Asked before the hours of a fit.

    Raises
    ------
    RecipeError
        A cache or a file of pairs is missing, both pairs and a label are given, or a cache is in another space.
    """
    named: list[tuple[str, EvalRecipe | ValidationRecipe | DamageRecipe]] = []
    named += [(f"eval {one.name!r}", one) for one in recipe.eval]
    named += [(f"damage {one.name!r}", one) for one in recipe.damage]
    if recipe.validation is not None:
        named.append(("validation", recipe.validation))
    if not named:
        return
    known = {read_manifest(recipe.path(space.overlap)).space_id for space in recipe.space.values()}
    for where, one in named:
        given = {role: getattr(one, role, None) for role in ("query", "gallery", "classes")}
        found = {role: _manifest(recipe, known, where, role, text) for role, text in given.items() if text is not None}
        if where.startswith("damage") and len({manifest.space_id for manifest in found.values()}) > 1:
            sides = " and ".join(f"{role} in {manifest.space_name!r}" for role, manifest in found.items())
            raise RecipeError(f"damage is measured inside one space: {sides}", where=where)
        if one.pairs is not None and one.label is not None:
            raise RecipeError("relevant items come from pairs or from a label, not both", where=where, todo="drop one")
        if one.pairs is not None and not recipe.path(one.pairs).is_file():
            raise RecipeError("the file of pairs does not exist", where=f"{where}: {recipe.path(one.pairs)}")


def _manifest(recipe: Recipe, known: set[str], where: str, role: str, text: str) -> CacheManifest:
    """The manifest of a cache that a table names; it must be in a space that the recipe connects."""
    try:
        manifest = read_manifest(recipe.path(text))
    except CacheError as error:
        raise RecipeError(f"{role}: {error.what}", where=f"{where}: {error.where}", todo=error.todo) from error
    if manifest.space_id not in known and manifest.space_name not in recipe.space:
        raise RecipeError(
            f"{role}: the cache is in the space {manifest.space_name!r}, which this recipe does not connect",
            where=f"{where}: {recipe.path(text)}",
            todo=f"name a cache of one of: {', '.join(recipe.space)}",
        )
    return manifest
