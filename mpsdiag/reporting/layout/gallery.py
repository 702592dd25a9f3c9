"""Which pictures a report has, what they are called and what they show: the tables place them, the plots draw them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mpsdiag.reporting.layout.blocks import Picture
from mpsdiag.reporting.story.pooling import PooledCell
from mpsdiag.reporting.story.ranking import CostTable
from mpsdiag.reporting.story.report import Panel, Report, name
from mpsdiag.words import count

# Each drawing takes a tenth of a second and its place on the page: the first ones of each kind are enough.
MOST_SCENES = 3
MOST_PANELS = 3


@dataclass(frozen=True)
class Shown:
    """One picture; which of `table`, `panel`, `result` it is drawn from depends on its kind."""

    kind: Literal["time", "losses", "spread", "releases"]
    scene: int
    panel_number: int
    title: str
    alt: str
    table: CostTable | None = None
    panel: Panel | None = None
    result: PooledCell | None = None

    @property
    def name(self) -> str:
        """Its key and the stem of its files."""
        return (
            "releases" if self.kind == "releases" else f"{self.kind}-{self.scene + 1}-{self.panel_number + 1}"
        )

    @property
    def block(self) -> Picture:
        """Its place in a section."""
        return Picture(self.name, self.alt)


def gallery(report: Report) -> list[Shown]:
    """List the pictures of a report, in the order of the report."""
    return [*_releases(report), *_by_panel(report)]


def placed(shown: Iterable[Shown], kind: str, scene: int, panel: int = 0) -> list[Picture]:
    """Pick the pictures of one place."""
    return [one.block for one in shown if (one.kind, one.scene, one.panel_number) == (kind, scene, panel)]


def _releases(report: Report) -> Iterable[Shown]:
    if 1 < len(report.scenes) <= 40:
        alt = f"Map of {len(report.scenes)} settings by attention mode: which come out right, NaN or wrong."
        yield Shown("releases", 0, 0, "", alt)


def _by_panel(report: Report) -> Iterable[Shown]:
    for number, scene in enumerate(report.scenes[:MOST_SCENES]):
        for place, panel in enumerate(scene.panels[:MOST_PANELS]):
            timed = next((table for table in panel.costs if any(row.eval_step for row in table.rows)), None)
            if timed is not None:
                on = " and ".join(timed.timed_on) + (" without emulation" if timed.emulated else "")
                title = f"{panel.label}, {timed.padding} padding, timed on {on}"
                alt = f"Evaluation step of {count(len(timed.rows), 'cell')} with intervals: {title}."
                yield Shown("time", number, place, title, alt, table=timed)
            label = scene.emulated or f"on {scene.device}"
            if place == 0 and any(one.measured and one.measured.eval_losses for one in panel.results):
                title = f"{panel.label}, {label}"
                alt = f"Training and evaluation losses, the first NaN marked: {title}."
                yield Shown("losses", number, place, title, alt, panel=panel)
            sick = next(
                (one for one in panel.results if one.measured and any(map(any, one.measured.nonfinite_rows))),
                None,
            )
            if place == 0 and sick is not None:
                title = f"{name(sick)}, {panel.label}, {label}"
                alt = f"Layer by position: how many sequences of the first bad batch are not finite, {title}."
                yield Shown("spread", number, place, title, alt, result=sick)
