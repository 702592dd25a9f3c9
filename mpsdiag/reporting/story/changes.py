"""New journals against old ones: what became NaN, what was fixed, what became faster or slower beyond the noise."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from mpsdiag.benching.journal.pooling import Place, Pool, PooledCell
from mpsdiag.reporting.story.figures import NOTHING
from mpsdiag.reporting.story.ranking import Budget, Estimate, ratio
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.statistics import mann_whitney
from mpsdiag.words import count

Change = Literal["newly_bad", "newly_fixed", "still_bad", "worse", "improved", "same", "only_new", "only_old"]
CHANGES: Final[tuple[Change, ...]] = get_args(Change)

NOISE_BAND = 0.03
"""A median ratio this close to 1 counts as unchanged, however narrow its interval: machines drift by that much."""
SURE = 0.05
"""Largest p-value of the Mann-Whitney test that still counts as a change."""

_SPOKEN: dict[Change, str] = {
    "newly_bad": "newly NaN, wrong or broken",
    "newly_fixed": "newly fixed",
    "still_bad": "still not correct",
    "worse": "slower",
    "improved": "faster",
    "same": "the same",
    "only_new": "only in the new",
    "only_old": "only in the old",
}


@dataclass(frozen=True)
class PlacePair:
    """Two environments that are compared, and the facts in which they differ: name, old, new."""

    new: Place
    old: Place
    differences: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class CellChange:
    """One cell, new against old. Ratios are new over old: below 1 is faster. Only for cells correct in both."""

    change: Change
    cell: Scenario
    new: PooledCell | None
    old: PooledCell | None
    eval_ratio: Estimate | None = None
    eval_p: float | None = None
    train_ratio: Estimate | None = None
    train_p: float | None = None


@dataclass(frozen=True)
class Changes:
    """All cells of both, problems first."""

    pairs: tuple[PlacePair, ...]
    rows: tuple[CellChange, ...]

    @property
    def counts(self) -> dict[Change, int]:
        """How many cells changed in which way; zero counts are left out."""
        found = Counter(row.change for row in self.rows)
        return {change: found[change] for change in CHANGES if found[change]}

    @property
    def sentence(self) -> str:
        """The counts in words."""
        if not self.rows:
            return "Nothing to compare."
        words = [f"{number:,} {_SPOKEN[change]}" for change, number in self.counts.items()]
        return f"Against the older results, of {count(len(self.rows), 'cell')}: {', '.join(words)}."


def compare(new: Pool, old: Pool, budget: Budget) -> Changes:
    """Compare the cells of two pools that have the same spec, whatever their versions and number of rounds.

    If a side has several environments, each new one is compared with each old one that has cells in common.
    """
    ours, theirs = _by_place(new), _by_place(old)
    pairs: list[PlacePair] = []
    rows: list[CellChange] = []
    for here, mine in ours.items():
        for there, others in theirs.items():
            common = [cell for cell in mine if cell in others]
            if common:
                now, before = new.places[here], old.places[there]
                differing_facts = differing(dict(now.facts), dict(before.facts))
                pairs.append(PlacePair(now, before, tuple((name, was, is_) for name, is_, was in differing_facts)))
            rows += [_row(mine[cell], others[cell], budget) for cell in common]
    rows += [CellChange("only_new", one.cell, one, None) for one in _alone(ours, theirs)]
    rows += [CellChange("only_old", one.cell, None, one) for one in _alone(theirs, ours)]
    rows.sort(key=lambda row: (CHANGES.index(row.change), -_size(row)))
    return Changes(tuple(pairs), tuple(rows))


def _by_place(pool: Pool) -> dict[int, dict[Scenario, PooledCell]]:
    places: dict[int, dict[Scenario, PooledCell]] = {}
    for result in pool.results:
        cell = result.cell.model_copy(update={"warmup": 0, "repeats": 1})
        places.setdefault(result.place.number, {})[cell] = result
    return places


def _alone(
    some: dict[int, dict[Scenario, PooledCell]], others: dict[int, dict[Scenario, PooledCell]]
) -> Iterable[PooledCell]:
    """The results of cells that the others do not have in any environment."""
    for results in some.values():
        for cell, result in results.items():
            if not any(cell in there for there in others.values()):
                yield result


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[tuple[str, str, str]]:
    """The facts in which two environments differ: name, ours, theirs."""
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    return [(name, ours.get(name, NOTHING), theirs.get(name, NOTHING)) for name in names]


def _row(new: PooledCell, old: PooledCell, budget: Budget) -> CellChange:
    if not (new.correct and old.correct):
        return CellChange(_status_change(new, old), new.cell, new, old)
    full = budget.take(new, old)
    eval_ratio = ratio(new.eval_rounds, old.eval_rounds, full=full)
    train_ratio = ratio(new.train_rounds, old.train_rounds, full=full)
    eval_p = mann_whitney(new.eval_step, old.eval_step)
    train_p = mann_whitney(new.train_step, old.train_step)
    changes = {_speed_change(eval_ratio, eval_p), _speed_change(train_ratio, train_p)}
    change = next(word for word in ("worse", "improved", "same") if word in changes)
    return CellChange(change, new.cell, new, old, eval_ratio, eval_p, train_ratio, train_p)


def _status_change(new: PooledCell, old: PooledCell) -> Change:
    if new.correct:
        return "newly_fixed"
    if new.status in {"skip", "interrupted"}:
        return "only_old"
    return "newly_bad" if old.correct else "still_bad"


def _speed_change(estimate: Estimate | None, p: float | None) -> Literal["worse", "improved", "same"]:
    """A change is beyond the noise band, has an interval that excludes 1, and a test that agrees."""
    if estimate is None or p is None or p > SURE or abs(estimate.value - 1) <= NOISE_BAND:
        return "same"
    if estimate.value > 1:
        return "same" if estimate.low is not None and estimate.low <= 1 else "worse"
    return "same" if estimate.high is not None and estimate.high >= 1 else "improved"


def _size(row: CellChange) -> float:
    return max((abs(one.value - 1) for one in (row.eval_ratio, row.train_ratio) if one), default=0.0)
