"""`mpsdiag env`: the machine, as a block to paste into an issue."""

from __future__ import annotations

import typer

from mpsdiag.cli import options, output


def env(json: options.Json = False) -> None:
    """Describe this machine; home folder, user and host name and tokens are left out. Exit code: 0."""
    from mpsdiag import device
    from mpsdiag.environment import default_attention, gather, to_markdown

    found = gather(device.accelerators(), default_attention())
    if json:
        from mpsdiag.serialization import dumps

        output.show_document(dumps({"schema": 1, **found.model_dump()}, indent=2))
    else:
        output.show_document(to_markdown(found))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(env)
