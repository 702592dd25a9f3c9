"""Assemble the commands, run one, and turn its outcome into the exit code of the contract."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import typer.core

from mpsdiag.cli import bench, bisect, check, compare, env, output, report, run, trace, train
from mpsdiag.cli.options import GroupedCommand, with_new_names
from mpsdiag.errors import BadInput, MpsdiagError, first_line, path_problem
from mpsdiag.words import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNDECIDED, EXIT_USAGE


class Commands(typer.core.TyperGroup):
    """The commands; Ctrl-C in any of them ends with one sentence and the code of the contract."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, and replace old names of its options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, rest if command is None else with_new_names(command, rest)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            output.say("interrupted.")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    name="mpsdiag",
    help="Why attention gives NaN or quietly wrong numbers on padded batches, and which fix resolves it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (check.check, compare.compare, trace.trace, bench.bench, bisect.bisect, report.report):
    app.command(cls=GroupedCommand)(command)
app.command(
    cls=GroupedCommand,
    add_help_option=False,  # every word after `train`, including --help, is passed to the pipeline
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train.train)
app.command(cls=GroupedCommand, context_settings={"allow_interspersed_args": False})(run.run)
app.command(cls=GroupedCommand)(env.env)

UNDECIDED = frozenset({"check", "bench", "trace", "bisect", "run"})
"""Commands that have an exit code 3; a script under `run` may end with any."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, by default that of the process's own words, and exit the process with its code.

    An unexpected error is one sentence too, with its traceback in a file. Its exit code is 3 if the command has one,
    otherwise 2, because 1 would mean a finding.
    """
    output.guard()
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    code = _code_of(words, command)
    sys.exit(EXIT_USAGE if code == EXIT_UNDECIDED and command not in UNDECIDED else code)


def _code_of(words: list[str], command: str) -> int:
    """Run one command; its exit code."""
    try:
        _require_folder(command)
        code = app(args=words, prog_name="mpsdiag", standalone_mode=False)
        sys.stdout.flush()  # while a failure can still be reported
    except SystemExit as problem:  # from a library's own parser
        return problem.code if isinstance(problem.code, int) else EXIT_USAGE
    except Exception as problem:  # noqa: BLE001 - the outermost handler
        with contextlib.suppress(output.CannotPrint):
            sys.stdout.flush()
        if command == "env" and not isinstance(problem, MpsdiagError) and not _of_the_parser(problem):
            env.env(json="--json" in words)  # the parser itself needs the broken library
            return EXIT_OK
        return _failed(problem)
    return code if isinstance(code, int) else EXIT_OK


def _require_folder(command: str) -> None:
    """Refuse to run in a deleted folder, where no path can be resolved. `env` takes no paths."""
    if command != "env":
        try:
            Path.cwd()
        except OSError as problem:
            raise BadInput("The current folder no longer exists. Change to one that does.") from problem


def _failed(problem: Exception) -> int:
    """Print what went wrong, in one sentence; the exit code."""
    if _of_the_parser(problem):  # usage, then the sentence
        from mpsdiag.escape import terminal_text

        text: Any = io.StringIO()
        problem.show(file=text)  # type: ignore[attr-defined]
        sys.stderr.write(terminal_text(text.getvalue()))
        return EXIT_USAGE
    sentence, code = _sentence(problem)
    output.say(sentence)
    return code


def _sentence(problem: Exception) -> tuple[str, int]:
    """What went wrong, and the exit code."""
    from mpsdiag import installs

    ours = isinstance(problem, MpsdiagError)
    broken = None if ours and not _has_import_error(problem) else installs.explained(problem)
    if broken is not None:
        return f"{broken}. `mpsdiag env` shows the rest.", EXIT_USAGE
    if isinstance(problem, MpsdiagError):
        return str(problem), problem.exit_code
    if isinstance(problem, MemoryError):
        return "There is not enough memory for this. Use smaller files or numbers, or free some memory.", EXIT_USAGE
    if isinstance(problem, RuntimeError) and str(problem).startswith("Symlink loop"):  # from Path.resolve
        return f"{problem}: the links lead in a circle.", EXIT_USAGE
    if isinstance(problem, UnicodeEncodeError):  # a lone surrogate where a library needs UTF-8
        return f"{problem.object[:200]!r} is not valid Unicode: write it in UTF-8.", EXIT_USAGE
    if isinstance(problem, OSError) and problem.errno is not None:
        return str(path_problem(problem)), EXIT_USAGE
    return _unforeseen(problem), EXIT_UNDECIDED


def _of_the_parser(problem: Exception) -> bool:
    return hasattr(problem, "format_message")


def _has_import_error(problem: BaseException | None) -> bool:
    while problem is not None:
        if isinstance(problem, ImportError):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _unforeseen(problem: Exception) -> str:
    """A sentence about a bug of mpsdiag, with the file that holds the traceback."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(problem))
    what = f"{type(problem).__name__}: {first_line(problem)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mpsdiag-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write(text)
    except OSError:
        sys.stderr.write(text)
        return f"Unexpected {what}."
    return f"Unexpected {what}. Please report it with the traceback in {file.name} and the output of `mpsdiag env`."
