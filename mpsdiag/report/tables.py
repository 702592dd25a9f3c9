"""A story laid out as sections and tables, in reading order; the same for the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mpsdiag.report import figures
from mpsdiag.report.blocks import (
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
    without_empty,
)
from mpsdiag.report.cost import CostRow, CostTable, Estimate
from mpsdiag.report.gallery import Shown, gallery, placed
from mpsdiag.report.marks import Tone, mark, severity
from mpsdiag.report.pool import Result
from mpsdiag.report.story import Grid, Panel, Scene, Story, name

HOW_TO_READ = (
    "✓ exact: finished, right, and the evaluation loss equals that of stock SDPA on the CPU to the last bit.",
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
        "Durations are medians with a 95 % interval; ratios are to the baseline on the same padding side."
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
    return f"{scene.label} (environment {letter(scene.place.number)}: {scene.place.label})"


def letter(number: int) -> str:
    """Name of the n-th environment: A, B, ... Z, 27, 28, ..."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


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
        (Item(attention), *(from_mark(one, severity_of(one.text)) for one in marks))
        for attention, marks in zip(grid.attentions, grid.marks, strict=True)
    ]
    label = f", {scene.emulated}" if scene.emulated else f", on {scene.device}"
    return Table(
        title=f"{grid.padding.capitalize()} padding{label}{several}",
        columns=(Column("attention"), *(Column(trainer) for trainer in grid.trainers)),
        rows=tuple(rows),
    )


def severity_of(text: str) -> float:
    """Sort key of a mark: the good ones first."""
    order = (
        "exact",
        "correct",
        "moved",
        "interrupted",
        "not run",
        "error",
        "timeout",
        "out",
        "crashed",
        "wrong",
        "NaN",
    )
    return float(next((number for number, word in enumerate(order) if text.startswith(word)), len(order)))


def _costs(story: Story, limits: Limits, pictures: Sequence[Shown]) -> Iterable[Block]:
    for place, scene in enumerate(story.scenes[: limits.panels]):
        timed = [(number, panel) for number, panel in enumerate(scene.panels) if panel.costs]
        if not timed:
            continue
        yield from _by_scene(story, scene)
        for number, panel in timed[: limits.panels]:
            shown: list[Block] = [*placed(pictures, "time", place, number)]
            shown += [_cost(panel, table, story, limits, alone=len(timed) == 1) for table in panel.costs]
            if number == timed[0][0] or not limits.folds:
                yield from shown
            else:
                yield Fold(panel.label, tuple(shown))
        yield from _more(len(timed) - limits.panels, "setting")


def _cost(panel: Panel, table: CostTable, story: Story, limits: Limits, *, alone: bool) -> Table:
    where = f"timed on {' and '.join(table.timed_on)}" + (" without emulation" if table.emulated else "")
    notes = []
    if table.baseline_mark is None:
        notes.append(f"The baseline ({story.baseline} + standard) was not timed here: no ratios.")
    elif table.baseline_mark.tone not in {"good", "moved"}:
        notes.append(
            f"The baseline itself came out {table.baseline_mark.text}: its time is a reference, not a goal."
        )
    if any(row.eval_step and row.eval_step.noisy for row in table.rows):
        notes.append("~ noisy: the middle half of the samples spreads over more than 10 % of the median.")
    label = "" if alone else f", {panel.label}"
    made = Table(
        title=f"{table.padding.capitalize()} padding{label}, {where}",
        columns=(
            Column("#", number=True),
            Column("attention + trainer"),
            Column("result"),
            Column("eval step", number=True),
            Column("eval to baseline", number=True),
            Column("train step", number=True),
            Column("train to baseline", number=True, minor=True),
            Column("tokens/s", number=True),
            Column("memory", number=True),
            Column("n", number=True, minor=True),
        ),
        rows=tuple(_cost_row(row) for row in table.rows[: limits.rows]),
        note=" ".join(notes),
        left_out=max(0, len(table.rows) - limits.rows),
    )
    return without_empty(made)


def _cost_row(row: CostRow) -> tuple[Item, ...]:
    cell = row.result.cell
    tone: Tone = "plain" if row.rank else "muted"
    return (
        Item(str(row.rank) if row.rank else figures.NOTHING, tone, row.rank or math.inf),
        Item(f"{cell.attention} + {cell.trainer}", tone),
        from_mark(row.mark, severity_of(row.mark.text)),
        _duration(row.eval_step, muted=not row.rank),
        _ratio(row.eval_ratio, row),
        _duration(row.train_step, muted=not row.rank),
        _ratio(row.train_ratio, row),
        Item(figures.rate(row.tokens_per_second), tone, row.tokens_per_second or -1.0),
        Item(figures.memory(row.result.peak_memory), tone, float(row.result.peak_memory or -1)),
        Item(str(row.eval_step.n if row.eval_step else row.train_step.n if row.train_step else 0), tone),
    )


def _duration(estimate: Estimate | None, *, muted: bool) -> Item:
    if estimate is None:
        return Item(figures.NOTHING, "muted", math.inf)
    noisy = " ~" if estimate.noisy else ""
    return Item(
        figures.interval(estimate.value, estimate.low, estimate.high) + noisy,
        "muted" if muted else "plain",
        estimate.value,
        short=figures.seconds(estimate.value) + noisy,
    )


def _ratio(estimate: Estimate | None, row: CostRow) -> Item:
    """A ratio is a claim about a fix: cells that are not right make none, except the baseline, which is 1."""
    if row.baseline:
        return Item("baseline", "muted", 1.0)
    if estimate is None or row.rank is None:
        return Item(figures.NOTHING, "muted", math.inf)
    return Item(figures.ratio(estimate.value, estimate.low, estimate.high), "plain", estimate.value)


def _losses(story: Story, limits: Limits, pictures: Sequence[Shown]) -> Iterable[Block]:
    for place, scene in enumerate(story.scenes[: limits.panels]):
        shown = [panel for panel in scene.panels if any(one.measured for one in panel.results)]
        if not shown:
            continue
        yield from _by_scene(story, scene)
        yield from placed(pictures, "losses", place)
        yield from placed(pictures, "spread", place)
        for number, panel in enumerate(shown[: limits.panels]):
            table = _loss_table(panel, scene, limits, alone=len(shown) == 1)
            if number == 0 or not limits.folds:
                yield table
            else:
                yield Fold(panel.label, (table,))
        yield from _more(len(shown) - limits.panels, "setting")


def _loss_table(panel: Panel, scene: Scene, limits: Limits, *, alone: bool) -> Table:
    results = sorted(
        (one for one in panel.results if one.measured),
        key=lambda one: (one.cell.padding, severity(one.status)),
    )
    title = [] if alone else [panel.label]
    title.append(scene.emulated or f"on {scene.device}")
    return Table(
        title=", ".join(title).capitalize() if alone and scene.emulated else ", ".join(title),
        columns=(
            Column("padding"),
            Column("attention + trainer"),
            Column("result"),
            Column("train loss", number=True),
            Column("eval loss", number=True),
            Column("stock prints", number=True),
            Column("bad batches", number=True),
            Column("dead rows", number=True),
            Column("where, or how far off", minor=True),
        ),
        rows=tuple(_loss_row(one) for one in results[: limits.rows]),
        note="stock prints: the eval loss that transformers' own Trainer would have shown with its default"
        " logging_nan_inf_filter, which leaves non-finite losses out of the mean.",
        left_out=max(0, len(results) - limits.rows),
    )


def _loss_row(result: Result) -> tuple[Item, ...]:
    measured = result.measured
    if measured is None:
        raise ValueError("a result without measurements has no losses")
    train = measured.train_losses
    batches = len(measured.eval_losses)
    hidden = (
        measured.stock_eval_loss is not None
        and math.isfinite(measured.stock_eval_loss)
        and measured.eval_loss is not None
        and not math.isfinite(measured.eval_loss)
    )
    bad = measured.nonfinite_batches
    return (
        Item(result.cell.padding),
        Item(f"{result.cell.attention} + {result.cell.trainer}"),
        from_mark(one := mark([result]), severity_of(one.text)),
        _loss(train[-1] if train else None),
        _loss(measured.eval_loss),
        Item(
            figures.loss(measured.stock_eval_loss) + (" (hides it)" if hidden else ""),
            "bad" if hidden else "plain",
            _finite(measured.stock_eval_loss),
        ),
        Item(f"{bad} of {batches}", "bad" if bad else "plain", float(bad)),
        Item(f"{measured.dead_rows:,}", "plain", float(measured.dead_rows)),
        Item(_remark(result)),
    )


def _loss(value: float | None) -> Item:
    finite = value is None or math.isfinite(value)
    return Item(figures.loss(value), "plain" if finite else "bad", _finite(value))


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.inf


def _remark(result: Result) -> str:
    measured = result.measured
    if measured is None:
        return ""
    first = measured.first_nonfinite
    if first is not None:
        layer = "" if first.layer is None else f"layer {first.layer}, "
        return f"batch {first.batch}, {layer}{first.module}: {first.operation}"
    if result.status == "wrong" and measured.max_abs_logit_diff is not None and measured.bound is not None:
        return f"logits off by {measured.max_abs_logit_diff:.2g}, bound {measured.bound:.2g}"
    return result.reason or ""


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
        title = place.label if len(story.places) == 1 else f"{letter(place.number)}: {place.label}"
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
