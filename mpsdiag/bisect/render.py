"""A result as sections of the report, and so as terminal text, Markdown and HTML."""

from __future__ import annotations

from typing import Final

from mpsdiag.bisect.found import Found
from mpsdiag.bisect.search import Bracket
from mpsdiag.bisect.tries import Try
from mpsdiag.errors import BadInput
from mpsdiag.reporting.layout.blocks import (
    Block,
    Column,
    Document,
    Entry,
    Facts,
    Fold,
    Log,
    Prose,
    Section,
    Table,
    without_empty,
)
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.marks import Tone
from mpsdiag.serialization import dumps

_TONES: Final[dict[str, Tone]] = {"good": "good", "bad": "bad", "skip": "muted"}
_SYMBOLS: Final = {"good": "✓", "bad": "✗", "skip": "·"}


def text_of(found: Found, form: str, *, width: int = 100, color: bool = False) -> str:
    """Render a result.

    Args:
        found: The result.
        form: terminal, markdown, html or json.
        width: Columns, for the terminal.
        color: Whether the terminal shows colours.

    Raises:
        BadInput: There is no such format of it.
    """
    if form == "json":
        return dumps(found.document(), indent=2)
    word = "not_affected" if isinstance(found.decision, Bracket) else "undecided"
    parts = tuple(sections(found, folds=form != "terminal"))
    made = Document("mpsdiag bisect", found.sentence, word, parts)
    if form == "markdown":
        from mpsdiag.reporting.formats.markdown import write

        return write(made)
    if form == "html":
        from mpsdiag.reporting.formats.html import LIMITS, page

        footer = f"mpsdiag {found.search.mpsdiag}, search of {found.search.created}."
        return page(made, LIMITS, footer=footer)
    if form == "terminal":
        from mpsdiag.reporting.formats import terminal

        return terminal.write(made, terminal.LIMITS, width=width, color=color)
    raise BadInput(
        f"The journal of a bisect has no format '{form}'. Choose from: terminal, markdown, html, json."
    )


def sections(found: Found, *, folds: bool = True) -> list[Section]:
    """What to do, every try in the order of the releases, and how it was searched.

    Args:
        found: The result.
        folds: Whether long parts can be folded away; the full lists of packages are left out where they cannot.
    """
    blocks: list[Block] = []
    if found.pip is not None:
        blocks.append(
            Log("The last good release" if "last good" in found.sentence else "The cure", found.pip)
        )
    if found.compare is not None:
        blocks.append(Prose(f"What changed upstream: {found.compare}"))
    if found.bracket is not None:
        blocks.append(Prose(_beside(found)))
    parts = [Section("answer", "Answer", tuple(blocks))] if blocks else []
    parts.append(Section("tries", "Tries", (_table(found), *_logs(found))))
    installed = _freezes(found) if folds else ()
    parts.append(Section("search", "How it was searched", (_facts(found), *installed)))
    return parts


def _table(found: Found) -> Table:
    place = {release: number for number, release in enumerate(found.search.releases)}
    names = ("outcome", "why")
    numbers = ("predicate", "environment")
    columns = (
        Column(found.search.axis),
        *(Column(name) for name in names),
        *(Column(name, number=True) for name in numbers),
    )
    left = len(place) - len(found.tries)
    return without_empty(
        Table(
            "",
            columns,
            tuple(
                _row(one, place[one.release])
                for one in sorted(found.tries, key=lambda one: place[one.release])
            ),
            note=f"{len(found.tries)} of {len(place)} releases were tried; {left} needed no try.",
        )
    )


def _row(one: Try, place: int) -> tuple[Entry, ...]:
    return (
        Entry(one.release, sort=float(place)),
        Entry(f"{_SYMBOLS[one.outcome]} {one.outcome}", _TONES[one.outcome]),
        Entry(one.reason),
        Entry(figures.seconds(one.seconds) if one.environment else figures.NOTHING, sort=one.seconds),
        Entry(figures.seconds(one.build_seconds), sort=one.build_seconds),
    )


def _logs(found: Found) -> tuple[Block, ...]:
    """The end of the output on either side of the bracket, or of the last try."""
    sides = found.bracket or tuple(one.release for one in found.tries[-1:])
    shown = [one for one in found.tries if one.release in sides and one.log_tail.strip()]
    return tuple(Log(f"{found.search.axis} {one.release}, end of the output", one.log_tail) for one in shown)


def _facts(found: Found) -> Facts:
    search = found.search
    range_ = f"{search.releases[0]} to {search.releases[-1]} ({len(search.releases)} releases)"
    pairs = (
        (search.axis, range_),
        ("Pinned", ", ".join(search.pins) or "nothing"),
        ("Predicate", search.predicate),
        ("Device", search.device),
        ("Python", search.python),
        ("System", search.system),
        ("Command", search.command),
    )
    return Facts("", pairs)


def _beside(found: Found) -> str:
    """Which other packages differ between the two sides: the change may be theirs."""
    freezes = {
        one.release: dict(line.split("==", 1) for line in one.freeze if "==" in line) for one in found.tries
    }
    before, after = (freezes[side] for side in found.bracket or ())
    names = sorted({*before, *after} - {found.search.axis})
    differing = [
        f"{name} {before.get(name, 'absent')} and {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
    return f"Other packages that differ between the two: {', '.join(differing) or 'none'}."


def _freezes(found: Found) -> tuple[Block, ...]:
    """All that was installed on either side of the bracket."""
    sides = found.bracket or ()
    return tuple(
        Fold(f"Installed with {found.search.axis} {one.release}", (Log("", "\n".join(one.freeze)),))
        for one in found.tries
        if one.release in sides
    )
