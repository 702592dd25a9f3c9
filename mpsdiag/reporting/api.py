"""For scripts and notebooks: `mpsdiag.bench`, `mpsdiag.report`, and how an answer is shown."""

from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from mpsdiag.checking.diagnosis import Diagnosis
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.findings import Answer
from mpsdiag.reporting.layout.blocks import Document
from mpsdiag.reporting.story.report import Report, assemble


def report(
    results: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    against: Iterable[str | PathLike[str]] = (),
    baseline: str | None = None,
) -> Report:
    """Read results of `bench`.

    Args:
        results: Folders written by bench, or journals; several are merged.
        against: Older results to compare with.
        baseline: Attention mode to which ratios are relative; that of the first journal if None.

    Returns:
        The report: `print` it, `to_pandas()`, `to_markdown()`, `to_html()`, or end a notebook cell with it.

    Raises:
        BadInput: There is no readable journal.
    """
    from mpsdiag.benching.journal.journal import read_journal

    paths = [results] if isinstance(results, str | PathLike) else list(results)
    if not paths:
        raise BadInput("report needs at least one folder that bench wrote, or a journal.")
    journals, older = ([read_journal(Path(path)) for path in one] for one in (paths, against))
    return assemble(journals, older, baseline)


def bench(
    matrix: str | PathLike[str] | None = None,
    *,
    out: str | PathLike[str] | None = None,
    fresh: bool = False,
    jobs: int = 1,
    **changes: Any,
) -> Report:
    """Run a matrix of cells, each in its own process, and report on it. The same call resumes.

    In a script, call it under `if __name__ == "__main__":`, as with everything that starts processes.

    Args:
        matrix: A matrix file (TOML); the default matrix if None.
        out: Folder for journal and logs; `reports/<name of the matrix>` if None.
        fresh: Start over instead of resuming; the old journal is kept aside.
        jobs: Number of verdicts to run at once; timings always run alone.
        changes: Axes and amounts, named as the options of the command, such as
            `attn_implementation=["sdpa", "safe_sdpa"]`, `emulate=["2.8"]`, `rounds=0`.

    Raises:
        BadInput: An axis or a value does not exist, or the folder cannot be written.
        CannotDecide: No cell of the matrix can run here.
    """
    from mpsdiag.benching.plan.matrix import MatrixSpec, changed
    from mpsdiag.benching.plan.matrix_file import load_matrix
    from mpsdiag.benching.plan.request import BenchRequest
    from mpsdiag.benching.run.bench import prepare
    from mpsdiag.benching.run.progress_bar import Progress

    with Progress() as progress:
        spec = changed(MatrixSpec() if matrix is None else load_matrix(Path(matrix), progress.note), changes)
        folder = Path(out or f"reports/{spec.name}")
        session = prepare(BenchRequest(spec, folder, ["mpsdiag.bench"], fresh, jobs=jobs), progress.note)
        try:
            outcome = session.run(progress)
        finally:
            session.close()
    if outcome.journal is None:
        raise CannotDecide("No cell of the matrix was run.")
    made = assemble([outcome.journal], baseline=spec.baseline)
    return replace(made, notes=(*made.notes, outcome.broken)) if outcome.broken else made


def render(answer: Answer, form: str) -> str:
    """Show an answer as `terminal`, `markdown`, a whole `html` page, or a `fragment` of one."""
    if isinstance(answer, Report) and form != "fragment":
        from mpsdiag.reporting.formats.export import text_of

        return text_of(answer, form)
    if isinstance(answer, Report):
        from mpsdiag.reporting.formats import html
        from mpsdiag.reporting.layout.sections import document
        from mpsdiag.reporting.pictures.plots import pictures

        return html.fragment(document(answer, html.LIMITS), html.LIMITS, pictures(answer))
    from mpsdiag.reporting.formats import shown

    return shown(_document(answer), form)


def _document(answer: Answer) -> Document:
    from mpsdiag.reporting import check, trace
    from mpsdiag.tracing.origin import Origin
    from mpsdiag.tracing.process.watched import ScriptReport
    from mpsdiag.tracing.run import TraceReport

    if isinstance(answer, Diagnosis):
        return check.document(answer)
    if isinstance(answer, TraceReport):
        return trace.document(answer)
    if isinstance(answer, Origin):
        return trace.origin_document(answer)
    if isinstance(answer, ScriptReport):
        return trace.script_document(answer)
    raise TypeError(f"a {type(answer).__name__} is not an answer")
