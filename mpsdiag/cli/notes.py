"""Notes on stderr about options that were given and have no effect."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from mpsdiag.cli.output import say


def note_without_effect(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Name those of some options that stand on the command line, and say why they do nothing there.

    Args:
        context: Of the command.
        names: Of its parameters.
        why: Such as `without --emulate`.
    """
    given = [name for name in names if _is_given(context, name)]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        has = "has" if len(given) == 1 else "have"
        say(f"note: {words} {has} no effect {why}.")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
