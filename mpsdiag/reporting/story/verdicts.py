"""From the cells of a scene to a sentence: whether it is affected, which fix resolves it, and at what cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.figures import exact, moved_by
from mpsdiag.reporting.story.ranking import CostTable, Estimate, reference_trainer
from mpsdiag.words import Verdict, count

# A baseline that aborts is affected too; one that was killed, or ran out of time or memory, gives no answer.
_WRONG = frozenset({"nan", "wrong"})
_SYMPTOM = {"nan": "a NaN evaluation loss", "wrong": "wrong numbers", "crash": "a crash"}


VAGUE = 0.5
"""Width of an interval, relative to its ratio, above which a sentence about the ratio needs a warning."""

Pair = tuple[str, str]
"""An attention mode and a trainer variant."""


@dataclass(frozen=True)
class WorkingFix:
    """A pair of attention mode and trainer that is correct wherever it was run, and was run wherever it is needed.

    `exact`: known to equal stock SDPA on the CPU everywhere.
    `moved`: largest shift of the evaluation loss in nats, None if not measured everywhere.
    `eval_ratio`: evaluation step relative to the baseline's, geometric mean over the settings, None if not timed.
    """

    attention: str
    trainer: str
    exact: bool
    moved: float | None
    eval_ratio: float | None
    spread: tuple[float, float] | None
    """Interval of the ratio if there is one setting, otherwise the smallest and largest ratio."""
    settings: int
    """In how many of the settings where the baseline fails it was timed."""

    def changes(self, stock: Pair) -> int:
        """How much of the baseline's attention and trainer it changes."""
        return (self.attention != stock[0]) + (self.trainer != stock[1])

    def words(self, stock: Pair) -> str:
        """What to use, in words."""
        parts = []
        if self.attention != stock[0]:
            parts.append(f"{self.attention} attention")
        if self.trainer != stock[1]:
            parts.append(f"the {self.trainer} trainer")
        return " with ".join(parts)


@dataclass(frozen=True)
class SceneVerdict:
    """The finding on one scene. `fixes` holds every pair that resolves it, the recommended one first."""

    word: Verdict
    sentence: str
    recommendation: str
    fixes: tuple[WorkingFix, ...]

    @property
    def text(self) -> str:
        """Verdict and recommendation together."""
        return f"{self.sentence} {self.recommendation}".strip()


def decide(
    panels: Sequence[Sequence[PooledCell]], baseline: str, emulated: str | None, costs: Sequence[Sequence[CostTable]]
) -> SceneVerdict:
    """Judge a scene."""
    spots: dict[tuple[int, str], dict[tuple[str, str], PooledCell]] = {}
    for number, results in enumerate(panels):
        for one in results:
            spot = spots.setdefault((number, one.side), {})
            spot[one.pair] = one
    everything = [one for results in panels for one in results]
    stock = (baseline, reference_trainer(everything, baseline))
    reference = {key: spot[stock] for key, spot in spots.items() if stock in spot}
    where = f" ({emulated}, not measured on MPS)" if emulated else ""
    trouble = {key for key, one in reference.items() if _in_trouble(one)}
    if trouble:
        sentence = f"Affected{where}: {_symptom(reference, stock)}."
        fixes = find(spots, trouble, stock, _ratios(costs, trouble))
        devices = sorted({device for tables in costs for table in tables for device in table.timed_on})
        timed_on = f", timed on {' and '.join(devices)} without emulation" if emulated else ""
        return SceneVerdict("affected", sentence, recommend(fixes, stock, timed_on), fixes)
    return _without_trouble(everything, list(reference.values()), stock, where)


def headline(scenes: Sequence[tuple[bool, SceneVerdict]]) -> str:
    """Summarize all scenes in the first sentence of a report."""
    if not scenes:
        return "Undecided: these journals have no cells."
    if len(scenes) == 1:
        return scenes[0][1].text
    emulated = sum(flag for flag, _ in scenes)
    kind = "emulated settings" if emulated == len(scenes) else "settings"
    share = f" ({emulated} of them emulated)" if 0 < emulated < len(scenes) else ""
    bad = [one for _, one in scenes if one.word == "affected"]
    if not bad:
        words = {one.word for _, one in scenes}
        sure = "Not affected" if words == {"not_affected"} else "Undecided"
        return f"{sure} in {len(scenes)} {kind}{share}: each has its own verdict below."
    others = [{(one.attention, one.trainer) for one in verdict.fixes} for verdict in bad[1:]]
    pairs = ((fix.attention, fix.trainer) for fix in bad[0].fixes)
    common = next((pair for pair in pairs if all(pair in fixes for fixes in others)), None)
    advice = f" Use {_named(common)}: it resolves all of them." if common else ""
    return f"Affected in {len(bad)} of {len(scenes)} {kind}{share}, each with its own verdict below.{advice}"


def _ratios(
    costs: Sequence[Sequence[CostTable]], trouble: set[tuple[int, str]]
) -> dict[tuple[str, str], list[Estimate]]:
    """Ratios of the evaluation step where the baseline fails, by attention and trainer."""
    ratios: dict[tuple[str, str], list[Estimate]] = {}
    for number, tables in enumerate(costs):
        for row in (row for table in tables if (number, table.padding) in trouble for row in table.rows):
            if row.eval_ratio is not None:
                ratios.setdefault(row.result.pair, []).append(row.eval_ratio)
    return ratios


def _symptom(reference: dict[tuple[int, str], PooledCell], stock: tuple[str, str]) -> str:
    """The symptoms of the baseline, a clause for each kind."""
    clauses = []
    for status, symptom in _SYMPTOM.items():
        sides = []
        for side in dict.fromkeys(side for _, side in reference):
            here = [key for key in reference if key[1] == side]
            hit = sum(reference[key].status == status for key in here if _in_trouble(reference[key]))
            if hit:
                share = "" if len(here) == 1 else f" ({hit} of {len(here)} settings)"
                sides.append(f"{side} padding{share}")
        if sides:
            clauses.append(f"{symptom} with {' and '.join(sides)}")
    return f"{_named(stock)} gives {', and '.join(clauses)}"


def _in_trouble(result: PooledCell) -> bool:
    return result.status in _WRONG or (result.status == "crash" and result.aborted)


def _without_trouble(
    everything: Sequence[PooledCell], reference: Sequence[PooledCell], stock: tuple[str, str], where: str
) -> SceneVerdict:
    bad = sum(map(_in_trouble, everything))
    others = f" {count(bad, 'other cell')} came out NaN, wrong or crashed." if bad else ""
    named = _named(stock)
    if reference and all(one.correct for one in reference):
        settings = "" if len(reference) == 1 else f" in {len(reference)} of {len(reference)} settings"
        sentence = f"Not affected{where}: {named} is correct{settings}.{others}"
        return SceneVerdict("not_affected", sentence, "No fix is needed.", ())
    if reference:
        open_ = [one.status for one in reference if not one.correct]
        retry = [word for word in dict.fromkeys(open_) if word not in {"interrupted", "skip"}]
        again = f" with --retry {','.join(retry)}" if retry else ""
        sentence = f"Undecided{where}: {len(open_)} of {len(reference)} baseline cells did not finish.{others}"
        return SceneVerdict("undecided", sentence, f"Run the bench again{again} to resume.", ())
    found = f"{bad} of {len(everything)} cells came out NaN, wrong or crashed"
    sentence = f"{'Affected' if bad else 'Undecided'}{where}: the baseline, {named}, was not run; {found}."
    advice = "Add the baseline to the matrix to see what a fix changes."
    return SceneVerdict("affected" if bad else "undecided", sentence, advice, ())


def _named(pair: Pair) -> str:
    return f"{pair[0]} attention with the {pair[1]} trainer"


def find(
    spots: Mapping[tuple[int, str], Mapping[Pair, PooledCell]],
    trouble: set[tuple[int, str]],
    stock: Pair,
    ratios: Mapping[Pair, Sequence[Estimate]],
) -> tuple[WorkingFix, ...]:
    """Find the fixes: correct wherever they were run, and run wherever the baseline fails.

    Exact ones come first; then those that change less; then another attention before another trainer, because the
    first removes the cause and the second only avoids it; then the faster ones.
    """
    pairs: dict[Pair, list[PooledCell]] = {}
    for spot in spots.values():
        for pair, one in spot.items():
            pairs.setdefault(pair, []).append(one)
    pairs.pop(stock, None)
    fixes = []
    for pair, met in pairs.items():
        answered = [one for one in met if one.status not in {"skip", "interrupted"}]
        needed = [spots[key].get(pair) for key in trouble]
        if all(one.correct for one in answered) and all(one is not None and one.correct for one in needed):
            fixes.append(_fix(pair, met, ratios.get(pair, ())))

    def order(fix: WorkingFix) -> tuple[float, ...]:
        ratio = math.inf if fix.eval_ratio is None else fix.eval_ratio
        return not fix.exact, fix.changes(stock), fix.trainer != stock[1], ratio

    return tuple(sorted(fixes, key=order))


def recommend(fixes: Sequence[WorkingFix], stock: Pair, timed_on: str) -> str:
    """One sentence about what to use, how well it works and what it costs."""
    if not fixes:
        return "None of the fixes that were run resolves it everywhere."
    best = fixes[0]
    if best.exact:
        quality = "it resolves it and is exact"
    elif not best.moved:
        quality = "it resolves it"
    else:
        quality = f"it resolves it, and the loss moves by {figures.moved(best.moved)}"
    price = "" if best.eval_ratio is None else f"; an evaluation step takes {_price(best.eval_ratio, best)}{timed_on}"
    return f"Use {best.words(stock)}: {quality}{price}."


def _fix(pair: Pair, met: Sequence[PooledCell], rows: Sequence[Estimate]) -> WorkingFix:
    shifts = [moved_by(one) for one in met if one.correct]
    known = [shift for shift in shifts if shift is not None]
    values = [row.value for row in rows if row.value > 0]
    spread = None
    if len(rows) == 1 and rows[0].low is not None and rows[0].high is not None:
        spread = (rows[0].low, rows[0].high)
    elif len(values) > 1:
        spread = (min(values), max(values))
    return WorkingFix(
        attention=pair[0],
        trainer=pair[1],
        exact=all(exact(one) for one in met if one.correct),
        moved=max(known, key=abs) if known and len(known) == len(shifts) else None,
        eval_ratio=geometric_mean(values) if values else None,
        spread=spread,
        settings=len(values),
    )


def _price(ratio: float, fix: WorkingFix) -> str:
    if fix.spread is None:
        return f"{figures.ratio(ratio)} the baseline's"
    low, high = fix.spread
    if fix.settings > 1:
        return f"{figures.ratio(ratio)} the baseline's ({low:.2f} to {high:.2f} in {fix.settings} settings)"
    vague = " (a noisy machine: run more rounds)" if high - low > VAGUE * ratio else ""
    return f"{figures.ratio(ratio, low, high)} the baseline's{vague}"
