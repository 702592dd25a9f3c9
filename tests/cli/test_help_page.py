"""`--help`: groups, examples that can be run, and what a shell completes."""

import os
import shlex
import subprocess
import sys

import pytest
import typer.main

from mpsdiag.cli import main
from mpsdiag.cli import options as help_page
from mpsdiag.cli.main import app

COMMANDS = typer.main.get_command(app).commands
GROUPED = ("check", "trace")


@pytest.mark.parametrize("command", GROUPED)
def test_options_stand_in_groups(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    places = [out.index(f"{group}:\n") for group in (help_page.WHAT, help_page.WHERE, help_page.OUTPUT)]
    assert places == sorted(places)
    assert places[0] < out.index("--model") < places[1] < out.index("--emulate ") < places[2] < out.index("--html")
    assert out.index("Examples:\n") > places[2]


@pytest.mark.parametrize(
    ("command", "line"), [(command, line) for command, examples in help_page.EXAMPLES.items() for line, _ in examples]
)
def test_every_example_is_understood(command, line):
    """Parsed, not run: a name or a value that does not exist is an error."""
    words = shlex.split(line)
    assert words[:2] == ["mpsdiag", command]
    COMMANDS[command].make_context(command, words[2:])


def test_every_command_has_an_example():
    assert set(help_page.EXAMPLES) | {"train"} == set(COMMANDS)


def test_completion_knows_models_modes_and_probes():
    assert help_page.MODELS("tiny-g") == ["tiny-gpt2"]
    assert help_page.MODES("safe") == ["safe_sdpa"]
    assert "SDPA003" in help_page.PROBES("SDPA00")
    assert help_page.FIXES("") == ["sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa", "positions"]
    assert help_page.TRAINERS("mps") == ["mps_safe"]


def test_a_shell_is_answered():
    done = subprocess.run(
        [sys.executable, "-c", "from mpsdiag.cli.main import main; main()"],
        env={
            **os.environ,
            "_MPSDIAG_COMPLETE": "complete_bash",
            "COMP_WORDS": "mpsdiag check --model tiny-g",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["tiny-gpt2"], done.stderr
