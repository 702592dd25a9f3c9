"""`mpsdiag report`: render, merge and compare journals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import MODES, other
from mpsdiag.errors import BadInput, one_of
from mpsdiag.words import EXIT_FOUND, EXIT_OK, attention_mode

if TYPE_CHECKING:
    from mpsdiag.benching.gates import Gate
    from mpsdiag.benching.journal.journal import Journal


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS", help="Journals, folders of bench or bisect, or a file of check --json."),
    ],
    form: Annotated[
        str | None,
        other("--format", "terminal, markdown, html, csv, json or parquet. [by the suffix of --out; terminal]"),
    ] = None,
    out: Annotated[
        Path | None, other("--out", "File to write instead of stdout; a folder gets Markdown, HTML and CSV.")
    ] = None,
    against: Annotated[list[Path] | None, other("--against", "Older results to compare with.", metavar="OLD")] = None,
    fail_if: Annotated[
        list[str] | None, other("--fail-if", "Exit with 1 if this is true: 'any nan in safe_sdpa'.", metavar="GATE")
    ] = None,
    baseline: Annotated[
        str | None,
        other("--baseline", "Attention mode to compare with. [that of the first journal]", autocompletion=MODES),
    ] = None,
    json: options.Json = False,
) -> None:
    """Render, merge and compare results: verdict, fixes and their cost.

    Exit code: 0 rendered, 1 a --fail-if gate tripped, 2 bad usage or input.
    """
    chosen = _format(form, out, json=json)
    from mpsdiag.bisect.tries import is_bisect

    if any(is_bisect(path) for path in results):
        if len(results) > 1 or against or fail_if or baseline:
            raise BadInput("A bisect journal is rendered alone, without --against, --fail-if or --baseline.")
        _bisect(results[0], chosen, out)
        raise typer.Exit(EXIT_OK)
    from mpsdiag.reporting.compare import is_check
    from mpsdiag.reporting.formats.export import collector_paused

    if len(results) == 1 and is_check(results[0]):
        if against or fail_if or baseline:
            raise BadInput(
                "A check is rendered alone, without --against, --fail-if or --baseline."
                " To compare two: mpsdiag compare A.json B.json."
            )
        _check(results[0], chosen, out)
        raise typer.Exit(EXIT_OK)
    with collector_paused():
        journals = _journals(results)
        gates = _gates(fail_if or [], journals)
        if baseline is not None:
            attention_mode(baseline)
        _render(journals, _journals(against or []), chosen, out, baseline)
        tripped = _tripped(gates, journals)
    raise typer.Exit(EXIT_FOUND if tripped else EXIT_OK)


def _check(path: Path, form: str | None, out: Path | None) -> None:
    """Render a document of `check --json` again."""
    from mpsdiag.escape import redact_all
    from mpsdiag.reporting.api import render
    from mpsdiag.reporting.compare import read_diagnosis
    from mpsdiag.serialization import dumps, jsonable

    diagnosis = read_diagnosis(path)
    form = form or "terminal"
    plain = redact_all(jsonable(diagnosis.to_dict()))
    _give(dumps(plain, indent=2) if form == "json" else render(diagnosis, form), form, out)


def _bisect(path: Path, form: str | None, out: Path | None) -> None:
    """Render the last search of a journal that `bisect` wrote."""
    from mpsdiag.bisect.found import conclude, text_of
    from mpsdiag.bisect.tries import read_tries

    journal = read_tries(path)
    if journal is None:
        raise BadInput(f"There is no journal at {path}.")
    for warning in journal.warnings:
        output.say(warning)
    found = conclude(journal.search, journal.tries)
    if out is not None and form is None:
        for kind, name in (("markdown", "report.md"), ("html", "report.html")):
            _give(text_of(found, kind), kind, out / name)
        return
    form = form or "terminal"
    color = out is None and output.colored()
    _give(text_of(found, form, width=output.width(), color=color), form, out)


def _give(text: str, form: str, out: Path | None) -> None:
    """Print an answer, or write it into a file."""
    from mpsdiag.serialization import write_atomically

    if out is None:
        (output.show if form == "terminal" else output.show_document)(text)
    else:
        write_atomically(out, text)
        output.say(f"wrote {out}")


def _render(
    journals: Sequence[Journal], against: Sequence[Journal], form: str | None, out: Path | None, baseline: str | None
) -> None:
    from mpsdiag.reporting.formats.export import text_of, write, write_folder
    from mpsdiag.reporting.story.report import assemble

    story = assemble(journals, against, baseline)
    for note in story.notes:
        output.say(note)
    if out is not None and form is None:
        for path in write_folder(story, out):
            output.say(f"wrote {path}")
        return
    form = form or "terminal"
    if out is not None:
        write(story, form, out)
        output.say(f"wrote {out}")
        return
    _give(text_of(story, form, width=output.width(), color=output.colored()), form, None)


def _format(form: str | None, out: Path | None, *, json: bool) -> str | None:
    """The format to write; None for a folder of all."""
    from mpsdiag.reporting.formats.export import FORMATS, SUFFIXES

    if json:
        if form not in {None, "json"}:
            raise BadInput(f"--json and --format {form} cannot be combined: choose one.")
        return "json"
    if form is not None:
        if out is not None and out.is_dir():
            raise BadInput(f"{out} is a folder; give a file for --format {form}, or leave --format out.")
        if form == "parquet" and out is None:
            raise BadInput("Parquet is a binary format: name a file with --out FILE.parquet.")
        return one_of("format", form, FORMATS)
    if out is None:
        return "terminal"
    if out.is_dir() or not out.suffix:
        return None
    if out.suffix.lower() not in SUFFIXES:
        raise BadInput(f"What to write into {out.name}? Add --format: {', '.join(FORMATS)}.")
    return SUFFIXES[out.suffix.lower()]


def _journals(paths: list[Path]) -> list[Journal]:
    from mpsdiag.benching.journal.journal import read_journal
    from mpsdiag.escape import redact

    journals = [read_journal(path) for path in {path.resolve(): path for path in paths}.values()]
    for journal in journals:  # warnings hold paths, and reports get pasted
        journal.warnings = [redact(warning) for warning in journal.warnings]
    return journals


def _gates(texts: Sequence[str], journals: Sequence[Journal]) -> list[Gate]:
    """Parse the gates before anything is written, and make sure that they are about cells that there are."""
    from mpsdiag.benching.gates import parse_gate, require_words

    cells = list({record.cell: None for journal in journals for record in journal.records}) if texts else []
    gates = [parse_gate(text) for text in texts]
    for gate in gates:
        require_words(gate, cells)
    return gates


def _tripped(gates: Sequence[Gate], journals: Sequence[Journal]) -> bool:
    """Whether a gate tripped, or cannot be decided."""
    from mpsdiag.benching.gates import judge
    from mpsdiag.benching.journal.pooling import pool

    if not gates:
        return False
    pooled = pool(journals)
    judgements = [judge(gate, pooled) for gate in gates]
    for judgement in judgements:
        output.say(str(judgement))
    return not all(judgement.tripped is False for judgement in judgements)
