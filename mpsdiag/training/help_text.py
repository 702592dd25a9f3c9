"""The help of the pipeline: rendered from its parser, and saved in a file that is shown without loading torch.

Options of transformers are listed with their values and defaults; its documentation explains them.

After a change of the options: `MPSDIAG_UPDATE_GOLDEN=1 pytest tests/training/test_help_text.py`.
"""

import argparse
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("help.txt")
_WIDTH: Final = 100
_INDENT: Final = " " * 6
_THEIRS: Final = "Options of transformers.TrainingArguments, with their defaults, as of transformers "


def kept_help() -> str:
    """The saved help, with a line about the installed transformers if that is another release."""
    text = FILE.read_text(encoding="utf-8")
    described = text.partition(_THEIRS)[2].partition(":")[0]
    installed = metadata.version("transformers")
    if installed == described:
        return text
    return f"{text}\nThe installed transformers {installed} may have other options; those are the ones that count.\n"


def render(parser: argparse.ArgumentParser, own: set[str]) -> str:
    """Every option of the parser, with its help and its default."""
    actions = [action for action in parser._actions if action.option_strings]  # noqa: SLF001 - no public list
    ours = [action for action in actions if action.dest in {*own, "help"}]
    lines = [
        f"usage: {parser.prog} [OPTIONS]\n\n{parser.description}",
        "Underscores in option names may be written as dashes.\n\nOptions:",
    ]
    for action in ours:
        words = " ".join(str(action.help or "").replace("%%", "%").split())
        lines += [_named(action), *textwrap.wrap(words, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)]
    lines += [f"\n{_THEIRS}{metadata.version('transformers')}:"]
    lines += [_named(action) for action in actions if action not in ours]
    return "\n".join(lines) + "\n"


def _named(action: argparse.Action) -> str:
    """The names of an option, without those that differ only in dashes, and ` VALUE [default]`."""
    names = "  " + ", ".join(word for word in action.option_strings if "-" not in word.lstrip("-"))
    if action.nargs == 0:
        return names
    value = "true|false" if action.nargs == "?" else "VALUE"
    return f"{names} {value}" + ("" if action.default is None else f" [{_shown(action.default)}]")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
