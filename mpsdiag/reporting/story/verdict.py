"""From the cells of one scene to a sentence: is it affected, which fix resolves it, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.cost import CostTable, Estimate, reference_trainer
from mpsdiag.reporting.story.pool import Result
from mpsdiag.reporting.story.remedies import Fix, find, recommend
from mpsdiag.words import Verdict as Word

# A baseline that aborts is affected as well; one that was killed, or ran out of time or memory, has not answered.
_WRONG = frozenset({"nan", "wrong"})
_SYMPTOM = {"nan": "a NaN evaluation loss", "wrong": "wrong numbers", "crash": "a crash"}


@dataclass(frozen=True)
class Verdict:
    """The finding on one scene. `fixes` hold every pair that resolves it, the recommended one first."""

    word: Word
    sentence: str
    recommendation: str
    fixes: tuple[Fix, ...]

    @property
    def text(self) -> str:
        """Verdict and recommendation together."""
        return f"{self.sentence} {self.recommendation}".strip()


def decide(
    panels: Sequence[Sequence[Result]],
    baseline: str,
    emulated: str | None,
    costs: Sequence[Sequence[CostTable]],
) -> Verdict:
    """Judge a scene.

    Args:
        panels: The cells of each panel.
        baseline: Attention mode whose standard-trainer cells tell whether there is a problem.
        emulated: What was emulated, in words, for the sentence.
        costs: The cost tables of each panel.
    """
    spots: dict[tuple[int, str], dict[tuple[str, str], Result]] = {}
    for number, results in enumerate(panels):
        for one in results:
            spot = spots.setdefault((number, one.cell.padding_side), {})
            spot[one.cell.attn_implementation, one.cell.trainer] = one
    everything = [one for results in panels for one in results]
    stock = (baseline, reference_trainer(everything, baseline))
    reference = {key: spot[stock] for key, spot in spots.items() if stock in spot}
    where = f" ({emulated}, not measured on MPS)" if emulated else ""
    trouble = {key for key, one in reference.items() if _in_trouble(one)}
    if trouble:
        sentence = f"Affected{where}: {_symptom(reference, stock)}."
        fixes = find(spots, trouble, stock, _ratios(costs, trouble))
        timed_on = _timed_on(costs) if emulated else ""
        return Verdict("affected", sentence, recommend(fixes, stock, timed_on), fixes)
    return _without_trouble(everything, list(reference.values()), stock, where)


def headline(scenes: Sequence[tuple[bool, Verdict]]) -> str:
    """Sum up all scenes in the sentence that a report opens with.

    Args:
        scenes: Whether it is emulated, and the verdict, of each.
    """
    if not scenes:
        return "Undecided: there is no cell in these journals."
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
    common = _common_fix(bad)
    advice = f" Use {common}: it resolves all of them." if common else ""
    return f"Affected in {len(bad)} of {len(scenes)} {kind}{share}, each with its own verdict below.{advice}"


def _common_fix(verdicts: Sequence[Verdict]) -> str | None:
    for fix in verdicts[0].fixes:
        others = [{(one.attention, one.trainer) for one in verdict.fixes} for verdict in verdicts[1:]]
        if all((fix.attention, fix.trainer) in pairs for pairs in others):
            return f"{fix.attention} attention with the {fix.trainer} trainer"
    return None


def _ratios(
    costs: Sequence[Sequence[CostTable]], trouble: set[tuple[int, str]]
) -> dict[tuple[str, str], list[Estimate]]:
    """Ratios of the evaluation step where the baseline fails, by attention and trainer."""
    ratios: dict[tuple[str, str], list[Estimate]] = {}
    for number, tables in enumerate(costs):
        for row in (row for table in tables if (number, table.padding) in trouble for row in table.rows):
            if row.eval_ratio is not None:
                pair = (row.result.cell.attn_implementation, row.result.cell.trainer)
                ratios.setdefault(pair, []).append(row.eval_ratio)
    return ratios


def _timed_on(costs: Sequence[Sequence[CostTable]]) -> str:
    devices = sorted({device for tables in costs for table in tables for device in table.timed_on})
    return f", timed on {' and '.join(devices)} without emulation"


def _symptom(reference: dict[tuple[int, str], Result], stock: tuple[str, str]) -> str:
    """Say what the baseline suffers from, a clause for each kind."""
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
    return f"{stock[0]} attention with the {stock[1]} trainer gives {', and '.join(clauses)}"


def _in_trouble(result: Result) -> bool:
    return result.status in _WRONG or (result.status == "crash" and result.aborted)


def _without_trouble(
    everything: Sequence[Result], reference: Sequence[Result], stock: tuple[str, str], where: str
) -> Verdict:
    bad = sum(map(_in_trouble, everything))
    others = f" {figures.count(bad, 'other cell')} came out NaN, wrong or crashed." if bad else ""
    if reference and all(one.correct for one in reference):
        settings = "" if len(reference) == 1 else f" in {len(reference)} of {len(reference)} settings"
        return Verdict(
            "not_affected",
            f"Not affected{where}: {stock[0]} attention with the {stock[1]} trainer is right"
            f"{settings}.{others}",
            "No fix is needed.",
            (),
        )
    if reference:
        open_ = [one.status for one in reference if not one.correct]
        retry = [word for word in dict.fromkeys(open_) if word not in {"interrupted", "skip"}]
        again = f" with --retry {','.join(retry)}" if retry else ""
        return Verdict(
            "undecided",
            f"Undecided{where}: {len(open_)} of {len(reference)} baseline cells did not finish.{others}",
            f"Run the bench again{again}: it takes up where it stopped.",
            (),
        )
    return Verdict(
        "affected" if bad else "undecided",
        f"{'Affected' if bad else 'Undecided'}{where}: the baseline, {stock[0]} attention with the {stock[1]}"
        f" trainer, was not run; {bad} of {len(everything)} cells came out NaN, wrong or crashed.",
        "Add the baseline to the matrix to see what a fix changes.",
        (),
    )
