"""The content of journals as plain data in reading order. Every format of the report renders a `Report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from mpsdiag.benching.journal.pooling import Place, Pool, PooledCell, pool
from mpsdiag.findings import Answer
from mpsdiag.reporting.story.changes import Changes, compare
from mpsdiag.reporting.story.figures import Mark, mark
from mpsdiag.reporting.story.ranking import Budget, CostRow, CostTable, rank
from mpsdiag.reporting.story.verdicts import SceneVerdict, decide, headline
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.serialization import jsonable
from mpsdiag.words import PADDING_SIDES, TRAINER_VARIANTS, attention_modes

if TYPE_CHECKING:
    import pandas as pd

    from mpsdiag.benching.journal.journal import Journal

# The axes that a grid shows; all others distinguish the panels of a scene.
_GRID_AXES = frozenset({"attn_implementation", "trainer", "padding_side"})
_SCENE_AXES = frozenset({"device", "emulate", "emulate_macos", "environment"})
_panel_key = attrgetter(*(axis for axis in Scenario.model_fields if axis not in _GRID_AXES))
_AXIS_WORDS = {
    "dataset": "data",
    "eval_dataset": "evaluated on",
    "max_length": "length",
    "batch_size": "batch",
    "pad_to_multiple_of": "padded to multiples of",
    "max_steps": "training steps",
    "eval_max_batches": "evaluation batches",
    "seed": "seed",
    "warmup": "warm-up",
    "repeats": "repeats",
    "threads": "threads",
    "files": "files",
}


@dataclass(frozen=True)
class Grid:
    """Which fix resolves it on one padding side: a mark for each attention mode (row) and trainer (column)."""

    padding: str
    attentions: tuple[str, ...]
    trainers: tuple[str, ...]
    marks: tuple[tuple[Mark, ...], ...]


@dataclass(frozen=True)
class Panel:
    """Cells that differ in attention, trainer and padding only; `label` distinguishes it from other panels."""

    label: str
    grids: tuple[Grid, ...]
    costs: tuple[CostTable, ...]
    results: tuple[PooledCell, ...]

    @property
    def rows(self) -> list[tuple[PooledCell, CostRow | None]]:
        """Every result, with its cost if it was timed."""
        costs = {id(row.result): row for table in self.costs for row in table.rows}
        return [(result, costs.get(id(result))) for result in self.results]


@dataclass(frozen=True)
class Scene:
    """The results on one device of one environment, emulated or not."""

    place: Place
    device: str
    emulated: str | None
    """What was emulated, in words; None if nothing was."""
    verdict: SceneVerdict
    grids: tuple[Grid, ...]
    panels: tuple[Panel, ...]
    results: tuple[PooledCell, ...]

    @property
    def label(self) -> str:
        """Heading of the scene; it names an emulation."""
        inside = self.results[0].cell.environment
        kind = self.emulated or (f"environment {inside}" if inside else None)
        return f"{self.device}, {kind}" if kind else self.device


@dataclass(frozen=True, repr=False)
class Report(Answer):
    """The results of a matrix: print them, or use the cells as a table."""

    headline: str
    scenes: tuple[Scene, ...]
    unfinished: tuple[PooledCell, ...]
    skipped: tuple[PooledCell, ...]
    places: tuple[Place, ...]
    commands: tuple[str, ...]
    created: str
    version: str
    baseline: str
    statuses: dict[str, int]
    notes: tuple[str, ...] = ()
    changes: Changes | None = None
    varying: frozenset[str] = field(default_factory=frozenset)
    """Axes on which the cells differ: only these are worth a place in a label."""

    def to_pandas(self) -> pd.DataFrame:
        """Every cell as one row; durations in seconds, memory in bytes, losses in nats (NaN is a finding)."""
        return import_module("mpsdiag.reporting.formats.cells").frame(self)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `mpsdiag report --json`, as plain data; NaN is the word "nan"."""
        found = import_module("mpsdiag.reporting.formats.cells")
        return jsonable(found.document(self))  # type: ignore[no-any-return]


def assemble(journals: Sequence[Journal], against: Sequence[Journal] = (), baseline: str | None = None) -> Report:
    """Assemble the content of journals."""
    pooled = pool(journals)
    headers = [journal.header for journal in journals]
    notes = list(pooled.notes)
    if baseline is None:
        baseline = headers[0].baseline
        if len({header.baseline for header in headers}) > 1:
            notes.append(f"The journals name different baselines; '{baseline}', from the first, is used for all.")
    cells = [vars(one.cell) for one in pooled.results]
    varying = frozenset(axis for axis in Scenario.model_fields if len(set(map(itemgetter(axis), cells))) > 1)
    budget = Budget()
    scenes = tuple(_scenes(pooled, baseline, varying, budget))
    judged = [(scene.emulated is not None, scene.verdict) for scene in scenes]
    changes = compare(pooled, pool(against), budget) if against else None
    return Report(
        headline=" ".join([*([changes.sentence] if changes else []), headline(judged)]),
        changes=changes,
        scenes=scenes,
        unfinished=tuple(one for one in pooled.results if one.setbacks and one.status != "skip"),
        skipped=tuple(one for one in pooled.results if one.status == "skip"),
        places=pooled.places,
        commands=tuple(dict.fromkeys(header.command for header in headers)),
        created=max(header.created for header in headers),
        version=headers[0].mpsdiag,
        baseline=baseline,
        statuses=dict(Counter(one.status for one in pooled.results)),
        notes=tuple(notes) + budget.notes(),
        varying=varying,
    )


def name(result: PooledCell, varying: frozenset[str] = frozenset()) -> str:
    """Name a cell for a sentence: its panel if panels differ, then attention, trainer and padding."""
    words = [f"{result.title}, {result.side}"]
    words += [text for axis in sorted(varying - _GRID_AXES) if (text := _axis(axis, getattr(result.cell, axis)))]
    return ", ".join(words)


def _scenes(pooled: Pool, baseline: str, varying: frozenset[str], budget: Budget) -> list[Scene]:
    groups: dict[tuple[int, str, str | None, int | None, str | None], list[PooledCell]] = {}
    for result in pooled.results:
        cell = result.cell
        key = (result.place.number, cell.device, cell.emulate, cell.emulate_macos, cell.environment)
        groups.setdefault(key, []).append(result)
    scenes = []
    for (number, device, release, macos, _), results in groups.items():
        panels = _panels(results, baseline, varying, budget)
        emulated = None
        if release is not None:
            emulated = f"emulated MPS of torch {release}" + (f" on macOS {macos}" if macos else "")
        scenes.append(
            Scene(
                place=pooled.places[number],
                device=device,
                emulated=emulated,
                verdict=decide([panel.results for panel in panels], baseline, emulated, [one.costs for one in panels]),
                grids=_grids(results),
                panels=panels,
                results=tuple(results),
            )
        )
    return scenes


def _panels(results: Sequence[PooledCell], baseline: str, varying: frozenset[str], budget: Budget) -> tuple[Panel, ...]:
    groups: dict[tuple[Any, ...], list[PooledCell]] = {}
    for result in results:
        key = _panel_key(result.cell)
        groups.setdefault(key, []).append(result)
    return tuple(
        Panel(
            label=_panel_label(members[0], varying),
            grids=_grids(members),
            costs=rank(members, baseline, budget),
            results=tuple(members),
        )
        for members in groups.values()
    )


def _panel_label(result: PooledCell, varying: frozenset[str]) -> str:
    cell = result.cell
    axes = [axis for axis, _ in cell if axis not in _GRID_AXES | _SCENE_AXES | {"model", "dtype"}]
    words = [cell.model, cell.dtype]
    words += [text for axis in axes if axis in varying and (text := _axis(axis, getattr(cell, axis)))]
    return ", ".join(words)


def _axis(axis: str, value: Any) -> str:
    return "" if value is None else f"{_AXIS_WORDS.get(axis, '')} {value}".strip()


def _grids(results: Sequence[PooledCell]) -> tuple[Grid, ...]:
    places: dict[tuple[str, str, str], list[PooledCell]] = {}
    for one in results:
        places.setdefault((one.side, *one.pair), []).append(one)
    attentions = tuple(attention_modes(place[1] for place in places))
    trainers = tuple(word for word in TRAINER_VARIANTS if any(word == place[2] for place in places))
    return tuple(
        Grid(
            padding=side,
            attentions=attentions,
            trainers=trainers,
            marks=tuple(
                tuple(mark(places.get((side, attention, trainer), [])) for trainer in trainers)
                for attention in attentions
            ),
        )
        for side in PADDING_SIDES
        if any(side == place[0] for place in places)
    )
