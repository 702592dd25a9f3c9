"""From non-finite outputs back to where they began: pure bookkeeping over the events of a pass, no torch.

Not every infinity is a fault: masks are full of minus infinities, and an overflow inside a tanh does no harm. So the
way goes backwards from the outputs, through non-finite tensors only, and ends where a value was born from finite ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpsdiag.tracing.watch.events import Event, Operand, Pass, Terminal

_MAKERS = ("tensor", "as_tensor", "from_numpy", "scalar_tensor", "asarray")


def first_terminal(seen: Pass) -> Terminal | None:
    """The earliest beginning of what made the watched outputs non-finite; None if they are finite.

    Args:
        seen: A detailed pass. An operation that raised ends it, and is its own beginning.
    """
    ends: dict[int, Terminal | None] = {}
    events: dict[int, Event] = {}
    for event in seen.events:
        events[event.index] = event
        if event.error is not None:
            return Terminal("error", event)
        ends[event.index] = _begin(event, ends)
    found = [ends[source.event] for source in seen.watched if source.kind == "event"]
    return _earliest(found)


def _begin(event: Event, ends: Mapping[int, Terminal | None]) -> Terminal | None:
    with_nan = [operand for operand in event.operands if operand.impurity.nan]
    if with_nan:
        return _earliest(_follow(operand, event, ends) for operand in with_nan)
    upstream = _earliest(_follow(operand, event, ends) for operand in event.operands)
    if upstream is not None:
        return upstream
    if event.impurity.nan:
        return Terminal("nan", event)
    if event.operands or _deliberate(event):
        return None
    return Terminal("inf", event)


def _follow(operand: Operand, event: Event, ends: Mapping[int, Terminal | None]) -> Terminal | None:
    source = operand.source
    if source.kind == "event":
        return ends.get(source.event)
    if source.kind == "weight":
        return Terminal("weight", event, operand)
    if operand.impurity.nan:
        kind = {"batch": "batch", "buffer": "weight"}.get(source.kind, "unseen")
        return Terminal(kind, event, operand)  # type: ignore[arg-type]  # one of the kinds
    # Infinities in buffers, constants and given masks are put there on purpose; in other inputs they are not.
    if source.kind == "batch" and "mask" not in source.name:
        return Terminal("batch", event, operand)
    return None


def _deliberate(event: Event) -> bool:
    """Infinities that were written, not computed: a fill, a constant, or the logarithm of a 0/1 mask."""
    if event.infinite_scalar or event.operation in _MAKERS:
        return True
    return event.operation == "log" and not event.impurity.positive


def _earliest(found: Iterable[Terminal | None]) -> Terminal | None:
    known = [terminal for terminal in found if terminal is not None]
    return min(known, key=lambda terminal: terminal.event.index, default=None)
