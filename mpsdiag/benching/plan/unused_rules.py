"""What of a matrix changes nothing: most often a slip of the finger, which nobody would notice else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpsdiag.benching.plan.spec import Axes, Rule
from mpsdiag.errors import nearest
from mpsdiag.scenario.scenario import Scenario


def idle_exclude(number: int, rule: Rule, axes: Mapping[str, Sequence[Any]]) -> str | None:
    """Say that an exclude rule leaves nothing out, and by which axis; None if it does leave cells out.

    Args:
        number: Of the rule, from 1.
        rule: The cells to leave out.
        axes: The values of every axis.
    """
    for name, values in rule.named().items():
        if not set(values) & set(axes[name]):
            hint = nearest(_word(values[0]), map(_word, axes[name]))
            return f"{_title('exclude', number, rule)} leaves nothing out: the axis {name} has no such value. {hint}"
    return None


def idle_include(number: int, rule: Rule) -> str:
    """Say that an include rule adds nothing.

    Args:
        number: Of the rule, from 1.
        rule: The cells to add.
    """
    return f"{_title('include', number, rule)} adds nothing: the matrix has its cells already."


def idle_macos(axes: Axes) -> str | None:
    """Say that a macOS was named with nothing to emulate on it; None if there is something, or none was named."""
    if "emulate_macos" not in axes.model_fields_set or any(axes.emulate):
        return None
    return "emulate_macos has no effect without emulate"


def lacking_baseline(baseline: str, cells: Iterable[Scenario]) -> str | None:
    """Say that nothing is there to compare with; None if something is."""
    if any(cell.attn_implementation == baseline for cell in cells):
        return None
    return f"no cell has the baseline's attention, {baseline}: there will be no ratios and no verdict (see --baseline)"


def _title(kind: str, number: int, rule: Rule) -> str:
    named = ", ".join(f"{name} = {' or '.join(map(_word, values))}" for name, values in rule.named().items())
    return f"[[{kind}]] rule {number} ({named})"


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
