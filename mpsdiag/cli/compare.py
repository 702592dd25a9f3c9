"""`mpsdiag compare`: two documents of `mpsdiag check --json` side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpsdiag.cli import options, output
from mpsdiag.words import EXIT_FOUND, EXIT_OK

Document = Annotated[Path, typer.Argument(metavar="A.json", help="A document of `mpsdiag check --json`.")]
Other = Annotated[Path, typer.Argument(metavar="B.json", help="One from another machine or release.")]


def compare(
    first: Document,
    second: Other,
    json: options.Json = False,
    markdown: options.Markdown = False,
    html: options.Html = None,
) -> None:
    """Compare two checks: what differs between machines or releases?

    Exit code: 0 same findings, 1 they differ, 2 bad usage or input.
    """
    options.one_format(json=json, markdown=markdown)
    from mpsdiag.reporting.compare import differences, document, read_diagnosis

    ours, theirs = read_diagnosis(first), read_diagnosis(second)
    found = differences(ours, theirs)
    same = not any(one.finding for one in found)
    plain = {"schema": 1, "same": same, "differences": [asdict(one) for one in found]}
    made = document(ours, theirs, (first.name, second.name))
    output.show_answer(plain, made, as_json=json, markdown=markdown, page=html)
    raise typer.Exit(EXIT_OK if same else EXIT_FOUND)
