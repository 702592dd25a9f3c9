"""Notes on stderr about options: those that have no effect, and those that have a new name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import typer

from mpsdiag.cli.output import say

NEW_NAMES: Final = {
    "--attention": "--attn-implementation",
    "--padding": "--padding-side",
    "--sequence-length": "--max-length",
    "--train-steps": "--max-steps",
    "--eval-batches": "--eval-max-batches",
    "--steps": "--max-steps",
    "--batches": "--eval-max-batches",
}
"""Options that had names of our own before they got Hugging Face's."""


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
    """Name those of some options that stand on the command line, and say why they do nothing there."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        has = "has" if len(given) == 1 else "have"
        say(f"note: {words} {has} no effect {why}.")
