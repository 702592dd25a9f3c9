"""Numbers of a cell that a gate can name, taken from its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mpsdiag.benching.journal.record import Record
from mpsdiag.statistics import median, ratio_of_rounds

TIMES: Final = {"train_time": "train_step", "eval_time": "eval_step"}


def measure(rounds: Sequence[Record], name: str) -> float | None:
    """A measure of a cell: medians of times in seconds, memory in bytes, losses in nats; None where there is none."""
    return MEASURES[name](rounds)


def ratio_of_times(ours: Sequence[Record], theirs: Sequence[Record], name: str) -> float | None:
    """The ratio of two cells' times as the report gives it: over the rounds that both ran, None where there are none.

    Args:
        ours: Rounds of a cell.
        theirs: Those of the one it is compared with.
        name: A measure.
    """
    if name not in TIMES:
        return None
    sides = [
        {one.round: samples for one in rounds if one.timing and (samples := getattr(one.timing, TIMES[name]))}
        for rounds in (ours, theirs)
    ]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return None
    return ratio_of_rounds([sides[0][one] for one in common], [sides[1][one] for one in common])


def _timed(kind: str) -> Callable[[Sequence[Record]], float | None]:
    def read(rounds: Sequence[Record]) -> float | None:
        samples = [value for one in rounds if one.timing is not None for value in getattr(one.timing, kind)]
        return median(samples) if samples else None

    return read


def _found(name: str) -> Callable[[Sequence[Record]], float | None]:
    def read(rounds: Sequence[Record]) -> float | None:
        found = next((one.measured for one in rounds if one.round == 0 and one.measured is not None), None)
        value: Any = None if found is None else getattr(found, name)
        return None if value is None else float(value)

    return read


def _memory(rounds: Sequence[Record]) -> float | None:
    timed = [one for one in rounds if one.timing is not None] or list(rounds)
    found = [one.measured for one in timed if one.measured is not None]
    peaks = [one.peak_device_memory or one.peak_process_memory for one in found]
    return max((float(peak) for peak in peaks if peak is not None), default=None)


MEASURES: Final[Mapping[str, Callable[[Sequence[Record]], float | None]]] = {
    **{name: _timed(kind) for name, kind in TIMES.items()},
    "memory": _memory,
    **{
        name: _found(name)
        for name in ("eval_loss", "nonfinite_batches", "dead_rows", "loss_moved_by", "max_abs_logit_diff")
    },
}
