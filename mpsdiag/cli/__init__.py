"""The command line: one file a command, no logic. Heavy imports happen inside the commands."""

from mpsdiag.cli.main import main

__all__ = ["main"]
