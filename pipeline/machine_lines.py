"""What ``cmcr encoders`` and ``cmcr doctor`` say to people: values in, lines and tables out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .terminal import duration, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .doctor import Diagnosis
    from .encoders.check import Checked
    from .encoders.listing import Listing
    from .encoders.pull import PullReport


def listing_lines(listing: Listing) -> list[str]:
    """Families and well-known encoders, and the one command that fetches what is missing."""
    lines = ["families"]
    for family in listing.families:
        state = "yes" if family.installed else "no "
        encodes = f" ({', '.join(family.modalities)})" if family.modalities else ""
        lines.append(f"  {state}  {family.name:11} {family.what}{encodes}")
        lines += [f"       add it: {family.install}"] if family.install else []
    lines.append("encoders (yes: all that it needs is on this machine)")
    for line in listing.encoders:
        alias = f"{line.encoder}, " if line.encoder != line.name else ""
        how_much = f"about {size(line.size)}" if line.size else "size asked of the server"
        lines.append(
            f"  {'yes' if line.ready else 'no '}  {line.name:26} {alias}{how_much if line.needs else 'ships with cmcr'}"
        )
        lines += [f"       missing: {one}" for one in line.missing]
    absent = [line.name for line in listing.encoders if line.missing and line.installed and line.of_the_paper]
    lines += [f"to fetch what the paper used: cmcr encoders pull {' '.join(absent)}"] if absent else []
    return [*lines, "more: open_clip:MODEL/TAG (open_clip lists them), sentence:ORG/REPO, my.py:MyEncoder"]


def check_lines(checked: Sequence[Checked]) -> list[str]:
    """What each tower did."""
    lines = []
    for one in checked:
        lines += [
            f"{one.encoder}, {one.modality}: {one.dim}-d, space {one.space} ({one.space_id})",
            f"  encoded {one.item}; {one.rate:,.1f} items/s on {one.device} in {one.precision},"
            f" loaded in {duration(one.load_seconds)}",
            f"  fingerprint {one.fingerprint}",
        ]
    return lines


def pull_lines(report: PullReport) -> list[str]:
    """What a pull fetched and where it lies."""
    lines = [f"{name}: nothing to fetch" for name in report.nothing]
    for file in report.files:
        state = "fetched" if file.state == "fetched" else "was here"
        lines.append(f"{file.encoder}: {file.what} {file.file} {state} ({size(file.size)}): {file.path}")
    return [*lines, f"{size(report.fetched)} fetched"] if report.files else lines


def doctor_lines(diagnosis: Diagnosis) -> list[str]:
    """The page: findings, which encoders work offline now, what to type next."""
    lines = []
    for finding in diagnosis.findings:
        lines.append(f"{'ok' if finding.ok else '!!'}   {finding.what:17} {finding.found}")
        lines += [f"{'':23}{finding.todo}"] if finding.todo else []
    lines.append("works without network now")
    for name, ready, missing in diagnosis.encoders:
        lines.append(f"{'yes' if ready else 'no '}  {name:26}" + (f" missing: {missing}" if missing else ""))
    return [*lines, "next", *[f"  {line}" for line in diagnosis.next]]
