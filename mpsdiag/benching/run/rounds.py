"""The order of timing: rounds in rotated order, and a stop rule for cells whose ratio is precise enough."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mpsdiag.benching.journal.record import FINDINGS, Record, Timing
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.statistics import ratio_interval_of_rounds

T = TypeVar("T")
GOLDEN = 0.6180339887498949
STANDARD = "standard"


@dataclass(frozen=True)
class StopRule:
    """When to stop timing a cell: it gets at least `rounds` and at most `most` rounds.

    `precision` is the relative width at which the 95 % interval of the ratio to the baseline is narrow enough.
    """

    rounds: int = 3
    most: int = 5
    precision: float = 0.03


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The order of a round: each starts at another place, and every second one goes backwards.

    Starting places are spread by the golden ratio, so that for any number of rounds each item is early in some and
    late in others; going backwards makes a slow drift affect two neighbours alike (A B, then B A).
    """
    if not items:
        return []
    start = int(len(items) * ((number - 1) * GOLDEN % 1.0))
    order = [*items[start:], *items[:start]]
    return order if number % 2 else order[::-1]


def baseline_of(cell: Scenario, cells: Collection[Scenario], baseline: str) -> Scenario | None:
    """The cell to which this one's ratios are relative: the baseline's attention with the standard trainer.

    All other axes are equal. Without a standard trainer in the matrix it is the baseline's attention with this
    cell's trainer; None if that is missing too.
    """
    for trainer in (STANDARD, cell.trainer):
        partner = cell.model_copy(update={"attn_implementation": baseline, "trainer": trainer})
        if partner in cells:
            return partner
    return None


def baselines(cells: Sequence[Scenario], baseline: str) -> dict[Scenario, Scenario | None]:
    """`baseline_of` for every cell."""
    known = dict.fromkeys(cells)
    return {cell: baseline_of(cell, known, baseline) for cell in known}


def group_of(cell: Scenario) -> Scenario:
    """Equal for all cells that are compared with each other: they differ only in attention and trainer."""
    return cell.model_copy(update={"attn_implementation": "sdpa", "trainer": STANDARD})


Timings = Mapping[int, Timing]


def timings(rounds: Mapping[int, Record]) -> Timings | None:
    """The timings of a cell that may be timed further: its verdict and all its timing rounds finished."""
    if 0 not in rounds or rounds[0].status not in FINDINGS:
        return None
    found = {number: record.timing for number, record in rounds.items() if number > 0}
    finished = {number: timing for number, timing in found.items() if timing is not None}
    return finished if len(finished) == len(found) else None


def settled(ours: Timings, theirs: Timings, precision: float) -> bool:
    """Whether both ratios of a cell to its baseline are known to `precision`."""
    common = sorted(ours.keys() & theirs.keys())
    for name in ("train_step", "eval_step"):
        pairs = [(getattr(ours[one], name), getattr(theirs[one], name)) for one in common]
        if not any(mine or others for mine, others in pairs):
            continue  # steps of this kind are never timed
        interval = ratio_interval_of_rounds([mine for mine, _ in pairs], [others for _, others in pairs])
        if interval is None or interval.width > precision * (interval.low + interval.high) / 2:
            return False
    return bool(common)


def wanted(
    number: int, history: Mapping[Scenario, Timings], partners: Mapping[Scenario, Scenario | None], rule: StopRule
) -> list[Scenario]:
    """The cells that get round `number`, in its order.

    A cell continues while earlier rounds have not settled its ratio, and a baseline while one of its cells
    continues. Only earlier rounds are used, so that an interrupted run resumes with the same decisions.
    """
    if number > rule.most or rule.rounds == 0:
        return []
    if number <= rule.rounds:
        return rotated(list(history), number)
    before = {cell: {r: t for r, t in timings.items() if r < number} for cell, timings in history.items()}
    open_cells: set[Scenario] = set()
    for cell, timings in before.items():
        partner = partners.get(cell)
        if partner is None or partner == cell or partner not in before:
            continue
        gone_on = max(timings, default=0) == number - 1
        if gone_on and not settled(timings, before[partner], rule.precision):
            open_cells |= {cell, partner}
    return rotated([cell for cell in history if cell in open_cells], number)
