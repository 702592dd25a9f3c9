"""Compares `check --level 3 --json` documents of real Macs with the emulator, for `fidelity.py --against FOLDER`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mpsdiag.emulation.selection import Emulation
from mpsdiag.errors import BadInput
from mpsdiag.escape import md_cell
from mpsdiag.probes.declaration import Finding
from mpsdiag.probes.run import run_level

MODES = ("training", "evaluation")


@dataclass
class Beside:
    """One document of a Mac compared with the emulation of its torch and macOS.

    Attributes:
        name: The document's file.
        emulation: What it was set beside; None if nothing was.
        why_not: Why nothing could be compared, empty if something was.
        agree: Ids of probes with the same status in both modes.
        apart: Probes that ran on one side only, with the other side's reason.
        differ: By probe, (statuses and words of the Mac, statuses and words of the emulation).
    """

    name: str
    emulation: Emulation | None = None
    why_not: str = ""
    agree: list[str] = field(default_factory=list)
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    differ: dict[str, tuple[str, str]] = field(default_factory=dict)


@cache
def probed(emulation: Emulation) -> dict[str, Finding]:
    """The finding of every probe of level 3 under an emulation, by id."""
    return {finding.id: finding for finding in run_level(3, "cpu", emulation)}


def read_folder(folder: Path) -> list[Beside]:
    """Compare every JSON document of a folder, at any depth, with the emulator.

    Raises:
        BadInput: The folder has no JSON document.
    """
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise BadInput(
            f"No JSON document in '{folder}'. It takes the artifacts of mps.yml: `check --level 3 --json` of Macs."
        )
    return [_read(path, path.relative_to(folder).as_posix()) for path in files]


def _read(path: Path, name: str) -> Beside:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        measured = document["emulated"] is None and document["device"].startswith("mps")
        versions, system = document["environment"]["versions"], document["environment"]["system"]
        probes = {probe["id"]: probe for probe in document["probes"]}
        reason = document["reason"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return Beside(name, why_not="not a document of `mpsdiag check --json`")
    if not measured:
        return Beside(name, why_not="not measured on MPS: an emulation, or another device")
    if not probes:
        return Beside(name, why_not=f"undecided: {reason}")
    macos = re.match(r"macOS (\d+)", system)
    try:
        emulation = Emulation(str(versions["torch"]), int(macos[1]) if macos else 0)
    except BadInput as problem:
        return Beside(name, why_not=str(problem))
    return _compare(name, probes, emulation)


def _compare(name: str, probes: dict[str, dict[str, Any]], emulation: Emulation) -> Beside:
    found = Beside(name, emulation)
    for probe, finding in probed(emulation).items():
        if probe not in probes:
            continue
        mac, emulated = probes[probe], vars(finding)
        both = (_words(mac), _words(emulated))
        pairs = [(mac[mode], emulated[mode]) for mode in MODES]
        if any(one != other and "skip" not in (one, other) for one, other in pairs):
            found.differ[probe] = both
        elif all("skip" in pair for pair in pairs) and mac["status"] != emulated["status"]:
            found.apart[probe] = both
        else:
            found.agree.append(probe)
    return found


def _words(result: dict[str, Any]) -> str:
    return f"{result['training']} / {result['evaluation']}: {result['detail']}"


def as_markdown(documents: list[Beside]) -> str:
    """A table of the documents, then every disagreement with both outputs."""
    lines = ["| document | emulated as | agree | differ | ran on one side only |", "|---|---|--:|--:|--:|"]
    for one in documents:
        if one.emulation is None:
            lines.append(f"| {md_cell(one.name, 100)} | not compared: {md_cell(one.why_not, 300)} | | | |")
            continue
        where = f"torch {one.emulation.release}, macOS {one.emulation.macos}"
        lines.append(
            f"| {md_cell(one.name, 100)} | {where} | {len(one.agree)} | {len(one.differ)} | {len(one.apart)} |"
        )
    for title, kind in (("Disagreements", "differ"), ("Ran on one side only", "apart")):
        rows = [(one.name, probe, *both) for one in documents for probe, both in sorted(getattr(one, kind).items())]
        if rows:
            lines += ["", f"## {title} (training / evaluation)", ""]
            lines += ["| document | probe | the Mac | the emulation |", "|---|---|---|---|"]
            lines += ["| " + " | ".join(md_cell(cell, 600) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
