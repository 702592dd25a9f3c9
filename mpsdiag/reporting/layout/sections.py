"""A report laid out as sections and tables, in reading order; the same for the terminal, Markdown and HTML."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from mpsdiag.benching.journal.pooling import PooledCell
from mpsdiag.benching.journal.record import Record
from mpsdiag.reporting.layout import blocks
from mpsdiag.reporting.layout.cell_tables import STOCK_PRINTS, change_blocks, cost_table, loss_table, where
from mpsdiag.reporting.story.report import Grid, Report, Scene, name
from mpsdiag.words import count

HOW_TO_READ = (
    (
        "✓ exact: finished and correct; every logit, even in fully masked rows, agrees with the float64 reference,"
        " so the loss is that of stock SDPA on the CPU."
    ),
    (
        "≈ moved: finished and correct, but the evaluation loss moved by that much: fully masked rows are filled"
        " differently, and the label of the first real token is predicted from such a row."
    ),
    (
        "✗ NaN: the evaluation loss is not finite. ✗ wrong: finite, but further from the float64 reference"
        " than twice the error of eager attention in the same dtype."
    ),
    (
        "! crashed, out of memory, timeout, error: the cell did not finish. · not run: not requested"
        " or not supported here."
    ),
    (
        "Durations are medians with a 95 % interval; ratios are to the baseline on the same padding side, median over "
        "the rounds that both ran. MAD is the median absolute deviation; p that of the Mann-Whitney test."
        " Only correct cells are ranked: fast and wrong is not a speed-up."
    ),
    "Emulated means computed by a CPU model of that release's MPS kernels: it gives verdicts, never timings.",
)


def document(report: Report, limits: blocks.Limits) -> blocks.Document:
    """Lay out a report, as much of it as the limits allow."""
    shown = list(gallery(report)) if limits.pictures else []
    parts: tuple[blocks.Part, ...] = (
        ("compared", "Compared", change_blocks(report.changes, limits) if report.changes else ()),
        ("fixes", "Which fix resolves it", _fixes(report, limits, shown)),
        ("cost", "What it costs", _costs(report, limits, shown)),
        ("losses", "Losses", _losses(report, limits, shown)),
        ("unfinished", "Cells that did not finish", _unfinished(report, limits)),
        ("environment", "Environment", _environment(report)),
        ("command", "Command", [blocks.Log("", command) for command in report.commands]),
        ("notes", "Notes", [blocks.Points(report.notes)]),
        ("reading", "How to read it", [blocks.Points(HOW_TO_READ)]),
    )
    words = {scene.verdict.word for scene in report.scenes}
    word = next((one for one in ("affected", "undecided", "not_affected") if one in words), "undecided")
    return blocks.document("mpsdiag report", report.headline, word, parts)


def _by_scene(report: Report, scene: Scene) -> list[blocks.Block]:
    """The heading of a scene if there are several, with its environment if there are several."""
    where = "" if len(report.places) == 1 else f" (environment {scene.place.letter}: {scene.place.label})"
    return [blocks.Heading(scene.label + where)] if len(report.scenes) > 1 else []


def _fixes(report: Report, limits: blocks.Limits, pictures: Sequence[blocks.Picture]) -> Iterable[blocks.Block]:
    yield from (one for one in pictures if one.name == "releases")
    for scene in report.scenes[: limits.panels]:
        yield from _by_scene(report, scene)
        if len(report.scenes) > 1:
            yield blocks.Prose(scene.verdict.text)
        several = f", {len(scene.panels)} settings together" if len(scene.panels) > 1 else ""
        for grid in scene.grids:
            yield _grid(grid, scene, several)
        fixes = scene.verdict.fixes
        if len(fixes) > 1:
            names = ", ".join(f"{fix.attention} + {fix.trainer}" for fix in fixes[:12])
            rest = f" and {len(fixes) - 12} more" if len(fixes) > 12 else ""
            yield blocks.Prose(f"Resolved everywhere by these, the recommended one first: {names}{rest}.")
        if limits.folds and len(scene.panels) > 1:
            for panel in scene.panels[: limits.panels]:
                yield blocks.Fold(f"Only {panel.label}", tuple(_grid(grid, scene, "") for grid in panel.grids))
            yield from _more(len(scene.panels) - limits.panels, "setting")
    yield from _more(len(report.scenes) - limits.panels, "setting")


def _grid(grid: Grid, scene: Scene, several: str) -> blocks.Table:
    label = f", {scene.emulated}" if scene.emulated else f", on {scene.device}"
    title = f"{grid.padding.capitalize()} padding{label}{several}"
    rows = list(zip(grid.attentions, grid.marks, strict=True))
    return blocks.table(title, ("attention", *grid.trainers), rows, lambda row: (row[0], *row[1]))


def _costs(report: Report, limits: blocks.Limits, pictures: Sequence[blocks.Picture]) -> Iterable[blocks.Block]:
    for place, scene in enumerate(report.scenes[: limits.panels]):
        timed = [(number, panel) for number, panel in enumerate(scene.panels) if panel.costs]
        if not timed:
            continue
        yield from _by_scene(report, scene)
        for number, panel in timed[: limits.panels]:
            shown: list[blocks.Block] = [*_placed(pictures, "time", place, number)]
            shown += [cost_table(panel, table, report, limits, alone=len(timed) == 1) for table in panel.costs]
            if number == timed[0][0] or not limits.folds:
                yield from shown
            else:
                yield blocks.Fold(panel.label, tuple(shown))
        yield from _more(len(timed) - limits.panels, "setting")


def _losses(report: Report, limits: blocks.Limits, pictures: Sequence[blocks.Picture]) -> Iterable[blocks.Block]:
    for place, scene in enumerate(report.scenes[: limits.panels]):
        shown = [panel for panel in scene.panels if any(one.measured for one in panel.results)]
        if not shown:
            continue
        yield from _by_scene(report, scene)
        yield from _first_bad(scene)
        yield from _placed(pictures, "losses", place)
        yield from _placed(pictures, "spread", place)
        yield from _placed(pictures, "padding", place)
        for number, panel in enumerate(shown[: limits.panels]):
            table = loss_table(panel, scene, limits, alone=len(shown) == 1)
            if number == 0 or not limits.folds:
                yield table
            else:
                yield blocks.Fold(panel.label, (table,))
        yield from _first_label(report, scene)
        yield from _more(len(shown) - limits.panels, "setting")
    if any(one.measured for scene in report.scenes for one in scene.results):
        yield blocks.Prose(STOCK_PRINTS, "muted")


def _first_bad(scene: Scene) -> Iterable[blocks.Block]:
    """Where the first non-finite value was seen, once for each scene."""
    for one in scene.results:
        if one.measured is not None and one.measured.first_nonfinite is not None:
            yield blocks.Prose(f"First seen in {name(one)}: {where(one.measured.first_nonfinite)}.")
            return


def _first_label(report: Report, scene: Scene) -> Iterable[blocks.Block]:
    """The effect of labels predicted at padding on the loss, once for each scene: in the first correct cell."""
    for one in sorted(scene.results, key=lambda one: not one.correct):
        compared = None if one.measured is None else one.measured.invariance
        if compared is not None and compared.first_label is not None:
            yield blocks.Prose(f"First label, in {name(one, report.varying)}: {compared.first_label.sentence}.")
            return


def _unfinished(report: Report, limits: blocks.Limits) -> Iterable[blocks.Block]:
    setbacks = [(one, setback) for one in report.unfinished for setback in one.setbacks]
    if setbacks:
        heads = blocks.columns("cell", "round", "status", "why", numbers=["round"])
        yield blocks.table("", heads, setbacks, partial(_setback, report), limits)
    for one, setback in [pair for pair in setbacks if pair[1].log_tail][: limits.logs]:
        title = f"End of the log: {name(one, report.varying)}, {setback.status}"
        log = blocks.Log(title, setback.log_tail[-limits.log_length :])
        yield blocks.Fold(title, (log,)) if limits.folds else log
    if report.skipped:
        yield _skipped(report.skipped, limits)


def _setback(report: Report, pair: tuple[PooledCell, Record]) -> Iterable[blocks.Cell]:
    one, setback = pair
    yield name(one, report.varying)
    yield blocks.Entry(str(setback.round), "plain", float(setback.round))
    yield blocks.Entry(" ".join(filter(None, (setback.status, setback.signal))), "broken")
    yield setback.reason or ""


def _skipped(skipped: Sequence[PooledCell], limits: blocks.Limits) -> blocks.Block:
    reasons = Counter(one.reason or "no reason given" for one in skipped)
    heads = blocks.columns("reason", "cells", numbers=["cells"])
    rows = [(reason, blocks.Entry(str(number), "plain", float(number))) for reason, number in reasons.items()]
    return blocks.table("Left out: these cells cannot run here", heads, rows, iter, limits)


def _environment(report: Report) -> Iterable[blocks.Block]:
    for place in report.places[:26]:
        title = place.label if len(report.places) == 1 else f"{place.letter}: {place.label}"
        yield blocks.facts(title, place.facts)
    yield from _more(len(report.places) - 26, "environment")


def _more(number: int, noun: str) -> Iterable[blocks.Block]:
    if number > 0:
        yield blocks.Prose(
            f"{count(number, f'more {noun}')} not shown here; the CSV and JSON formats have all of them.", "muted"
        )


# Each drawing takes a tenth of a second and space on the page: the first ones of each kind are enough.
MOST_SCENES = 3
MOST_PANELS = 3


def _placed(shown: Iterable[blocks.Picture], kind: str, scene: int, panel: int = 0) -> list[blocks.Picture]:
    """Pick the picture of one place."""
    return [one for one in shown if one.name == f"{kind}-{scene + 1}-{panel + 1}"]


def gallery(report: Report) -> Iterator[blocks.Picture]:
    """The pictures of a report, in the order of the report."""
    if 1 < len(report.scenes) <= 40:
        alt = f"Map of {len(report.scenes)} settings by attention mode: which are correct, NaN or wrong."
        title = "standard trainer, left padding: ✓ correct  ≈ loss moved  ✗ NaN or wrong  ! failed"
        yield blocks.Picture("releases", alt, title, report)
    for number, scene in enumerate(report.scenes[:MOST_SCENES]):
        for place, panel in enumerate(scene.panels[:MOST_PANELS]):
            timed = next((table for table in panel.costs if any(row.eval_step for row in table.rows)), None)
            if timed is not None:
                on = " and ".join(timed.timed_on) + (" without emulation" if timed.emulated else "")
                title = f"{panel.label}, {timed.padding} padding, timed on {on}"
                alt = f"Evaluation step of {count(len(timed.rows), 'cell')} with intervals: {title}."
                yield blocks.Picture(f"time-{number + 1}-{place + 1}", alt, title, timed)
            label = scene.emulated or f"on {scene.device}"
            if place == 0 and any(one.measured and one.measured.eval_losses for one in panel.results):
                title = f"{panel.label}, {label}"
                alt = f"Training and evaluation losses, the first NaN marked: {title}."
                yield blocks.Picture(f"losses-{number + 1}-1", alt, title, panel)
            sick = next(
                (one for one in panel.results if one.measured and any(map(any, one.measured.nonfinite_rows))), None
            )
            if place == 0 and sick is not None:
                title = f"{name(sick)}, {panel.label}, {label}"
                alt = f"Layer by position: how many sequences of the first bad batch are not finite, {title}."
                yield blocks.Picture(f"spread-{number + 1}-1", alt, title, sick)
        compared = [one for one in scene.results if one.measured and one.measured.by_position]
        # The first that varies, if one does.
        for one in sorted(compared, key=lambda one: not one.varies)[:1]:
            title = f"{name(one)}, {one.cell.model}, {one.cell.dtype}, {scene.emulated or f'on {scene.device}'}"
            alt = f"Position by position: how far padded batches are from each sequence alone, {title}."
            yield blocks.Picture(f"padding-{number + 1}-1", alt, title, one)
