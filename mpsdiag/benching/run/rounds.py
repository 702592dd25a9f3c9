"""Which cell is timed when: rounds in rotated order, and a stop rule for cells whose ratio is known well enough."""

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
    """When to stop timing a cell: it gets `rounds` rounds at least and `most` at most.

    `precision` is the relative width of the 95 % interval of the ratio to the baseline that is narrow enough.
    """

    rounds: int = 3
    most: int = 5
    precision: float = 0.03


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The order of a round: begun elsewhere each time, and backwards every second time.

    The starts are spread by the golden ratio, so that for any number of rounds each item is early in some and late
    in others; going backwards makes a slow drift hit two neighbours alike (A B, then B A).
    """
    if not items:
        return []
    start = int(len(items) * ((number - 1) * GOLDEN % 1.0))
    order = [*items[start:], *items[:start]]
    return order if number % 2 else order[::-1]


def baseline_of(cell: Scenario, cells: Collection[Scenario], baseline: str) -> Scenario | None:
    """The cell that this one's ratios are to: the baseline's attention with the standard trainer, all else equal.

    Where the matrix has no standard trainer it is the baseline's attention with this cell's trainer; None if that
    is not there either.
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
    """The same for all cells that are compared with each other: they differ in attention and trainer only."""
    return cell.model_copy(update={"attn_implementation": "sdpa", "trainer": STANDARD})


Timings = Mapping[int, Timing]


def timings(rounds: Mapping[int, Record]) -> Timings | None:
    """The timings of a cell that may be timed further: its verdict finished, and so did all timing rounds."""
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
            continue  # steps of this kind are not timed at all
        interval = ratio_interval_of_rounds([mine for mine, _ in pairs], [others for _, others in pairs])
        if interval is None or interval.width > precision * (interval.low + interval.high) / 2:
            return False
    return bool(common)


def wanted(
    number: int, history: Mapping[Scenario, Timings], partners: Mapping[Scenario, Scenario | None], rule: StopRule
) -> list[Scenario]:
    """The cells that get round `number`, in its order.

    A cell goes on while its ratio is not settled by the rounds before this one, and a baseline while one of its
    cells does. Only earlier rounds are looked at, so that an interrupted run resumes with the same decisions.
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
