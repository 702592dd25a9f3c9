"""The catalogue of probes as a table: what `mpsdiag check --list` prints. No torch is loaded for it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpsdiag.probes import CATALOGUE
from mpsdiag.serialization import dumps


def show_catalogue(*, as_json: bool) -> None:
    """Print every probe: id, level, whom it hits, in which torch releases, and what the user sees."""
    if as_json:
        rows = [
            {
                "id": probe.id,
                "title": probe.title,
                "symptom": probe.symptom,
                "level": probe.level,
                "hits": probe.hits,
                "releases": list(probe.releases),
                "fixed": probe.fixed,
                "isolated": probe.isolated,
                "upstream": list(probe.upstream),
                "remedy": {"text": probe.remedy.text, "commands": list(probe.remedy.commands)},
            }
            for probe in CATALOGUE.values()
        ]
        sys.stdout.write(dumps({"schema": 1, "probes": rows}, indent=2) + "\n")
        return
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("probe", "level", "hits", "torch on MPS", "what it is"):
        table.add_column(column, overflow="fold", no_wrap=column in ("probe", "level", "hits"))
    for probe in CATALOGUE.values():
        table.add_row(probe.id, str(probe.level), probe.hits, Text(probe.where), Text(probe.title))
    Console().print(table)
