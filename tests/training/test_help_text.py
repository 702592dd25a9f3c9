"""The help that is kept in a file says what the parser takes."""

import argparse
import os
from importlib.metadata import version

import pytest

from mpsdiag.training import help_text
from mpsdiag.training.command_line import make_parser

TESTED = {"torch": "2.13", "transformers": "5.23.0"}
REGENERATE = "MPSDIAG_UPDATE_GOLDEN=1 pytest tests/training/test_help_text.py"


def own_part(text):
    return text.partition("Options of transformers.TrainingArguments")[0]


def test_the_kept_help_is_the_parsers_own():
    rendered = make_parser().format_help()
    if "MPSDIAG_UPDATE_GOLDEN" in os.environ:
        help_text.FILE.write_text(rendered, encoding="utf-8", newline="\n")
    kept = help_text.FILE.read_text(encoding="utf-8")
    assert own_part(kept) == own_part(rendered), REGENERATE
    if not all(version(name).startswith(release) for name, release in TESTED.items()):
        pytest.skip("TrainingArguments are described as of the releases in constraints.txt")
    assert kept == rendered, REGENERATE


def test_every_option_is_in_it():
    text = make_parser().format_help()
    for action in make_parser()._actions:
        assert f"  {action.option_strings[0]}" in text


def test_another_release_of_transformers_is_named(monkeypatch):
    monkeypatch.setattr(help_text.metadata, "version", lambda name: "4.53.0")
    assert help_text.kept_help().endswith(
        "The installed transformers 4.53.0 may have other options; those are the ones that count.\n"
    )


def test_values_and_defaults_are_shown():
    parser = argparse.ArgumentParser(prog="p", description="d")
    parser.add_argument("--a_b", "--a-b", default=3, help="50%% of\n  it")
    parser.add_argument("--flag", nargs="?", default=False, choices=(True, False))
    parser.add_argument("--many", nargs="+", default=["x", "y"])
    parser.add_argument("--theirs", default=None, help="What its documentation says.")
    lines = help_text.render(parser, frozenset({"a_b"})).splitlines()
    assert lines[lines.index("  --a_b VALUE [3]") + 1] == "      50% of it"
    assert lines[-3:] == ["  --flag true|false [false]", "  --many VALUE [x y]", "  --theirs VALUE"]
