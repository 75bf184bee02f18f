"""What ``cmcr encoders`` says: families, what they need, which weights are on this machine. No network, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .artefacts import PUBLISHED, Artefact, artefacts_of
from .registry import DEFAULTS, SHORT_NAMES, FamilyInfo, families


@dataclass(frozen=True)
class FamilyLine:
    """One family: what it encodes, whether its package is here, and the command that adds it."""

    name: str
    what: str
    modalities: tuple[str, ...]
    installed: bool
    install: str | None


@dataclass(frozen=True)
class WeightsLine:
    """One well-known encoder: what it needs, what of that is missing, and bytes, about, where they are published."""

    name: str
    encoder: str
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    size: int | None
    installed: bool

    @property
    def of_the_paper(self) -> bool:
        """Whether the paper used it."""
        return self.name in DEFAULTS.values()

    @property
    def ready(self) -> bool:
        """Whether it works without network."""
        return self.installed and not self.missing


@dataclass(frozen=True)
class Listing:
    """Families and well-known encoders."""

    families: tuple[FamilyLine, ...]
    encoders: tuple[WeightsLine, ...]


def list_encoders() -> Listing:
    """Look at what is installed and cached here."""
    known = families()
    named = {**SHORT_NAMES, **{name: name for name in PUBLISHED if name not in SHORT_NAMES.values()}}
    named |= {f"sandbox:{model}": f"sandbox:{model}" for model in ("clip", "clap", "ulip")}
    return Listing(
        tuple(_family(info) for info in known.values()),
        tuple(_weights(name, full, known) for name, full in named.items()),
    )


def _family(info: FamilyInfo) -> FamilyLine:
    return FamilyLine(info.name, info.what, info.modalities, info.installed, None if info.installed else info.install)


def _weights(name: str, full: str, known: dict[str, FamilyInfo]) -> WeightsLine:
    needed = artefacts_of(full)
    missing = tuple(_told(one) for one in needed if one.here() is None)
    sizes = [one.size for one in needed if one.size is not None]
    info = known[full.partition(":")[0]]
    return WeightsLine(
        name, full, tuple(_told(one) for one in needed), missing, sum(sizes) if sizes else None, info.installed
    )


def _told(artefact: Artefact) -> str:
    file = artefact.names[0].rpartition("/")[2] if artefact.names and artefact.take == "first" else ""
    return f"{artefact.what} {file} of {artefact.source}" if file else f"{artefact.what} of {artefact.source}"
