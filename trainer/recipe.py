"""Recipes: which caches a fit connects, how, and what it is evaluated on; a TOML file that flags override."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from ..cache.errors import RecipeError
from ..cache.urls import as_url, local_path
from .recipe_checks import check_names
from .recipe_tables import (
    PATHS,
    DamageRecipe,
    EvalRecipe,
    SpaceRecipe,
    ValidationRecipe,
    checked_compare,
)
from .settings import PLACES, FitSettings
from .toml_text import to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Recipe(BaseModel):
    """A whole recipe; paths are relative to the folder that it was read from.

    Parameters
    ----------
    space : mapping of name to SpaceRecipe
        Exactly two.
    fit : FitSettings
    validation : ValidationRecipe, optional
        Where it is given, the weights that score best on it are the ones that a trained method keeps.
    eval : list of EvalRecipe
    damage : list of DamageRecipe
    compare : mapping of str to mapping
        Settings of a fit by name of a row of ``cmcr compare``, in place of those under ``fit``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: dict[str, SpaceRecipe]
    fit: FitSettings
    validation: ValidationRecipe | None = None
    eval: tuple[EvalRecipe, ...] = Field(default=())
    damage: tuple[DamageRecipe, ...] = Field(default=())
    compare: dict[str, dict[str, Any]] = Field(default_factory=dict)
    _base: Path = PrivateAttr(default_factory=Path)

    @field_validator("space")
    @classmethod
    def _two_spaces(cls, value: dict[str, SpaceRecipe]) -> dict[str, SpaceRecipe]:
        if len(value) != 2:
            raise ValueError(
                f"a connector joins exactly two spaces, this recipe has {len(value)}: {', '.join(value) or 'none'}"
            )
        return value

    @field_validator("eval", "damage")
    @classmethod
    def _one_name_each(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        names = [one.name for one in value]
        twice = [name for n, name in enumerate(names) if name in names[:n]]
        if twice:
            what = "evaluations" if info.field_name == "eval" else "tables [[damage]]"
            raise ValueError(f"two {what} are called {twice[0]!r}")
        return value

    @field_validator("compare")
    @classmethod
    def _settings_of_a_fit(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return checked_compare(value)

    @classmethod
    def from_flags(cls, spaces: Sequence[str], overrides: Sequence[str] = (), **fit: Any) -> Recipe:
        """The recipe that command-line flags mean; relative paths start from the current folder.

        Parameters
        ----------
        spaces : sequence of str
            ``"clap=OVERLAP,BANK,BANK"``: a name, its overlap cache and its banks (none or several).
        overrides : sequence of str
            As for :func:`load_recipe`.
        **fit
            Settings by the names of :class:`FitSettings`; None means not given.
        """
        tables: dict[str, Any] = {}
        for text in spaces:
            name, caches = _space_flag(text)
            if name in tables:
                raise RecipeError(f"the space {name!r} is given twice", where="--space", todo="name each space once")
            tables[name] = {"overlap": caches[0], "bank": caches[1:]}
        record: dict[str, Any] = {"space": tables, "fit": {k: v for k, v in fit.items() if v is not None}}
        for override in overrides:
            _override(record, override)
        return make_recipe(record, where="flags")

    @property
    def base(self) -> Path:
        """Folder that relative paths start from."""
        return self._base

    def path(self, text: str) -> Path:
        """A path of the recipe, resolved; the address of a remote cache stays as it is."""
        if as_url(text) is not None:
            return Path(local_path(text))
        return self._base / Path(text).expanduser()

    @property
    def method(self) -> str:
        """Name of the method; the file of ``my.py:MyMethod`` is resolved like every other path."""
        file, of_file, attribute = self.fit.method.rpartition(".py:")
        return f"{self.path(file + '.py')}:{attribute}" if of_file else self.fit.method

    @property
    def output(self) -> Path | None:
        """Folder of the connector, None where neither recipe nor caller names one."""
        return None if self.fit.output is None else self.path(self.fit.output)

    def resolved(self, folder: Path) -> str:
        """This recipe as TOML with every setting spelt out and every path relative to ``folder``, to be kept there.

        No absolute path and no name of the folder itself: equal fits in sibling folders give equal text.
        """

        def relative(text: str) -> str:
            return Path(os.path.relpath(self.path(text).resolve(), folder.resolve())).as_posix()

        spaces = {
            name: {"overlap": relative(space.overlap), "bank": [relative(bank) for bank in space.bank]}
            for name, space in self.space.items()
        }
        fit = self.fit.model_dump(exclude_none=True, exclude=set(PLACES))
        file, of_file, attribute = self.fit.method.rpartition(".py:")
        if of_file:
            fit["method"] = f"{relative(file + '.py')}:{attribute}"
        if self.fit.completions is not None:
            fit["completions"] = relative(self.fit.completions)

        def with_paths(one: BaseModel) -> dict[str, Any]:
            record = one.model_dump(exclude_none=True)
            return {k: relative(v) if k in PATHS else v for k, v in record.items()}

        more: dict[str, Any] = {} if self.validation is None else {"validation": with_paths(self.validation)}
        for kind, tables in (("eval", self.eval), ("damage", self.damage)):
            if tables:
                more[kind] = [with_paths(one) for one in tables]
        options = fit.pop("options", {})
        fit |= {"output": ".", **({"options": options} if options else {})}
        return to_toml({"space": spaces, "fit": fit, **more})


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    path : path
        A TOML file.
    overrides : sequence of str
        ``"fit.lr=3e-4"``: a dotted name and a TOML value; a value that is no TOML is taken as text.

    Raises
    ------
    RecipeError
        The file cannot be read, a key is unknown (with a suggestion), a value is not valid, or no method is named.
    """
    path = Path(path)
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror or error}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe is not valid TOML: {error}", where=str(path)) from error
    for override in overrides:
        _override(record, override)
    return make_recipe(record, base=path.parent, where=str(path))


def make_recipe(record: Mapping[str, Any], *, base: Path | None = None, where: str = "recipe") -> Recipe:
    """A recipe from plain tables; ``base`` is the folder of relative paths, the current one when not given."""
    try:
        recipe = Recipe.model_validate(record)
    except ValidationError as error:
        raise _recipe_error(error, where) from None
    check_names(recipe, where)
    recipe._base = Path(base) if base is not None else Path()
    return recipe


def _space_flag(text: str) -> tuple[str, list[str]]:
    """Name and caches of ``clap=OVERLAP,BANK``."""
    name, _, caches = text.partition("=")
    paths = [part.strip() for part in caches.split(",")]
    if not name.strip() or not all(paths):
        raise RecipeError(
            f"{text!r} does not name a space and its caches", where="--space", todo="write --space clap=OVERLAP,BANK"
        )
    return name.strip(), paths


def _override(record: dict[str, Any], text: str) -> None:
    """Set one dotted name in the tables of a recipe."""
    name, equals, value = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"{text!r} is not an override", where="--set", todo="write name=value, as in fit.lr=3e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    table = record
    for part in parts[:-1]:
        child = table.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{part!r} in {name.strip()!r} is not a table", where="--set")
        table = child
    table[parts[-1]] = parsed


def _recipe_error(error: ValidationError, where: str) -> RecipeError:
    """The first problem of a recipe, with the nearest known name where a key is unknown."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    place = f"{where}: {name}"
    if first["type"] == "extra_forbidden":
        known = _known_names(first["loc"])
        wrong = str(first["loc"][-1])
        close = difflib.get_close_matches(wrong, known, n=1)
        if not close and len(first["loc"]) == 1:  # a setting without its table
            close = [f"fit.{one}" for one in difflib.get_close_matches(wrong, list(FitSettings.model_fields), n=1)]
        what = f"unknown key {wrong!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        return RecipeError(what, where=place, todo=f"known here: {', '.join(known)}")
    if first["type"] == "missing":
        todo = "add it"
        if first["loc"] in (("fit",), ("fit", "method")):
            name, todo = "fit.method", 'a recipe must name its method, for example method = "c-mcr" under [fit]'
        return RecipeError(f"the recipe lacks {name}", where=where, todo=todo)
    message = str(first["msg"]).removeprefix("Value error, ")
    return RecipeError(f"{name}: {message}", where=place, todo=f"it is {first['input']!r} now; see docs/recipes.md")


def _known_names(place: tuple[int | str, ...]) -> list[str]:
    """Names that are known in the table of an unknown key."""
    models: dict[Any, type[BaseModel]] = {
        "space": SpaceRecipe,
        "fit": FitSettings,
        "eval": EvalRecipe,
        "validation": ValidationRecipe,
        "damage": DamageRecipe,
    }
    model = Recipe if len(place) == 1 else models[place[0]]
    return sorted(model.model_fields)
