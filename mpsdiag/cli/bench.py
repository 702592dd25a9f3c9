"""`mpsdiag bench`: a matrix of cells, each in its own process, journaled, resumed, reported."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.help_page import MODELS, MODES, SIDES, TRAINERS
from mpsdiag.errors import BadInput
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNDECIDED

if TYPE_CHECKING:
    from mpsdiag.benching.plan.matrix import MatrixSpec
    from mpsdiag.benching.run.runner import RunOutcome
    from mpsdiag.benching.run.session import Session

MANY = 1000
"""Combinations that take long enough to be mentioned."""
AXES_PANEL = "Axes (repeat an option for several values)"
AMOUNT = "How much is measured"
RUN = "How it is run"


def _axis(name: str, words: str) -> Any:
    known = {"--model": MODELS, "--attn-implementation": MODES, "--trainer": TRAINERS, "--padding-side": SIDES}
    return typer.Option(name, metavar="VALUE", help=words, rich_help_panel=AXES_PANEL, autocompletion=known.get(name))


def _amount(name: str, words: str) -> Any:
    return typer.Option(name, help=words, rich_help_panel=AMOUNT, show_default=False)


def _run(name: str, words: str, metavar: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=words, rich_help_panel=RUN, show_default=False)


def bench(
    matrix: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MATRIX]",
            help="Matrix file (TOML); without one: {sdpa, eager, safe_sdpa} x {standard, mps_safe, cpu_loss} x "
            "{left, right} on the built-in model.",
        ),
    ] = None,
    model: Annotated[list[str] | None, _axis("--model", "Built-in, local folder or hub name.")] = None,
    task: Annotated[list[str] | None, _axis("--task", "auto, or a task of Hugging Face, as for check.")] = None,
    attn_implementation: Annotated[
        list[str] | None, _axis("--attn-implementation", "Attention mode, or a kernel of the hub (ORG/REPO).")
    ] = None,
    trainer: Annotated[list[str] | None, _axis("--trainer", "Trainer variant, such as mps_safe.")] = None,
    padding_side: Annotated[list[str] | None, _axis("--padding-side", "left or right.")] = None,
    dtype: Annotated[list[str] | None, _axis("--dtype", "float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[list[str] | None, _axis("--device", "auto, cpu, mps, cuda[:N] or xpu.")] = None,
    emulate: Annotated[
        list[str] | None, _axis("--emulate", "CPU model of the MPS kernels of that torch release, 2.0 to 2.15.")
    ] = None,
    environment: Annotated[
        list[str] | None, _axis("--environment", "Other releases: an environment that bisect built, or none.")
    ] = None,
    emulate_macos: Annotated[
        list[int] | None, _axis("--emulate-macos", "macOS version to emulate: 13, 14, 15 or 26.")
    ] = None,
    max_length: Annotated[list[int] | None, _axis("--max-length", "Longest sequence, in tokens.")] = None,
    batch_size: Annotated[list[int] | None, _axis("--batch-size", "Sequences in a batch.")] = None,
    pad_to_multiple_of: Annotated[
        list[int] | None, _axis("--pad-to-multiple-of", "Batches are padded to a multiple of this; 0: no.")
    ] = None,
    seed: Annotated[list[int] | None, _axis("--seed", "Seed of weights, data and dropout.")] = None,
    dataset: Annotated[str | None, _amount("--dataset", "synthetic, a local file or folder, or a hub name.")] = None,
    eval_dataset: Annotated[
        str | None, _amount("--eval-dataset", "What is evaluated on; a part of --dataset by default.")
    ] = None,
    max_steps: Annotated[int | None, _amount("--max-steps", "Training steps.")] = None,
    eval_max_batches: Annotated[int | None, _amount("--eval-max-batches", "Evaluation batches.")] = None,
    rounds: Annotated[int | None, _amount("--rounds", "Timing rounds that every cell gets; 0: verdicts only.")] = None,
    max_rounds: Annotated[
        int | None, _amount("--max-rounds", "Timing rounds at most, where the ratio is not yet precise.")
    ] = None,
    precision: Annotated[
        float | None, _amount("--precision", "Relative width of a ratio's interval that is enough [0.03].")
    ] = None,
    warmup: Annotated[int | None, _amount("--warmup", "Untimed steps at the start of a round.")] = None,
    repeats: Annotated[int | None, _amount("--repeats", "Timed steps of each kind in a round.")] = None,
    threads: Annotated[
        int | None,
        _amount("--threads", "CPU threads of torch in a cell [built-in models: 1; others: torch's default]."),
    ] = None,
    time_limit: Annotated[
        float | None, _amount("--time-limit", "Seconds that a round of a cell may take [300].")
    ] = None,
    baseline: Annotated[str | None, _amount("--baseline", "Attention mode that ratios are to [sdpa].")] = None,
    max_cells: Annotated[int | None, _amount("--max-cells", "Refuse larger matrices [1000].")] = None,
    out: Annotated[
        str | None, _run("--out", "Folder for journal, logs and report [reports/<matrix>].", "FOLDER")
    ] = None,
    dry_run: Annotated[bool, _run("--dry-run", "List the cells, their number and a time, and stop.")] = False,
    fresh: Annotated[bool, _run("--fresh", "Start over; the older journal is kept aside.")] = False,
    retry: Annotated[
        str, _run("--retry", "Run cells with these statuses again: error,crash,oom,timeout.", "STATUSES")
    ] = "",
    fail_if: Annotated[
        list[str] | None,
        _run(
            "--fail-if",
            "Exit 1 if it holds: 'safe_sdpa.eval_time > 1.05 * sdpa.eval_time', 'any nan in safe_sdpa'.",
            "GATE",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=1024, help="Verdicts at once; timings always run alone.")
    ] = 1,
    shard: Annotated[
        str | None, _run("--shard", "Only part I of N; `mpsdiag report` merges the journals.", "I/N")
    ] = None,
    cluster: Annotated[
        str | None, _run("--cluster", "Scheduler of dask.distributed; see docs/fleet.md.", "ADDRESS")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a matrix of cells, each in its own process, and write journal and report. Run again: it resumes.

    Exit code: 0 every cell finished (NaN is a finding), 1 a --fail-if gate tripped, 2 bad usage or input,
    3 some cells errored, crashed or timed out, 130 interrupted.
    """
    given = dict(locals())  # before anything else is: the options by their names
    from mpsdiag.benching.run.interrupt import Remembered
    from mpsdiag.environment import require_working_pair

    require_working_pair()
    with Remembered() as interrupts:
        from mpsdiag.benching.plan.request import BenchRequest, parse_retry, parse_shard
        from mpsdiag.benching.run.progress_bar import Progress
        from mpsdiag.benching.run.session import prepare

        spec = _spec(matrix, given)
        if out is not None and not out.strip():
            raise BadInput("--out is empty. Name a folder, or leave it out for reports/<matrix>.")
        with _environments(spec), Progress() as progress:
            number = math.prod(len(values) for _, values in spec.axes)
            if number > MANY:
                progress.note(f"laying out {number:,} combinations of the axes")
            session = prepare(
                BenchRequest(
                    spec=spec,
                    out=Path(out or f"reports/{spec.name}"),
                    command=["mpsdiag", *sys.argv[1:]],
                    fresh=fresh,
                    retry=parse_retry(retry),
                    jobs=jobs,
                    shard=None if shard is None else parse_shard(shard),
                    cluster=cluster,
                    gates=fail_if or (),
                ),
                progress.note,
            )
            interrupts.spare = not dry_run  # from here on there is something to report
            try:
                outcome = None if dry_run else session.run(progress)
            finally:
                session.close()
        if outcome is None:
            _list_cells(session, as_json=json)
            raise typer.Exit(0)
        whole = True
        if session.plan.empty:
            _nothing(session, outcome, as_json=json)
        else:
            whole = _report(session, outcome, as_json=json)
        if interrupts.pressed and not outcome.interrupted:
            output.say("interrupted, but nothing was left to run; the report is whole.")
        code = EXIT_INTERRUPTED if interrupts.pressed else session.exit_code(outcome)
        raise typer.Exit(EXIT_UNDECIDED if code == EXIT_OK and not whole else code)


def _spec(matrix: Path | None, given: dict[str, Any]) -> MatrixSpec:
    """The matrix of the file, or the default one, with the options that name an axis or an amount applied."""
    from mpsdiag.benching.plan.matrix import AXES, MatrixSpec, changed
    from mpsdiag.benching.plan.matrix_file import load_matrix

    known = {*AXES, *MatrixSpec.model_fields}
    values = {name: value for name, value in given.items() if name in known}
    return changed(MatrixSpec() if matrix is None else load_matrix(matrix, output.say), values)


def _environments(spec: MatrixSpec) -> AbstractContextManager[None]:
    """Keep the environments of other releases that the matrix names ready for its cells."""
    if not spec.environments:
        return nullcontext()
    from mpsdiag.bisect.environments import for_cells

    return for_cells(spec.environments)


def _list_cells(session: Session, *, as_json: bool) -> None:
    from mpsdiag.benching.plan.listing import as_document, as_text

    if as_json:
        output.show_document(as_document(session))
    else:
        output.show(as_text(session))


def _nothing(session: Session, outcome: RunOutcome, *, as_json: bool) -> None:
    """An empty part leaves no folder; a script that asked for a JSON document gets one all the same."""
    if as_json:
        from mpsdiag.benching.journal.journal import Journal
        from mpsdiag.reporting.formats.json_document import document
        from mpsdiag.reporting.story.report import assemble
        from mpsdiag.serialization import dumps

        story = assemble([Journal(session.header(), [])])
        headline = f"Nothing to do: {session.plan.empty}."
        made = {**document(story), "headline": headline, "bench": session.summary(outcome)}
        output.show_document(dumps(made, indent=1))


def _report(session: Session, outcome: RunOutcome, *, as_json: bool) -> bool:
    """Print the story, or one JSON document, and write the report's folder; whether all of it could be written."""
    from mpsdiag.benching.journal.journal import Journal
    from mpsdiag.reporting.formats.export import text_of, write_folder
    from mpsdiag.reporting.formats.json_document import document
    from mpsdiag.reporting.story.report import assemble
    from mpsdiag.serialization import dumps

    story = assemble([outcome.journal or Journal(session.header(), [])], baseline=session.request.spec.baseline)
    # The answer first: whatever happens to the files, it has been given.
    if as_json:
        output.show_document(dumps({**document(story), "bench": session.summary(outcome)}, indent=1))
    else:
        output.show(text_of(story, "terminal", width=output.width(), color=output.colored()))
    for sentence in session.closing(outcome):
        output.say(sentence)
    failed: list[str] = []
    written = write_folder(story, session.request.out, failed.append)
    for sentence in failed:
        output.say(sentence)
    if written:
        output.say(f"wrote {', '.join(str(path) for path in written)}")
    return not failed


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bench)
