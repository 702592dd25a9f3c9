"""The options that several commands share, with one name and one help text each; what `--help` prints; notes."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import typer.core

from mpsdiag import words
from mpsdiag.cli.output import say
from mpsdiag.errors import BadInput

WHAT: Final = "What to look at"
WHERE: Final = "Where to run"
OUTPUT: Final = "Output"

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "check": (
        ("mpsdiag check", "Is this machine affected?"),
        ("mpsdiag check --model your/model --dataset data.txt", "Is it affected with your model and data?"),
        ("mpsdiag check --emulate 2.8", "Would torch 2.8 on a Mac be affected?"),
        ("mpsdiag check SDPA003 --device mps", "Run one probe"),
    ),
    "compare": (("mpsdiag compare this-mac.json other-mac.json", "What differs between two Macs?"),),
    "trace": (
        ("mpsdiag trace --model your/model --dataset data.txt", "Which operation gives the first NaN?"),
        ("mpsdiag trace --train --max-steps 20", "Trace training steps"),
        ("mpsdiag trace bad-batch --repro repro.py", "Reduce a recorded batch to a script"),
    ),
    "bench": (
        ("mpsdiag bench matrix.toml --out results", "Run a matrix; run it again to resume"),
        ("mpsdiag bench --attn-implementation sdpa --attn-implementation safe_sdpa", "Time two attention modes"),
        ("mpsdiag bench --fail-if 'any nan in safe_sdpa'", "In CI: exit code 1 if safe_sdpa gives NaN"),
    ),
    "bisect": (("mpsdiag bisect --transformers 4.52.4..5.24", "Which release broke it?"),),
    "report": (
        ("mpsdiag report results other-mac", "Merge two runs"),
        ("mpsdiag report results --against last-week", "What changed?"),
        ("mpsdiag report results --out cells.parquet", "Write every cell as a table for pandas"),
    ),
    "run": (("mpsdiag run --fix safe_sdpa your_script.py --epochs 3", "Run your script with the fix"),),
    "env": (("mpsdiag env", "Print a block to paste into an issue"),),
}


class GroupedCommand(typer.core.TyperCommand):
    """A command whose help groups options by `rich_help_panel`, without loading rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if parameter.param_type_name == "argument" else "Other"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or plain, []).append(record)
        order = ("Arguments", WHAT, WHERE)
        last = (OUTPUT, "Other")
        names = [*order, *(name for name in groups if name not in {*order, *last}), *last]
        for name in (name for name in names if name in groups):
            with formatter.section("Options" if len(groups) <= 2 and name == "Other" else name):
                formatter.write_dl(groups[name])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        del ctx
        examples = EXAMPLES.get(self.name or "", ())
        if examples:
            with formatter.section("Examples"):
                for command, words in examples:
                    formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                    formatter.write(f"{'':{formatter.current_indent + 4}}{words}\n")


def completing(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completions of a value for the shell."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


MODELS = completing(lambda: words.BUILTIN_MODELS)
MODES = completing(lambda: words.ATTENTION_MODES)
FIXES = completing(lambda: (*words.ATTENTION_MODES[:5], words.POSITIONS))  # those that a whole process can have
TRAINERS = completing(lambda: words.TRAINER_VARIANTS)
SIDES = completing(lambda: words.PADDING_SIDES)
PROBES = completing(lambda: import_module("mpsdiag.probes.known").CATALOGUE)


def option(panel: str | None, name: str, words: str, **more: Any) -> Any:
    """An option in one of the groups of `--help`; `more` goes to typer."""
    return typer.Option(name, help=words, rich_help_panel=panel, **more)


what, where, printed, other = (partial(option, panel) for panel in (WHAT, WHERE, OUTPUT, None))
count = partial(what, min=1, max=words.MOST)

DEVICE = where("--device", "auto (the first of mps, cuda, xpu, cpu), cpu, mps, cuda[:N] or xpu.", metavar="DEVICE")
EMULATE = "Use a CPU model of the MPS kernels of this torch release, 2.0 to 2.15. Emulated, not measured."
MACOS = "macOS version to emulate: 13, 14, 15 or 26."
MODEL = "A built-in model, a local folder or a hub name."
DATASET = "synthetic, a local file or folder, or a hub name."

Device = Annotated[str, DEVICE]
Dtype = Annotated[str, what("--dtype", "float32, bfloat16 or float16 (and float64 on the CPU).", metavar="DTYPE")]
PaddingSide = Annotated[str, what("--padding-side", "left or right.", autocompletion=SIDES)]
Task = Annotated[str, what("--task", f"auto (from the model's config), {', '.join(words.TASKS)}.", metavar="TASK")]
MaxLength = Annotated[
    int | None, what("--max-length", "Longest sequence, in tokens. [128; own data: 512]", min=2, max=words.MOST)
]
Seed = Annotated[int, what("--seed", "Seed of weights, data and dropout.", min=0, max=words.LARGEST_SEED)]
Json = Annotated[bool, printed("--json", "Print one JSON document on stdout and nothing else.")]
Markdown = Annotated[bool, printed("--markdown", "Print a block to paste into an issue.")]
Html = Annotated[Path | None, printed("--html", "Also write the answer as one self-contained page.", metavar="FILE")]
Emulate = Annotated[str | None, where("--emulate", EMULATE, metavar="RELEASE")]
EmulateMacos = Annotated[int, where("--emulate-macos", MACOS, metavar="N")]
Model = Annotated[str, what("--model", MODEL, autocompletion=MODELS)]
Dataset = Annotated[str, what("--dataset", DATASET)]


def one_format(*, json: bool, markdown: bool) -> None:
    """Refuse two formats on one stdout."""
    if json and markdown:
        raise BadInput("--json and --markdown cannot be combined: choose one.")


NEW_NAMES: Final = {
    "--attention": "--attn-implementation",
    "--padding": "--padding-side",
    "--sequence-length": "--max-length",
    "--train-steps": "--max-steps",
    "--eval-batches": "--eval-max-batches",
    "--steps": "--max-steps",
    "--batches": "--eval-max-batches",
}
"""Old names of options, and Hugging Face's names that replaced them."""


def with_new_names(command: Any, arguments: list[str]) -> list[str]:
    """Replace old names of a command's options, which still work, and say so once."""
    options = {option for parameter in command.params for option in parameter.opts}
    new_names = {old: new for old, new in NEW_NAMES.items() if old not in options and new in options}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parts = [word.partition("=") for word in arguments[:end]]
    found = {name: new_names[name] for name, _, _ in parts if name in new_names}
    if found:
        words = ", ".join(f"{old} is now {new}" for old, new in found.items())
        say(f"note: {words}. The old name still works.")
    return [found.get(name, name) + equals + value for name, equals, value in parts] + arguments[end:]


def note_without_effect(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Name the options on the command line that have no effect, and say why."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        has = "has" if len(given) == 1 else "have"
        say(f"note: {words} {has} no effect {why}.")
