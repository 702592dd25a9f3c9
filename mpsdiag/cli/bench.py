"""`mpsdiag bench`: a matrix of cells, each in its own process, journaled, resumed, reported."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpsdiag.cli import options, output
from mpsdiag.cli.options import MODELS, MODES, SIDES, TRAINERS
from mpsdiag.errors import BadInput
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNDECIDED

if TYPE_CHECKING:
    from mpsdiag.benching.plan.matrix import MatrixSpec
    from mpsdiag.benching.run.bench import Session
    from mpsdiag.benching.run.runner import RunOutcome

MANY = 1000
"""Combinations that take long enough to be mentioned."""
Texts = list[str] | None
Numbers = list[int] | None
Whole = int | None

axis = partial(options.option, "Axes (repeat an option for several values)", metavar="VALUE")
amount = partial(options.option, "How much is measured", show_default=False)
how = partial(options.option, "How it is run", show_default=False)


def bench(
    matrix: Annotated[
        Path | None,
        typer.Argument(
            metavar="MATRIX",
            help="Matrix file (TOML). [{sdpa, eager, safe_sdpa} x {standard, mps_safe, cpu_loss} x "
            "{left, right} on the built-in model]",
        ),
    ] = None,
    model: Annotated[Texts, axis("--model", options.MODEL, autocompletion=MODELS)] = None,
    task: Annotated[Texts, axis("--task", "auto, or Hugging Face's name of a task, as for check.")] = None,
    attn_implementation: Annotated[
        Texts, axis("--attn-implementation", "Attention mode, or hub kernel (ORG/REPO).", autocompletion=MODES)
    ] = None,
    trainer: Annotated[Texts, axis("--trainer", "Trainer variant, such as mps_safe.", autocompletion=TRAINERS)] = None,
    padding_side: Annotated[Texts, axis("--padding-side", "left or right.", autocompletion=SIDES)] = None,
    dtype: Annotated[Texts, axis("--dtype", "float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[Texts, axis("--device", "auto, cpu, mps, cuda[:N] or xpu.")] = None,
    emulate: Annotated[
        Texts, axis("--emulate", "CPU model of the MPS kernels of this torch release, 2.0 to 2.15.")
    ] = None,
    environment: Annotated[
        Texts, axis("--environment", "Environment with other releases, built by bisect, or none.")
    ] = None,
    emulate_macos: Annotated[Numbers, axis("--emulate-macos", options.MACOS)] = None,
    max_length: Annotated[Numbers, axis("--max-length", "Longest sequence, in tokens.")] = None,
    batch_size: Annotated[Numbers, axis("--batch-size", "Sequences in a batch.")] = None,
    pad_to_multiple_of: Annotated[
        Numbers, axis("--pad-to-multiple-of", "Pad batches to a multiple of this many tokens; 0: off.")
    ] = None,
    seed: Annotated[Numbers, axis("--seed", "Seed of weights, data and dropout.")] = None,
    dataset: Annotated[str | None, amount("--dataset", options.DATASET)] = None,
    eval_dataset: Annotated[str | None, amount("--eval-dataset", "Data to evaluate on. [a part of --dataset]")] = None,
    max_steps: Annotated[Whole, amount("--max-steps", "Training steps.")] = None,
    eval_max_batches: Annotated[Whole, amount("--eval-max-batches", "Evaluation batches.")] = None,
    rounds: Annotated[Whole, amount("--rounds", "Timing rounds for every cell; 0: verdicts only.")] = None,
    max_rounds: Annotated[
        Whole, amount("--max-rounds", "Add rounds up to this number while a ratio is imprecise.")
    ] = None,
    precision: Annotated[
        float | None, amount("--precision", "Relative width of a ratio's interval that is precise enough. [0.03]")
    ] = None,
    warmup: Annotated[Whole, amount("--warmup", "Untimed steps at the start of each round.")] = None,
    repeats: Annotated[Whole, amount("--repeats", "Timed steps of each kind in a round.")] = None,
    threads: Annotated[
        Whole, amount("--threads", "CPU threads of torch in a cell. [built-in models: 1; others: torch's default]")
    ] = None,
    time_limit: Annotated[
        float | None, amount("--time-limit", "Seconds that a round of a cell may take. [300]")
    ] = None,
    baseline: Annotated[
        str | None, amount("--baseline", "Attention mode to compare with. [sdpa]", autocompletion=MODES)
    ] = None,
    max_cells: Annotated[Whole, amount("--max-cells", "Refuse larger matrices. [1000]")] = None,
    out: Annotated[
        str | None, how("--out", "Folder for journal, logs and report. [reports/<matrix>]", metavar="FOLDER")
    ] = None,
    dry_run: Annotated[bool, how("--dry-run", "List the cells, their number and the expected time, and stop.")] = False,
    fresh: Annotated[bool, how("--fresh", "Start over; the old journal is kept aside.")] = False,
    retry: Annotated[
        str, how("--retry", "Run cells with these statuses again: error,crash,oom,timeout.", metavar="STATUSES")
    ] = "",
    fail_if: Annotated[
        Texts,
        how(
            "--fail-if",
            "Exit with 1 if this is true: 'safe_sdpa.eval_time > 1.05 * sdpa.eval_time', 'any nan in safe_sdpa'.",
            metavar="GATE",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=1024, help="Verdicts to run at once; timings always run alone.")
    ] = 1,
    shard: Annotated[
        str | None, how("--shard", "Run part I of N only; `mpsdiag report` merges the journals.", metavar="I/N")
    ] = None,
    cluster: Annotated[
        str | None, how("--cluster", "Address of a dask.distributed scheduler; see docs/fleet.md.", metavar="ADDRESS")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a matrix of cells, each in its own process, and report on it. The same command resumes.

    Exit code: 0 every cell finished (NaN is a finding), 1 a --fail-if gate tripped, 2 bad usage or input,
    3 some cells errored, crashed or timed out, 130 interrupted.
    """
    given = dict(locals())  # the options by name, before any other local variable exists
    from mpsdiag.benching.run.interrupt import Remembered
    from mpsdiag.environment import require_working_pair

    require_working_pair()
    with Remembered() as interrupts:
        from mpsdiag.benching.plan.request import BenchRequest, parse_retry, parse_shard
        from mpsdiag.benching.run.bench import prepare
        from mpsdiag.benching.run.progress_bar import Progress

        spec = _spec(matrix, given)
        if out is not None and not out.strip():
            raise BadInput("--out is empty. Name a folder, or leave it out for reports/<matrix>.")
        with ExitStack() as kept, Progress() as progress:
            if spec.environments:
                from mpsdiag.bisect.environments import for_cells

                kept.enter_context(for_cells(spec.environments))
            number = math.prod(len(values) for _, values in spec.axes)
            if number > MANY:
                progress.busy(f"laying out {number:,} combinations of the axes")
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
            interrupts.spare = not dry_run  # from now on there is something to report
            try:
                outcome = None if dry_run else session.run(progress)
            finally:
                session.close()
        if outcome is None:
            from mpsdiag.benching.plan.forecast import as_document, as_text

            if json:
                output.show_document(as_document(session))
            else:
                output.show(as_text(session))
            raise typer.Exit(0)
        whole = _report(session, outcome, as_json=json)
        if interrupts.pressed and not outcome.interrupted:
            output.say("interrupted, but nothing was left to run; the report is complete.")
        code = EXIT_INTERRUPTED if interrupts.pressed else session.exit_code(outcome)
        raise typer.Exit(EXIT_UNDECIDED if code == EXIT_OK and not whole else code)


def _spec(matrix: Path | None, given: dict[str, Any]) -> MatrixSpec:
    """The matrix of the file, or the default one, changed by the options for axes and amounts."""
    from mpsdiag.benching.plan.matrix import AXES, MatrixSpec, changed
    from mpsdiag.benching.plan.matrix_file import load_matrix

    known = {*AXES, *MatrixSpec.model_fields}
    values = {name: value for name, value in given.items() if name in known}
    return changed(MatrixSpec() if matrix is None else load_matrix(matrix, output.say), values)


def _report(session: Session, outcome: RunOutcome, *, as_json: bool) -> bool:
    """Print the report, or one JSON document, and write its folder; whether all files could be written.

    An empty shard writes no folder, but a script that asked for a JSON document still gets one.
    """
    from mpsdiag.benching.journal.journal import Journal
    from mpsdiag.reporting.formats.cells import document
    from mpsdiag.reporting.formats.export import text_of, write_folder
    from mpsdiag.reporting.story.report import assemble
    from mpsdiag.serialization import dumps

    empty = session.plan.empty
    story = assemble([outcome.journal or Journal(session.header(), [])], baseline=session.request.spec.baseline)
    # The answer first, whatever happens to the files.
    if as_json:
        headline = {"headline": f"Nothing to do: {empty}."} if empty else {}
        output.show_document(dumps({**document(story), **headline, "bench": session.summary(outcome)}, indent=1))
    elif not empty:
        output.show(text_of(story, "terminal", width=output.width(), color=output.colored()))
    if empty:
        return True
    for sentence in session.closing(outcome):
        output.say(sentence)
    failed: list[str] = []
    written = write_folder(story, session.request.out, failed.append)
    for sentence in failed:
        output.say(sentence)
    if written:
        output.say(f"wrote {', '.join(str(path) for path in written)}")
    return not failed
