"""What the tries of a search add up to: the sentence, the exit code, and the report in every format."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from packaging.version import Version

from mpsdiag.bisect.installer import NIGHTLY_INDEX
from mpsdiag.bisect.search import Ask, Bracket, Decision, OpposedEnds, SameEnds, UntestableEnd, decide, untestable
from mpsdiag.bisect.tries import Search, Try
from mpsdiag.reporting.formats import shown
from mpsdiag.reporting.layout.blocks import Cell, Entry, Fold, Log, Part, Prose, Table, columns, document, facts, table
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.figures import Tone
from mpsdiag.serialization import dumps
from mpsdiag.words import EXIT_FOUND, EXIT_OK, EXIT_UNDECIDED

UPSTREAM: Final = {
    "torch": "https://github.com/pytorch/pytorch",
    "transformers": "https://github.com/huggingface/transformers",
}
_TONES: Final[dict[str, Tone]] = {"good": "good", "bad": "bad", "skip": "muted"}
_SYMBOLS: Final = {"good": "✓", "bad": "✗", "skip": "·"}


@dataclass(frozen=True)
class Found:
    """The result of a search, finished or not; the tries are in chronological order."""

    search: Search
    tries: tuple[Try, ...]
    decision: Decision

    @property
    def exit_code(self) -> int:
        """0 found, 1 the ends do not differ (as requested), 3 undecided."""
        if isinstance(self.decision, Bracket):
            return EXIT_OK
        return EXIT_FOUND if isinstance(self.decision, SameEnds | OpposedEnds) else EXIT_UNDECIDED

    @property
    def bracket(self) -> tuple[str, str] | None:
        """The last release before the change and the first one after it."""
        if not isinstance(self.decision, Bracket):
            return None
        return self.search.releases[self.decision.before], self.search.releases[self.decision.after]

    @property
    def pip(self) -> str | None:
        """The line that installs the last good release before a break, or the first good one after a fix."""
        if not isinstance(self.decision, Bracket) or self.bracket is None:
            return None
        release = self.bracket[self.decision.find == "fix"]
        if Version(release).is_devrelease:
            return f"pip install --pre {self.search.axis}=={release} --extra-index-url {NIGHTLY_INDEX}cpu"
        return f"pip install {self.search.axis}=={release}"

    @property
    def compare(self) -> str | None:
        """What changed upstream inside the bracket; None for nightly builds, which have no tag."""
        if self.bracket is None or any(Version(side).is_devrelease for side in self.bracket):
            return None
        before, after = self.bracket
        return f"{UPSTREAM[self.search.axis]}/compare/v{before}...v{after}"

    @property
    def sentence(self) -> str:
        """The result in words."""
        axis, releases, decision = self.search.axis, self.search.releases, self.decision
        if isinstance(decision, Bracket):
            before, after = ("good", "bad") if decision.find == "break" else ("bad", "good")
            made = f"{axis}: last {before} {releases[decision.before]}, first {after} {releases[decision.after]}"
            between = [releases[number] for number in untestable(decision)]
            if not between:
                return f"{made}."
            span = f"{between[0]} to {between[-1]} ({len(between)} releases)"
            return f"{made}; {span if len(between) > 2 else ' and '.join(between)} could not be tested."
        ends = f"{axis} {releases[0]} and {releases[-1]}"
        if isinstance(decision, SameEnds) and decision.outcome == "bad":
            end = next(one for one in self.tries if one.release == releases[-1])
            last = (end.log_tail.strip().splitlines() or ["nothing"])[-1]
            return (
                f"{ends} are both bad: widen the range, or check whether the command fails for another reason. "
                f"Its last output: {last[:300]}"
            )
        if isinstance(decision, SameEnds):
            return f"{ends} are both good: widen the range so that one end is bad."
        if isinstance(decision, OpposedEnds):
            other = "fix" if decision.found == "break" else "break"
            return f"{ends} enclose a {decision.found}, not a {other}. Search with --find {decision.found}."
        if isinstance(decision, UntestableEnd):
            reason = next(one.reason for one in self.tries if one.release == releases[decision.number])
            return f"{axis} {releases[decision.number]}, an end of the range, cannot be tested: {reason}"
        return f"{axis}: not finished, at most {tries_left(decision)}."

    def document(self) -> dict[str, Any]:
        """The JSON document: releases as texts, durations in seconds."""
        search = self.search
        find = self.decision.find if isinstance(self.decision, Bracket) else search.find
        made: dict[str, Any] = dict.fromkeys(("last_good", "first_bad", "last_bad", "first_good"))
        names = ("last_good", "first_bad") if find == "break" else ("last_bad", "first_good")
        made.update(zip(names, self.bracket or (), strict=False))
        return {
            "schema": search.schema_,
            "axis": search.axis,
            "find": find,
            "sentence": self.sentence,
            **made,
            "untestable": [
                {"release": one.release, "reason": one.reason} for one in self.tries if one.outcome == "skip"
            ],
            "tries": [one.model_dump(exclude={"schema_", "kind"}) for one in self.tries],
            "pip": self.pip,
            "compare": self.compare,
            **search.model_dump(include={"releases", "pins", "predicate", "device", "python", "system", "command"}),
        }


def tries_left(step: Ask) -> str:
    """How many tries a search still needs at most, in words."""
    return "1 try left" if step.left == 1 else f"{step.left} tries left"


def conclude(search: Search, tries: dict[str, Try]) -> Found:
    """Summarize the tries of a search, by key in their order; those of other searches are left out."""
    numbers = {search.key(release): number for number, release in enumerate(search.releases)}
    known = [one for key, one in tries.items() if key in numbers]
    outcomes = {numbers[one.key]: one.outcome for one in known}
    return Found(search, tuple(known), decide(len(search.releases), outcomes, search.find))


def text_of(found: Found, form: str, *, width: int = 100, color: bool = False) -> str:
    """Render a result as terminal, markdown, html or json; `width` in columns, for the terminal."""
    if form == "json":
        return dumps(found.document(), indent=2)
    word = "not_affected" if isinstance(found.decision, Bracket) else "undecided"
    return shown(document("mpsdiag bisect", found.sentence, word, _parts(found)), form, width=width, color=color)


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


def _facts(search: Search) -> Fold:
    pairs = (
        (search.axis, f"{search.releases[0]} to {search.releases[-1]} ({len(search.releases)} releases)"),
        ("Pinned", ", ".join(search.pins) or "nothing"),
        ("Predicate", search.predicate),
        ("Device", search.device),
        ("Python", search.python),
        ("System", search.system),
        ("Command", search.command),
        ("Begun", f"{search.created}, mpsdiag {search.mpsdiag}"),
    )
    return facts("Settings", pairs)


def _beside(found: Found) -> str:
    """Which other packages differ between the two sides, because the change may come from them."""
    freezes = {one.release: dict(line.split("==", 1) for line in one.freeze if "==" in line) for one in found.tries}
    before, after = (freezes[side] for side in found.bracket or ())
    differing = [
        f"{name} {before.get(name, 'absent')} and {after.get(name, 'absent')}"
        for name in sorted({*before, *after} - {found.search.axis})
        if before.get(name) != after.get(name)
    ]
    return f"Other packages that differ between the two: {', '.join(differing) or 'none'}."
