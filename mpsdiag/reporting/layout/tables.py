"""A story laid out as sections and tables, in reading order; the same for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpsdiag.reporting.layout.blocks import (
    Block,
    Column,
    Facts,
    Fold,
    Heading,
    Item,
    Limits,
    Log,
    Points,
    Prose,
    Section,
    Table,
    from_mark,
)
from mpsdiag.reporting.layout.gallery import Shown, gallery, placed
from mpsdiag.reporting.layout.table_compare import compare_blocks
from mpsdiag.reporting.layout.table_costs import cost_table
from mpsdiag.reporting.layout.table_losses import STOCK_PRINTS, loss_table, where
from mpsdiag.reporting.story import figures
from mpsdiag.reporting.story.pool import Result
from mpsdiag.reporting.story.story import Grid, Scene, Story, name

HOW_TO_READ = (
    (
        "✓ exact: finished and right; every logit, those of dead rows too, agrees with the float64 reference,"
        " so the loss is that of stock SDPA on the CPU."
    ),
    (
        "≈ moved: finished and right, but the evaluation loss moved by that much: a dead row is filled"
        " differently, and the label of the first real token is read from it."
    ),
    (
        "✗ NaN: the evaluation loss is not finite. ✗ wrong: finite, but further from the float64 reference"
        " than twice the error of eager attention in the same dtype."
    ),
    (
        "! crashed, out of memory, timeout, error: the cell did not finish. · not run: nobody asked for it,"
        " or it cannot exist."
    ),
    (
        "Durations are medians with a 95 % interval; ratios are to the baseline on the same padding side, median over "
        "the rounds that both ran. MAD is the median absolute deviation; p that of the Mann-Whitney test."
        " Only correct cells are ranked: fast and wrong is no speed-up."
    ),
    "Emulated means computed by a CPU model of that release's MPS kernels: it gives verdicts, never timings.",
)


def sections(story: Story, limits: Limits) -> list[Section]:
    """Lay a story out.

    Args:
        story: What to show.
        limits: How much of it.
    """
    shown = gallery(story) if limits.pictures else []
    made = [
        _section(
            "compared", "Compared", compare_blocks(story.comparison, limits) if story.comparison else []
        ),
        _section("fixes", "Which fix resolves it", _fixes(story, limits, shown)),
        _section("cost", "What it costs", _costs(story, limits, shown)),
        _section("losses", "Losses", _losses(story, limits, shown)),
        _section("unfinished", "Cells that did not finish", _unfinished(story, limits)),
        _section("environment", "Environment", _environment(story)),
        _section("command", "Command", [Log("", command) for command in story.commands]),
        _section("notes", "Notes", [Points(story.notes)] if story.notes else []),
        _section("reading", "How to read it", [Points(HOW_TO_READ)]),
    ]
    return [section for section in made if section.blocks]


def _section(key: str, title: str, blocks: Iterable[Block]) -> Section:
    return Section(key, title, tuple(blocks))


def _by_scene(story: Story, scene: Scene) -> list[Block]:
    """The heading of a scene, where there are several."""
    if len(story.scenes) == 1:
        return []
    return [Heading(scene_label(story, scene))]


def scene_label(story: Story, scene: Scene) -> str:
    """Name a scene; its environment is part of the name where there are several."""
    if len(story.places) == 1:
        return scene.label
    return f"{scene.label} (environment {scene.place.letter}: {scene.place.label})"


def _fixes(story: Story, limits: Limits, pictures: Sequence[Shown]) -> Iterable[Block]:
    yield from placed(pictures, "releases", 0)
    for scene in story.scenes[: limits.panels]:
        yield from _by_scene(story, scene)
        if len(story.scenes) > 1:
            yield Prose(scene.verdict.text)
        several = f", {len(scene.panels)} settings together" if len(scene.panels) > 1 else ""
        for grid in scene.grids:
            yield _grid(grid, scene, several)
        fixes = scene.verdict.fixes
        if len(fixes) > 1:
            names = [f"{fix.attention} + {fix.trainer}" for fix in fixes]
            yield Prose(f"Resolved everywhere by, the recommended first: {_some(names, 12)}.")
        if limits.folds and len(scene.panels) > 1:
            for panel in scene.panels[: limits.panels]:
                yield Fold(f"Only {panel.label}", tuple(_grid(grid, scene, "") for grid in panel.grids))
            yield from _more(len(scene.panels) - limits.panels, "setting")
    yield from _more(len(story.scenes) - limits.panels, "setting")


def _grid(grid: Grid, scene: Scene, several: str) -> Table:
    rows = [
        (Item(attention), *(from_mark(one) for one in marks))
        for attention, marks in zip(grid.attentions, grid.marks, strict=True)
    ]
    label = f", {scene.emulated}" if scene.emulated else f", on {scene.device}"
    return Table(
        title=f"{grid.padding.capitalize()} padding{label}{several}",
        columns=(Column("attention"), *(Column(trainer) for trainer in grid.trainers)),
        rows=tuple(rows),
    )


def _costs(story: Story, limits: Limits, pictures: Sequence[Shown]) -> Iterable[Block]:
    for place, scene in enumerate(story.scenes[: limits.panels]):
        timed = [(number, panel) for number, panel in enumerate(scene.panels) if panel.costs]
        if not timed:
            continue
        yield from _by_scene(story, scene)
        for number, panel in timed[: limits.panels]:
            shown: list[Block] = [*placed(pictures, "time", place, number)]
            shown += [cost_table(panel, table, story, limits, alone=len(timed) == 1) for table in panel.costs]
            if number == timed[0][0] or not limits.folds:
                yield from shown
            else:
                yield Fold(panel.label, tuple(shown))
        yield from _more(len(timed) - limits.panels, "setting")


def _losses(story: Story, limits: Limits, pictures: Sequence[Shown]) -> Iterable[Block]:
    for place, scene in enumerate(story.scenes[: limits.panels]):
        shown = [panel for panel in scene.panels if any(one.measured for one in panel.results)]
        if not shown:
            continue
        yield from _by_scene(story, scene)
        yield from _first_bad(scene)
        yield from placed(pictures, "losses", place)
        yield from placed(pictures, "spread", place)
        for number, panel in enumerate(shown[: limits.panels]):
            table = loss_table(panel, scene, limits, alone=len(shown) == 1)
            if number == 0 or not limits.folds:
                yield table
            else:
                yield Fold(panel.label, (table,))
        yield from _more(len(shown) - limits.panels, "setting")
    if any(one.measured for scene in story.scenes for one in scene.results):
        yield Prose(STOCK_PRINTS, "muted")


def _first_bad(scene: Scene) -> Iterable[Block]:
    """Say where the first non-finite value was seen, once for a scene."""
    for one in scene.results:
        if one.measured is not None and one.measured.first_nonfinite is not None:
            yield Prose(f"First seen in {name(one)}: {where(one.measured.first_nonfinite)}.")
            return


def _unfinished(story: Story, limits: Limits) -> Iterable[Block]:
    setbacks = [(one, setback) for one in story.unfinished for setback in one.setbacks]
    if setbacks:
        yield Table(
            title="",
            columns=(Column("cell"), Column("round", number=True), Column("status"), Column("why")),
            rows=tuple(
                (
                    Item(name(one, story.varying)),
                    Item(str(setback.round), "plain", float(setback.round)),
                    Item(" ".join(filter(None, (setback.status, setback.signal))), "broken"),
                    Item(setback.reason or ""),
                )
                for one, setback in setbacks[: limits.rows]
            ),
            left_out=max(0, len(setbacks) - limits.rows),
        )
    for one, setback in [pair for pair in setbacks if pair[1].log_tail][: limits.logs]:
        title = f"End of the log: {name(one, story.varying)}, {setback.status}"
        log = Log(title, setback.log_tail[-limits.log_length :])
        yield Fold(title, (log,)) if limits.folds else log
    if story.skipped:
        yield _skipped(story.skipped, story, limits)


def _skipped(skipped: Sequence[Result], story: Story, limits: Limits) -> Block:
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.reason or "no reason given", []).append(name(one, story.varying))
    rows = [
        (Item(reason), Item(str(len(cells)), "plain", float(len(cells)))) for reason, cells in reasons.items()
    ]
    return Table(
        title="Left out: these cells cannot exist here",
        columns=(Column("reason"), Column("cells", number=True)),
        rows=tuple(rows[: limits.rows]),
        left_out=max(0, len(rows) - limits.rows),
    )


def _environment(story: Story) -> Iterable[Block]:
    for place in story.places[:26]:
        title = place.label if len(story.places) == 1 else f"{place.letter}: {place.label}"
        yield Facts(title, place.facts)
    yield from _more(len(story.places) - 26, "environment")


def _more(number: int, noun: str) -> Iterable[Block]:
    if number > 0:
        yield Prose(
            f"{figures.count(number, f'more {noun}')} not shown here; the CSV and JSON formats hold all.",
            "muted",
        )


def _some(words: Sequence[str], limit: int) -> str:
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")
