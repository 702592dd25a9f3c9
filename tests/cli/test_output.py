"""How commands print: on pseudo-terminals, as wide and as colourful as those are."""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mpsdiag.cli import output
from mpsdiag.reporting.layout.blocks import Document

JOURNAL = Path(__file__).parent.parent / "data" / "every_end.jsonl"
ESCAPE = "\x1b["


COMMAND = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]
REPORT = ["report", str(JOURNAL)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Words of a bench with nothing left to do: it shows its report again."""
    small = [
        "--attn-implementation",
        "sdpa",
        "--attn-implementation",
        "eager",
        "--trainer",
        "standard",
        "--padding-side",
        "left",
    ]
    few = ["--max-length", "64", "--max-steps", "1", "--eval-max-batches", "1", "--rounds", "0"]
    words = ["bench", "--device", "cpu", *small, *few, "--out", str(tmp_path_factory.mktemp("bench"))]
    subprocess.run([*COMMAND, *words], capture_output=True, check=True, timeout=240)
    return words


def on_a_terminal(words, columns=100, **environment):
    """What a terminal of so many columns gets to see."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=theirs, stderr=subprocess.DEVNULL, env={**kept, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:
        pass  # Linux: the other side is closed
    os.close(ours)
    assert process.wait(240) == 0
    return b"".join(parts).decode()


def test_a_report_is_as_wide_as_the_terminal_and_coloured():
    wide, narrow = (on_a_terminal(REPORT, columns) for columns in (160, 80))
    assert ESCAPE in wide
    assert longest(narrow) <= 80 < longest(wide) <= 160


def test_so_is_that_of_a_bench(bench):
    assert longest(on_a_terminal(bench, 70)) <= 70


def test_a_bench_leaves_colours_out_where_they_are_not_wanted(bench):
    assert ESCAPE not in on_a_terminal(bench, NO_COLOR="1")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_so_does_a_report(environment):
    assert ESCAPE not in on_a_terminal(REPORT, **environment)


@pytest.mark.parametrize(("environment", "colors"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_the_console_of_check_and_trace_does_as_the_reports(monkeypatch, environment, colors):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, value in {"NO_COLOR": "", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.show_answer({}, Document("check", "affected", "affected", ()), as_json=False, markdown=False)
    assert (ESCAPE in terminal.getvalue()) is colors


def longest(text):
    return max(len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) for line in text.splitlines())


def test_width_stays_within_reason(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size((20, 24)))
    assert output.width() == output.LEAST_COLUMNS


def test_a_sentence_is_one_line_and_says_who_says_it(capsys):
    output.say("first\nsecond \x1b[31m")
    assert capsys.readouterr().err == "mpsdiag: first second\n"
