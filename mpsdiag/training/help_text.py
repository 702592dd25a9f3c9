"""The help of the pipeline: rendered from its parser, and kept in a file that is shown without loading torch.

Options of transformers' own are named with their values and defaults; what they mean, its documentation says.

After a change of the options: `MPSDIAG_UPDATE_GOLDEN=1 pytest tests/training/test_help_text.py`.
"""

from __future__ import annotations

import argparse
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("help.txt")
_WIDTH: Final = 100
_THEIRS: Final = "Options of transformers.TrainingArguments, with their defaults, as of transformers "


def kept_help() -> str:
    """The help as it is kept, with a line about another release of transformers, where one is installed."""
    text = FILE.read_text(encoding="utf-8")
    described = text.partition(_THEIRS)[2].partition(":")[0]
    installed = metadata.version("transformers")
    if installed == described:
        return text
    return (
        f"{text}\nInstalled is transformers {installed}, whose own options are taken; they may be others.\n"
    )


def render(parser: argparse.ArgumentParser, own: frozenset[str]) -> str:
    """Every option of the parser, with its help and its default."""
    actions = [action for action in parser._actions if action.option_strings]  # noqa: SLF001 - no public list
    lines = [
        f"usage: {parser.prog} [OPTIONS]",
        "",
        str(parser.description),
        "Of an option's name, underscores may be written as dashes.",
    ]
    lines += ["", "Options:"]
    for action in actions:
        if action.dest in {*own, "help"}:
            lines += [_named(action), *_explained(action)]
    lines += ["", f"{_THEIRS}{metadata.version('transformers')}:"]
    lines += [_named(action) for action in actions if action.dest not in {*own, "help"}]
    return "\n".join(lines) + "\n"


def _named(action: argparse.Action) -> str:
    return f"  {', '.join(_spellings(action))}{_value(action)}"


def _explained(action: argparse.Action) -> list[str]:
    words = " ".join(str(action.help or "").replace("%%", "%").split())
    return textwrap.wrap(words, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _spellings(action: argparse.Action) -> list[str]:
    """The names of an option, without those that differ by dashes only."""
    return [word for word in action.option_strings if "-" not in word.lstrip("-")]


def _value(action: argparse.Action) -> str:
    """What follows the name: ` VALUE [default]`."""
    if action.nargs == 0:
        return ""
    value = "true|false" if action.nargs == "?" else "VALUE"
    return f" {value}" if action.default is None else f" {value} [{_shown(action.default)}]"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
