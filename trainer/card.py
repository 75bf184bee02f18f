"""The model card: ``README.md`` of a connector folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .projectors import ProjectorSpec

if TYPE_CHECKING:
    from .connector import Connector

UNKNOWN = "not stated"
_FLAG = {
    "text": "--text 'a dog barks'",
    "image": "--image FILE",
    "audio": "--audio FILE",
    "pointcloud": "--points FILE",
}
_CLOSED_FORM = ("identity", "procrustes", "ridge", "bridge")


def model_card(connector: Connector) -> str:
    """Markdown: what the connector joins, what it was made from, how to use it, what it costs, under which licences."""
    sections = [
        _head(connector),
        _spaces(connector),
        _use(connector),
        _source_spaces(connector),
        _made_from(connector),
        _licences(connector),
    ]
    return "\n\n".join(sections) + "\n"


def _head(connector: Connector) -> str:
    names = _listed(list(connector.spaces))
    pairs = _new_pairs(connector)
    gains = f" It compares {_listed(pairs)}, which no training pair ever joined." if pairs else ""
    return (
        f"# Connector of {names}\n\n"
        f"Heads that take vectors of {names} into one shared space of {connector.dim} dimensions. "
        f"{_origin(connector)}{gains}"
    )


def _origin(connector: Connector) -> str:
    """Where the heads come from, in a sentence."""
    made = connector.info.made_from
    if "imported" in made:
        source = made["imported"]["source"]
        return f"They are published weights, imported from `{source}` (method `{connector.info.method}`)."
    if "chain" in made:
        parts = _listed([f"{' + '.join(part['spaces'])} (`{part['method']}`)" for part in made["chain"]])
        return f"They come from connectors that keep the same space, chained: {parts}."
    return (
        f"The method `{connector.info.method}` made them from cached vectors of frozen encoders, through a modality "
        "that both spaces have ([C-MCR](https://arxiv.org/abs/2305.14381))."
    )


def _new_pairs(connector: Connector) -> list[str]:
    """Pairs of modalities that only the connector joins: no single space has both."""
    spaces = [{*space.modalities, *space.encoders} for space in connector.info.spaces.values()]
    known = sorted(set().union(*spaces))
    return [
        f"{a} with {b}"
        for i, a in enumerate(known)
        for b in known[i + 1 :]
        if not any({a, b} <= space for space in spaces)
    ]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _spaces(connector: Connector) -> str:
    lines = ["## Spaces", "", "| space | modality | encoder | dimensions | head |", "| --- | --- | --- | --- | --- |"]
    for name in connector.spaces:
        info, spec = connector.info.spaces[name], connector.heads[name].spec
        for modality in info.modalities or (UNKNOWN,):
            encoder = info.encoders.get(modality)
            shown = f"`{_cell(encoder)}`" if encoder else UNKNOWN
            lines.append(f"| `{name}` | {modality} | {shown} | {spec.dim_in} | {describe_head(spec)} |")
    lines += [
        "",
        "Space ids (hash of the weights that the towers share) and encoder fingerprints are in `config.json`.",
    ]
    return "\n".join(lines)


def describe_head(spec: ProjectorSpec) -> str:
    """A projector in a few words."""
    centring = "minus a mean" if spec.centred else ""
    if spec.kind == "identity":
        return "identity: vectors stay as they are"
    if spec.kind == "affine":
        parts = [centring, f"matrix {spec.dim_in} × {spec.dim_out}" if spec.matrix else "", "bias" if spec.bias else ""]
        return ", ".join(part for part in parts if part)
    if spec.kind == "half":
        return f"Linear {spec.dim_in}-{spec.dim_out}, BN, ReLU"
    if spec.kind == "decoupled":
        mlps = f"Linear {spec.dim_in}-{spec.hidden}-{spec.dim_out} and {spec.dim_out}-{spec.hidden}-{spec.dim_out}"
        return f"Linear {spec.dim_in}-{spec.dim_in}, then two MLPs: {mlps}, BN after each layer, ReLU inside"
    if spec.kind == "mlp":
        return f"Linear {spec.dim_in}-{spec.hidden}, BN, ReLU, Linear {spec.hidden}-{spec.dim_out}, BN"
    if spec.core is not None:  # woven
        parts = [describe_head(spec.core), f"hubness against {spec.hubs:,} rows" if spec.hubs else ""]
        parts.append("the source vectors beside it" if spec.other else "")
        return "minus the nearest mean; " + "; ".join(part for part in parts if part)
    return f"softmax over {spec.rows:,} overlap items at scale {spec.scale:g}" + (f", {centring}" if centring else "")


def _use(connector: Connector) -> str:
    first, last = connector.spaces[0], connector.spaces[-1]
    here, there = (connector.info.spaces[name].modalities for name in (first, last))
    ask = next((m for m in here if m in _FLAG and m not in there), "text")
    found = [m for m in there if m not in here] or ["gallery"]
    return f"""## Use

```sh
cmcr project --connector . --input caches/{found[0]}-{last} --output caches/{found[0]}-shared
cmcr search --connector . --gallery caches/{found[0]}-shared {_FLAG[ask]}
```

```python
import cmcr

connector = cmcr.Connector.load(".")
shared = connector.project(vectors, space="{first}")  # (N, {connector.dim}) float32, unit rows
cosines = connector.similarity(vectors, others, spaces=("{first}", "{last}"))  # (N, M)
```

Input vectors are normalised first. Loading needs torch, safetensors and numpy alone."""


def _source_spaces(connector: Connector) -> str:
    """What each head does to comparisons inside its own space."""
    kinds = {name: connector.heads[name].spec.kind for name in connector.spaces}
    beside = [f"`{name}`" for name in connector.spaces if connector.heads[name].spec.other]
    kept = [f"`{name}`" for name in connector.kept]
    linear = [f"`{name}`" for name, kind in kinds.items() if kind == "affine"]
    changed = [
        f"`{name}`" for name, kind in kinds.items() if kind not in ("identity", "affine") and f"`{name}`" not in beside
    ]
    lines = ["## What projection does to the source spaces", ""]
    if kept:
        lines.append(f"Kept as they are: {_listed(kept)}. Existing vectors and indexes work untouched.")
    if linear:
        lines.append(
            f"Through a linear map: {_listed(linear)}. Comparisons inside such a space stay the same where the map is "
            "orthogonal and nothing is subtracted; a centring mean and a ridge map change them."
        )
    if beside:
        lines.append(
            f"Preserved: {_listed(beside)}. The source vectors stand beside the shared part: cosines inside such a "
            "space are a half to three quarters theirs, a quarter the shared part's. `cmcr evaluate` measures "
            "what that changes."
        )
    if changed:
        lines.append(
            f"Changed: {_listed(changed)}. Comparisons *inside* such a space (text with image in CLIP, say) get worse "
            "as a rule: published figures for C-MCR are ImageNet top-1 of CLIP ViT-B/32 from 60.58 to 23.16 and COCO "
            "R@1 from 40.24 to 16.67. Keep the original vectors for those comparisons; measure the damage with "
            "`cmcr evaluate retrieval`, once with `--connector` and once without."
        )
    return "\n".join(lines)


def _made_from(connector: Connector) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(connector.info.versions.items()))
    if {"imported", "chain"} & set(connector.info.made_from):
        return f"## Made from\n\n```json\n{_pretty(connector.info.made_from)}\n```\n\nVersions: {versions or UNKNOWN}."
    steps = (
        f"`{connector.info.method}` is computed in closed form: there is no training curve."
        if connector.info.method in _CLOSED_FORM
        else "The losses over the steps are in `curve.png`, `metrics.jsonl` and `tensorboard/`."
    )
    made = _pretty(connector.info.made_from)
    return f"""## Made from

{steps} `recipe.toml` holds every setting. Fitted on:

```json
{made}
```

Versions: {versions or UNKNOWN}."""


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), indent=2, sort_keys=True, ensure_ascii=False)


def _licences(connector: Connector) -> str:
    stated = dict(connector.info.licences)
    for space in connector.info.spaces.values():
        for encoder in space.encoders.values():
            stated.setdefault(encoder, UNKNOWN)
    lines = ["## Licences", "", "| encoder or corpus | licence |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(licence or UNKNOWN)} |" for name, licence in sorted(stated.items())]
    lines += [
        "",
        "The weights were fitted on vectors of these encoders and corpora; their terms may bind this connector too.",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
