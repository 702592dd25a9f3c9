"""From a matrix to its cells: the loops over the axes, the rules, and the cells that cannot run here, with reasons."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpsdiag import device, words
from mpsdiag.benching.plan.matrix import AXES, MatrixSpec, Rule
from mpsdiag.benching.plan.this_machine import fingerprint
from mpsdiag.benching.plan.this_machine import unavailable as reason_here
from mpsdiag.errors import BadInput, nearest
from mpsdiag.scenario.scenario import Scenario

Reason = Callable[[Scenario], str | None]


@dataclass(frozen=True)
class Plan:
    """The cells of a matrix on this machine, in the order of its loops."""

    cells: tuple[Scenario, ...]
    skipped: Mapping[Scenario, str] = field(default_factory=dict)
    """Those that cannot run here, and why."""
    order: tuple[Scenario, ...] = ()
    """All cells of the matrix, in the order of its loops, so that machines that skip different cells agree on it."""
    notes: tuple[str, ...] = ()
    """Rules that have no effect, as sentences."""
    empty: str = ""
    """Why there is nothing to do, if there are no cells."""

    @property
    def all_cells(self) -> list[Scenario]:
        """Those that can run, then those that cannot."""
        return [*self.cells, *self.skipped]


def expand(
    spec: MatrixSpec,
    *,
    unavailable: Reason = reason_here,
    resolve: Callable[[str], str] = device.resolve,
    files: Callable[[tuple[str, ...]], str | None] = fingerprint,
) -> Plan:
    """List the cells of a matrix. Raises BadInput if there are none, or more than `max_cells`."""
    cells, notes = _cells(spec, _maker(spec, resolve, files))
    if not cells:
        raise BadInput(f"The matrix '{spec.name}' has no cells: its exclude rules leave out all of them.")
    if len(cells) > spec.max_cells:
        raise BadInput(
            f"The matrix '{spec.name}' has {len(cells)} cells, more than --max-cells {spec.max_cells}. "
            "Shorten an axis, exclude some cells, or raise --max-cells."
        )
    reasons = [(cell, unavailable(cell)) for cell in cells]
    return Plan(
        cells=tuple(cell for cell, reason in reasons if reason is None),
        skipped={cell: reason for cell, reason in reasons if reason is not None},
        order=tuple(cells),
        notes=tuple(notes),
    )


def shard(plan: Plan, index: int, count: int, group: Callable[[Scenario], Any]) -> Plan:
    """The part of a plan for one of several machines. Cells that are compared with each other stay together.

    If there are more parts than groups, the last parts are empty, and say so.
    """
    if not 1 <= index <= count:
        raise BadInput(f"--shard {index}/{count} does not exist. Give 1/{count} to {count}/{count}.")
    groups = {name: number for number, name in enumerate(dict.fromkeys(map(group, plan.order)))}
    mine = {name for name, number in groups.items() if number % count == index - 1}
    empty = (
        f"part {index} of {count} is empty: the matrix has {words.count(len(groups), 'group')} of cells that are "
        "compared, which stay together"
    )
    return replace(
        plan,
        cells=tuple(cell for cell in plan.cells if group(cell) in mine),
        skipped={cell: reason for cell, reason in plan.skipped.items() if group(cell) in mine},
        empty="" if mine else empty,
    )


def _cells(spec: MatrixSpec, cell_of: Callable[[dict[str, Any]], Scenario]) -> tuple[list[Scenario], list[str]]:
    """The cells, each once, and sentences about rules without effect."""
    axes = {name: getattr(spec.axes, name) for name in AXES}
    notes = list(_idle(spec, axes))
    excluded = [rule.named() for rule in spec.exclude]
    points = [
        point
        for point in _points(spec, axes)
        if not any(all(point[name] in values for name, values in named.items()) for named in excluded)
    ]
    cells = dict.fromkeys(map(cell_of, points))
    for number, rule in enumerate(spec.include, start=1):
        before, named = len(cells), rule.named()
        added = _points(spec, {name: named.get(name, values[:1]) for name, values in axes.items()})
        cells.update(dict.fromkeys(map(cell_of, added)))
        if len(cells) == before:
            notes.append(f"{_title('include', number, rule)} adds nothing: the matrix already has its cells.")
    if not any(cell.attn_implementation == spec.baseline for cell in cells):
        without = "there will be no ratios and no verdict (see --baseline)"
        notes.append(f"no cell has the baseline's attention, {spec.baseline}: {without}")
    return list(cells), notes


def _maker(
    spec: MatrixSpec, resolve: Callable[[str], str], files: Callable[[tuple[str, ...]], str | None]
) -> Callable[[dict[str, Any]], Scenario]:
    """Make a cell from a point of the matrix: its device by name, and what all cells have in common."""
    device_of = functools.cache(resolve)
    common = ("dataset", "eval_dataset", "max_steps", "eval_max_batches", "warmup", "repeats")
    fixed = {name: getattr(spec, name) for name in common}
    data = tuple(one for one in (spec.dataset, spec.eval_dataset) if one is not None)
    files_of = functools.cache(lambda model: files((model, *data)))

    def cell_of(point: dict[str, Any]) -> Scenario:
        model, emulated = point["model"], point["emulate"] is not None
        device = "cpu" if emulated and point["device"] == "auto" else device_of(point["device"])
        # The built-in models are so small that a second thread gains nothing, and waiting for one that a busy machine
        # has put aside can cost a hundred times the work.
        threads = 1 if spec.threads is None and model in words.BUILTIN_MODELS else spec.threads
        # Emulation means MPS on the CPU of this machine; without it no macOS is emulated.
        unused = "environment" if emulated else "emulate_macos"
        made = {**point, **fixed, "device": device, unused: None, "threads": threads, "files": files_of(model)}
        return Scenario.model_validate(made)

    return cell_of


def _points(spec: MatrixSpec, axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    number = math.prod(map(len, axes.values()))
    if number > words.MOST:
        raise BadInput(
            f"The axes of the matrix '{spec.name}' have {number:,} combinations, more than can be listed "
            f"({words.MOST:,}). Shorten an axis."
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _idle(spec: MatrixSpec, axes: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Name what has no effect: axes that emulate overrides, and exclude rules whose values no axis has."""
    if "emulate_macos" in spec.axes.model_fields_set and not any(spec.axes.emulate):
        yield "emulate_macos has no effect without emulate"
    if any(spec.axes.environment) and all(spec.axes.emulate):
        yield "environment has no effect with emulate: an emulation runs in the current environment"
    for number, rule in enumerate(spec.exclude, start=1):
        for name, values in rule.named().items():
            if not set(values) & set(axes[name]):
                hint = nearest(_word(values[0]), map(_word, axes[name]))
                title = _title("exclude", number, rule)
                yield f"{title} leaves nothing out: the axis {name} has no such value. {hint}"
                break


def _title(kind: str, number: int, rule: Rule) -> str:
    named = ", ".join(f"{name} = {' or '.join(map(_word, values))}" for name, values in rule.named().items())
    return f"[[{kind}]] rule {number} ({named})"


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
