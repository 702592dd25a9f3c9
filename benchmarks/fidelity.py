"""Compare the emulation with published observations of Macs and with the shipped kernels, and write docs/fidelity.md.

    python benchmarks/fidelity.py [--output docs/fidelity.md] [--check]
    python benchmarks/fidelity.py --against FOLDER

With --check nothing is written; the exit code is 1 if the file would change, a match or an agreement is lost.
With --against the `check --level 3 --json` documents of real Macs in a folder are compared with the emulator, as
Markdown: agreement per probe, and every disagreement with both outputs. The exit code is 1 if a probe disagrees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel_runs
import mac_bench
import mac_probes
import mac_runs  # noqa: F401 - registers the runs

from mpsdiag.emulation.mode import emulated
from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput
from mpsdiag.escape import md_cell
from mpsdiag.serialization import write_atomically

DATA = Path(__file__).with_name("mac_observations.json")
BELOW = "error below"
KERNELS = {
    "vector_1pass": "vector, one pass (G4)",
    "vector_2pass": "vector, two passes (G5)",
    "prefill": "prefill (G6)",
    "mpp": "prefill on MPP (G7)",
}
STATES = {
    "matched": "same outcome, and every printed figure within its printed digits",
    "outcome only": "same outcome; a figure cannot be compared or differs, for the reason given",
    "differs": "a different outcome from the Mac, or a different figure without a known reason",
    "not run": "cannot be run again here, for the reason given",
}


@dataclass(frozen=True)
class Compared:
    """One observation and its re-runs.

    Attributes:
        observation: The entry of the file.
        where: Which emulation, in words.
        runs: What each release gave.
        state: One of `STATES`.
        remark: What was assumed, or why it is not matched or not run.
    """

    observation: dict[str, Any]
    where: str
    runs: tuple[mac_bench.Run, ...]
    state: str
    remark: str


def observations() -> list[dict[str, Any]]:
    """All observations, in the order of the file."""
    found: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def emulations(observation: dict[str, Any]) -> list[Emulation]:
    """The releases and the macOS to emulate: those stated, or those assumed."""
    assumed = observation.get("assumed")
    if assumed:
        defects = tuple(assumed["defects"]) if "defects" in assumed else None
        return [Emulation(release, assumed["macos"], defects) for release in assumed["releases"]]
    return [Emulation(".".join(observation["release"].split(".")[:2]), int(observation["macos"].split(".")[0]))]


def compare(observation: dict[str, Any]) -> Compared:
    """Run one observation again and compare it with what was printed."""
    remark = "; ".join(
        text
        for text in (
            observation.get("assumed", {}).get("why", ""),
            observation.get("not_matched", ""),
            observation.get("not_rerun", ""),
        )
        if text
    )
    if "not_rerun" in observation:
        return Compared(observation, "", (), "not run", remark)
    chosen = emulations(observation)
    runs = []
    for emulation in chosen:
        with emulated(emulation):
            runs.append(mac_bench.RUNS[observation["id"]]())
    names = ", ".join(emulation.release for emulation in chosen)
    return Compared(observation, f"{names}, macOS {chosen[0].macos}", tuple(runs), _state(observation, runs), remark)


def _state(observation: dict[str, Any], runs: Sequence[mac_bench.Run]) -> str:
    if any(run.outcome != observation["outcome"] for run in runs):
        return "differs"
    figures = observation.get("figures", {})
    exact = all(figure_agrees(name, printed, run) for run in runs for name, printed in figures.items())
    if "not_matched" in observation:
        return "outcome only"
    return "matched" if exact else "differs"


def figure_agrees(name: str, printed: str, run: mac_bench.Run) -> bool:
    """Whether a run has the printed figure, or keeps the printed bound."""
    if name == BELOW:
        return bool(run.figures[name] < float(printed))
    return mac_bench.agrees(printed, run.figures[name])


def against_kernels() -> tuple[list[str], int]:
    """The section on the shipped kernels, and how many of their recorded runs do not agree."""
    groups: dict[tuple[str, str, str], list[kernel_runs.Agreement]] = {}
    for run, want in kernel_runs.recorded():
        groups.setdefault((run["release"], run["path"], run["dtype"]), []).append(kernel_runs.compare(run, want))
    number = sum(len(runs) for runs in groups.values())
    differ = sum(not one.agrees for runs in groups.values() for one in runs)
    lines = [
        "## Against the shipped kernels",
        "",
        "The macOS wheels of torch contain the compiled Metal kernels. Their code was executed on a CPU, instruction",
        "by instruction, with NaN behind every buffer, and the results were recorded (2026-11-26). The recording is",
        "`tests/data/kernel_runs.xz`; `benchmarks/kernel_runs.py` recreates the inputs and compares.",
        "",
        f"**{number - differ} of {number} runs agree**: NaN, infinities and rows of zeros in the same places, float32",
        "within 1e-5 of max|V|, float16 within 3e-3 and bfloat16 within 2e-2 with at least 97 % of the values equal",
        "bit for bit. Largest errors are in units of max|V|; float32 is recorded to 18 bits, so bits are not compared.",
        "",
        "| torch | kernel | dtype | runs | patterns agree | equal bits | largest error | agree |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for (release, kernel, dtype), runs in groups.items():
        equal = "" if dtype == "f32" else f"{100 * sum(one.equal for one in runs) / len(runs):.2f} %"
        lines.append(
            f"| {release} | {KERNELS[kernel]} | {dtype} | {len(runs)} | {sum(one.patterns for one in runs)} | {equal} "
            f"| {max(one.error for one in runs):.0e} | {sum(one.agrees for one in runs)} |"
        )
    lines += [
        "",
        "Executed: the vector kernels of 2.8 to 2.14, the prefill kernels of 2.13 and 2.14, and 2.14's on Metal",
        "Performance Primitives (MPP); 2.9.1, 2.12.1 and 2.14.1 contain the same code. The buffers were apart, so",
        "SDPA004, which needs two adjacent ones, is left out here.",
        "",
        "Not executed: the general path, Apple's closed MPSGraph, where the NaN of 2.5 to 2.8 comes from (its model",
        "rests on torch's sources, the host code of the wheels and the threads below); 2.15; Apple's hardware,",
        "which has its own `exp`, order of sums and order inside the matrix units.",
        "",
    ]
    return lines, differ


def as_markdown(compared: Sequence[Compared], kernels: Sequence[str]) -> str:
    """The document."""
    counts = Counter(one.state for one in compared)
    lines = [
        "# The emulator compared with real Macs and with the shipped kernels",
        "",
        *kernels,
        "## Against published runs on real Macs",
        "",
        "We ran nothing here on a Mac. Owners of Macs published what they saw; each observation whose",
        "inputs are clear enough is repeated on a CPU under the emulation of its release and macOS, with that",
        "release's defects. A figure matches if it equals the printed one when rounded to the printed digits.",
        "",
        "Made by `python benchmarks/fidelity.py` from `benchmarks/mac_observations.json`. Where a Mac disagrees,",
        "the Mac is right: please open an issue with the output of `mpsdiag check --level 3 --markdown`.",
        "",
        *(f"- {counts[state]} {state}: {meaning}." for state, meaning in STATES.items()),
        "",
        "| observation | thread | torch, macOS | what was run | the Mac | emulated as | the emulation | state |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in compared:
        seen = one.observation
        said = "; ".join(dict.fromkeys(run.said for run in one.runs))
        cells = [
            seen["id"],
            seen["thread"],
            f"{seen['release'] or 'not given'}, {seen['macos'] or 'not given'}",
            seen["setup"],
            seen["printed"],
            one.where or "–",
            said or "–",
            one.state,
        ]
        lines.append("| " + " | ".join(md_cell(cell, 400) for cell in cells) + " |")
    lines += ["", "## What was assumed, and why some are not matched or not run", ""]
    lines += [f"- **{one.observation['id']}** ({one.state}): {one.remark}." for one in compared if one.remark]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the document, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/fidelity.md"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--against", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    if chosen.against is not None:
        try:
            documents = mac_probes.read_folder(chosen.against)
        except BadInput as problem:
            print(problem, file=sys.stderr)
            sys.exit(2)
        print(mac_probes.as_markdown(documents), end="")
        sys.exit(any(one.differ for one in documents))
    compared = [compare(observation) for observation in observations()]
    for one in compared:
        print(f"{one.state:13} {one.observation['id']}", file=sys.stderr)
    kernels, differ = against_kernels()
    print(f"{differ} runs of the shipped kernels differ", file=sys.stderr)
    text = as_markdown(compared, kernels)
    lost = [one.observation["id"] for one in compared if one.state == "differs"]
    if chosen.check:
        sys.exit(1 if lost or differ or chosen.output.read_text(encoding="utf-8") != text else 0)
    write_atomically(chosen.output, text)
    sys.exit(1 if lost or differ else 0)


if __name__ == "__main__":
    main()
