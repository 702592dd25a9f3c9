"""A result as sections of the report, and so as terminal text, Markdown and HTML."""

from collections.abc import Iterator
from typing import Final

from mpsdiag.bisect.found import Found
from mpsdiag.bisect.search import Bracket
from mpsdiag.bisect.tries import Search, Try
from mpsdiag.errors import BadInput
from mpsdiag.reporting.layout.blocks import Cell, Entry, Facts, Fold, Log, Part, Prose, Table, columns, document, table
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.marks import Tone
from mpsdiag.serialization import dumps

_TONES: Final[dict[str, Tone]] = {"good": "good", "bad": "bad", "skip": "muted"}
_SYMBOLS: Final = {"good": "✓", "bad": "✗", "skip": "·"}


def text_of(found: Found, form: str, *, width: int = 100, color: bool = False) -> str:
    """Render a result as terminal, markdown, html or json; `width` in columns, for the terminal."""
    if form == "json":
        return dumps(found.document(), indent=2)
    word = "not_affected" if isinstance(found.decision, Bracket) else "undecided"
    made = document("mpsdiag bisect", found.sentence, word, _parts(found))
    if form == "markdown":
        from mpsdiag.reporting.formats.markdown import write

        return write(made)
    if form == "html":
        from mpsdiag.reporting.formats.html import LIMITS, page

        return page(made, LIMITS, footer=f"mpsdiag {found.search.mpsdiag}, search of {found.search.created}.")
    if form == "terminal":
        from mpsdiag.reporting.formats import terminal

        return terminal.write(made, terminal.LIMITS, width=width, color=color)
    raise BadInput(f"A bisect has no format '{form}'. Choose from: terminal, markdown, html, json.")


def _parts(found: Found) -> Iterator[Part]:
    """What to do, every try in the order of the releases, and how it was searched."""
    if found.bracket is not None and found.pip is not None:
        link = f"What changed upstream: {found.compare}" if found.compare else "Nightly builds have no tag upstream."
        yield "answer", "Answer", (Log("The release to install", found.pip), Prose(link), Prose(_beside(found)))
    yield "tries", "Tries", (_table(found), *_logs(found))
    yield "search", "How it was searched", (_facts(found.search),)


def _table(found: Found) -> Table:
    place = {release: number for number, release in enumerate(found.search.releases)}
    ordered = sorted(found.tries, key=lambda one: place[one.release])
    numbers = ("predicate", "environment")
    heads = columns(found.search.axis, "outcome", "why", *numbers, numbers=numbers)
    note = f"{len(ordered)} of {len(place)} releases were tried; {len(place) - len(ordered)} needed no try."
    return table("", heads, ordered, lambda one: _row(one, place[one.release]), note=note)


def _row(one: Try, place: int) -> tuple[Cell, ...]:
    return (
        Entry(one.release, sort=float(place)),
        Entry(f"{_SYMBOLS[one.outcome]} {one.outcome}", _TONES[one.outcome]),
        one.reason,
        Entry(figures.seconds(one.seconds) if one.environment else figures.NOTHING, sort=one.seconds),
        Entry(figures.seconds(one.build_seconds), sort=one.build_seconds),
    )


def _logs(found: Found) -> tuple[Fold, ...]:
    """The end of the output on either side of the bracket, or of the last try."""
    sides = found.bracket or tuple(one.release for one in found.tries[-1:])
    shown = [one for one in found.tries if one.release in sides and one.log_tail.strip()]
    axis = found.search.axis
    return tuple(Fold(f"{axis} {one.release}, end of the output", (Log("", one.log_tail),)) for one in shown)


def _facts(search: Search) -> Facts:
    pairs = (
        (search.axis, f"{search.releases[0]} to {search.releases[-1]} ({len(search.releases)} releases)"),
        ("Pinned", ", ".join(search.pins) or "nothing"),
        ("Predicate", search.predicate),
        ("Device", search.device),
        ("Python", search.python),
        ("System", search.system),
        ("Command", search.command),
    )
    return Facts("Settings", pairs)


def _beside(found: Found) -> str:
    """Which other packages differ between the two sides: the change may be theirs."""
    freezes = {one.release: dict(line.split("==", 1) for line in one.freeze if "==" in line) for one in found.tries}
    before, after = (freezes[side] for side in found.bracket or ())
    differing = [
        f"{name} {before.get(name, 'absent')} and {after.get(name, 'absent')}"
        for name in sorted({*before, *after} - {found.search.axis})
        if before.get(name) != after.get(name)
    ]
    return f"Other packages that differ between the two: {', '.join(differing) or 'none'}."
