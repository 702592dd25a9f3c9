"""What `--help` prints: options in groups, examples at the end; and what a shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Final

import typer.core

from mpsdiag.words import ATTENTION_MODES, BUILTIN_MODELS, PADDING_SIDES, POSITIONS, TRAINER_VARIANTS

WHAT: Final = "What to look at"
WHERE: Final = "Where to run"
OUTPUT: Final = "Output"

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "check": (
        ("mpsdiag check", "Is this machine affected?"),
        ("mpsdiag check --model your/model --dataset data.txt", "And with your model and data?"),
        ("mpsdiag check --emulate 2.8", "Would torch 2.8 on a Mac be affected?"),
        ("mpsdiag check SDPA003 --device mps", "One probe"),
    ),
    "compare": (("mpsdiag compare this-mac.json other-mac.json", "Two files of `mpsdiag check --json`"),),
    "trace": (
        ("mpsdiag trace --model your/model --dataset data.txt", "Which operation gives the first NaN?"),
        ("mpsdiag trace --train --max-steps 20", "In training"),
        ("mpsdiag trace bad-batch --repro repro.py", "A recorded batch, reduced to a script"),
    ),
    "bench": (
        ("mpsdiag bench matrix.toml --out results", "Run a matrix; run it again to resume"),
        ("mpsdiag bench --attn-implementation sdpa --attn-implementation safe_sdpa", "Two modes, timed"),
        ("mpsdiag bench --fail-if 'any nan in safe_sdpa'", "For CI: exit code 1"),
    ),
    "bisect": (("mpsdiag bisect --transformers 4.52.4..5.24", "Which release broke it?"),),
    "report": (
        ("mpsdiag report results other-mac", "Merge two runs"),
        ("mpsdiag report results --against last-week", "What changed?"),
        ("mpsdiag report results --out cells.parquet", "Every cell, for pandas"),
    ),
    "run": (("mpsdiag run --fix safe_sdpa your_script.py --epochs 3", "Your script, with the fix"),),
    "env": (("mpsdiag env", "The block for an issue"),),
}


class GroupedCommand(typer.core.TyperCommand):
    """A command whose options stand in the groups that `rich_help_panel` names, without loading rich."""

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
    """What a shell offers for a value that begins so."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


MODELS = completing(lambda: BUILTIN_MODELS)
MODES = completing(lambda: ATTENTION_MODES)
FIXES = completing(lambda: (*ATTENTION_MODES[:5], POSITIONS))  # those of a whole process
TRAINERS = completing(lambda: TRAINER_VARIANTS)
SIDES = completing(lambda: PADDING_SIDES)
PROBES = completing(lambda: import_module("mpsdiag.probes.known").CATALOGUE)
