"""`mpsdiag train`: the training pipeline. Its options are dataclasses, parsed by transformers' own parser."""

import typer

from mpsdiag.words import EXIT_OK


def train(context: typer.Context) -> None:
    """Train or evaluate a language model, with the fix for NaN on MPS.

    It also accepts all options of transformers' TrainingArguments; `mpsdiag train --help` lists them.
    """
    if {"--help", "-h"} & set(context.args):
        from mpsdiag.training.help_text import kept_help

        typer.echo(kept_help(), nl=False)
        raise typer.Exit(EXIT_OK)
    from mpsdiag.environment import require_working_pair

    require_working_pair()
    from mpsdiag.training.pipeline import main

    raise typer.Exit(main(context.args))
