"""Run the catalogue and the sweep under the emulation of every release, and write the table release x defect.

    python benchmarks/defect_table.py [--output reports/defects] [--macos 15] [--no-sweep] [RELEASE ...]

Everything in the table is emulated. A frame marks what is predicted for that release.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from matplotlib.patches import Rectangle

from mpsdiag.emulation.releases import RELEASES
from mpsdiag.emulation.selection import Emulation
from mpsdiag.escape import md_cell, one_line
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.known import CATALOGUE
from mpsdiag.probes.run import predicted, run_level, run_probe
from mpsdiag.reporting.pictures.drawing import Theme, draw, figure
from mpsdiag.serialization import write_atomically

Table = Mapping[str, Sequence[Finding]]
COLUMNS = (
    "release",
    "macos",
    "id",
    "title",
    "status",
    "training",
    "evaluation",
    "predicted",
    "cases",
    "seen",
    "detail",
)
OUTCOMES = {
    "fails, training too": ("#b3131f", "B"),
    "fails in evaluation": ("#e8786f", "E"),
    "passes": ("#d9efdc", ""),
    "skipped": ("#eceff2", "–"),
    "broke": ("#6e3fc7", "!"),
}

LEGEND = (
    "**B** fails in training and evaluation, **E** in evaluation (`no_grad`) only; a frame in the picture marks a "
    "predicted failure; nothing or a dot passes, `–` is skipped, `!` broke."
)


def outcome(finding: Finding) -> str:
    """One of the outcomes of the legend."""
    if finding.status == "fail":
        return "fails, training too" if finding.training == "fail" else "fails in evaluation"
    return {"pass": "passes", "skip": "skipped", "error": "broke"}[finding.status]


def run(releases: Sequence[str], macos: int, *, sweep: bool) -> dict[str, list[Finding]]:
    """Run the catalogue under each release, with the sweep or without it."""
    table = {}
    for release in releases:
        begin = time.perf_counter()
        emulation = Emulation(release, macos)
        if sweep:
            table[release] = run_level(3, "cpu", emulation)
        else:
            table[release] = [run_probe(name, device="cpu", emulation=emulation) for name in CATALOGUE]
        table[release] = [
            finding
            if macos_of(finding.id, macos) == macos
            else run_probe(finding.id, device="cpu", emulation=Emulation(release, macos_of(finding.id, macos)))
            for finding in table[release]
        ]
        failed = [finding.id for finding in table[release] if finding.status == "fail"]
        print(f"{release}: {time.perf_counter() - begin:.0f} s, fails: {', '.join(failed)}", file=sys.stderr)
    return table


def macos_of(name: str, macos: int) -> int:
    """The macOS on which a probe is run: the table's, or the nearest on which its defect is known."""
    probe = CATALOGUE.get(name)
    return macos if probe is None else max(probe.first_macos or 0, min(macos, probe.last_macos or macos))


def macos_in_words(name: str) -> str:
    """The macOS versions on which a defect is known, if that matters."""
    probe = CATALOGUE.get(name)
    if probe is None or not (probe.first_macos or probe.last_macos):
        return ""
    return f"{probe.first_macos} and later" if probe.first_macos else f"up to {probe.last_macos}"


def expected_to_fail(finding: Finding, release: str, macos: int) -> bool:
    """Whether the facts predict a failure of this cell."""
    return finding.id in predicted(release, macos_of(finding.id, macos))


def differences(table: Table, macos: int) -> list[str]:
    """Sentences about the cells where the run and the prediction differ; a skip is named as such."""
    where: dict[tuple[str, str, str, str], list[str]] = {}
    for release, findings in table.items():
        for finding in findings:
            expected = expected_to_fail(finding, release, macos)
            if (finding.status == "fail") != expected:
                should = "should fail" if expected else "should not fail"
                where.setdefault((finding.id, should, finding.status, finding.detail), []).append(release)
    return [
        f"{name} {should} under {', '.join(releases)} and is `{status}`: {detail}."
        for (name, should, status, detail), releases in where.items()
    ]


def as_csv(table: Table, macos: int) -> str:
    """One line for a release and a probe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for release, findings in table.items():
        for finding in findings:
            row: dict[str, Any] = vars(finding) | {"release": release, "macos": macos_of(finding.id, macos)}
            row["predicted"] = "fail" if expected_to_fail(finding, release, macos) else ""
            writer.writerow([row[column] for column in COLUMNS])
    return stream.getvalue()


def read_csv(path: Path) -> tuple[Table, int]:
    """The table that `as_csv` wrote, and its macOS."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows: list[Any] = [SimpleNamespace(**row) for row in csv.DictReader(stream)]
    table: dict[str, list[Finding]] = {}
    for row in rows:
        table.setdefault(row.release, []).append(row)
    return table, int(Counter(row.macos for row in rows).most_common(1)[0][0])


def as_markdown(table: Table, macos: int, command: str) -> str:
    """The table for people, with the skipped probes and the differences between prediction and run."""
    releases = list(table)
    by_id = {release: {finding.id: finding for finding in findings} for release, findings in table.items()}
    ids = list(by_id[releases[0]])
    lines = [
        "# Which release has which defect",
        "",
        f"Emulated MPS of torch {releases[0]} to {releases[-1]}, run on a CPU: nothing here was measured on a Mac.",
        "Each cell is a run of the probe, including the sweep, under the emulation of that release with all its known",
        "defects.",
        "",
        f"The cells hold for macOS {macos}. If the column names other versions, the defect is known there only and its",
        "row was run on the nearest of them: defects of Apple's graph belong to a torch release and a macOS version.",
        "",
        f"Made by `{command}`. The numbers are in `defects.csv`.",
        "",
        "![release x defect](defects.svg)",
        "",
        LEGEND,
        "",
        "| probe | what | macOS | " + " | ".join(releases) + " |",
        "|---|---|---|" + ":-:|" * len(releases),
    ]
    for name in ids:
        marks = [OUTCOMES[outcome(by_id[release][name])][1] or "·" for release in releases]
        lines.append(
            f"| {name} | {md_cell(by_id[releases[0]][name].title)} | {macos_in_words(name)} | "
            + " | ".join(marks)
            + " |"
        )
    lines += ["", "## Skipped everywhere, and why", ""]
    for name in ids:
        if all(by_id[release][name].status == "skip" for release in releases):
            lines.append(f"- {name}: {by_id[releases[-1]][name].detail}.")
    lines += ["", "## Where the run and the prediction differ", ""]
    lines += [f"- {sentence}" for sentence in differences(table, macos)] or ["Nowhere."]
    return "\n".join(lines) + "\n"


def as_svg(table: Table, macos: int) -> str:
    """The heat-map: one row a probe, one column a release."""
    releases = list(table)
    ids = [finding.id for finding in table[releases[0]]]

    def make(theme: Theme) -> Any:
        made, axes = figure(theme, "", 11.5, 0.29 * len(ids) + 1.6)
        for x, release in enumerate(releases):
            for y, finding in enumerate(table[release]):
                colour, mark = OUTCOMES[outcome(finding)]
                axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, color=colour, linewidth=0))
                dark = finding.status in {"fail", "error"} and colour != OUTCOMES["fails in evaluation"][0]
                axes.text(x, y, mark, ha="center", va="center", size=8, color="white" if dark else theme.text)
                if expected_to_fail(finding, release, macos):
                    frame = Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, fill=False, edgecolor=theme.text, linewidth=1)
                    axes.add_patch(frame)
        axes.set_xlim(-0.55, len(releases) - 0.45)
        axes.set_ylim(len(ids) - 0.45, -0.55)
        axes.set_xticks(range(len(releases)), releases)
        axes.xaxis.tick_top()
        titles = [f"{finding.id}  {one_line(finding.title, 84)}" for finding in table[releases[0]]]
        axes.set_yticks(range(len(ids)), titles, size=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(f"Emulated MPS, macOS {macos} or as the table says: torch release x known defect", pad=24)
        handles = [
            Rectangle((0, 0), 1, 1, color=colour, label=f"{mark}  {words}".strip())
            for words, (colour, mark) in OUTCOMES.items()
        ]
        handles.append(Rectangle((0, 0), 1, 1, fill=False, edgecolor=theme.text, label="predicted to fail"))
        made.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
        return made

    return draw(make).light


def main() -> None:
    """Run, and write README.md, defects.csv and defects.svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", default=list(RELEASES))
    parser.add_argument("--output", type=Path, default=Path("reports/defects"))
    parser.add_argument("--macos", type=int, default=15)
    parser.add_argument("--no-sweep", action="store_true")
    chosen = parser.parse_args()
    table = run(chosen.releases, chosen.macos, sweep=not chosen.no_sweep)
    command = " ".join(["python benchmarks/defect_table.py", *sys.argv[1:]])
    write_atomically(chosen.output / "README.md", as_markdown(table, chosen.macos, command))
    write_atomically(chosen.output / "defects.csv", as_csv(table, chosen.macos))
    write_atomically(chosen.output / "defects.svg", as_svg(table, chosen.macos))


if __name__ == "__main__":
    main()
