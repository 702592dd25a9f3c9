"""`mpsdiag run --trace` on scripts as people write them, in real processes; each takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
MPSDIAG = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]


def traced(tmp_path, script, *arguments, options=("--emulate", "2.8"), **kwargs):
    """The finished process, and the JSON it wrote."""
    done = subprocess.run(
        [*MPSDIAG, "run", *options, "--trace", "--json", str(tmp_path / "seen.json"), script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **kwargs,
    )
    path = tmp_path / "seen.json"
    return done, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def line(script, mark):
    text = Path(script).read_text(encoding="utf-8").splitlines()
    return next(number for number, one in enumerate(text, 1) if one.endswith(f"# {mark}"))


# A script, what plants the cause, the cause, and the mark of the line of the user's code.
PLANTED = [
    ("plain_loop.py", "padded", "dead_rows", "EVAL"),
    ("hf_trainer.py", "left", "dead_rows", "HERE"),
    ("amp_scaler.py", "planted", "overflow", "HERE"),
    ("outside_loss.py", "unlabelled", "no_labels", "HERE"),
    ("outside_loss.py", "root", "derivative", "HERE"),
    ("outside_loss.py", "rate", "divergence", "HERE"),
    ("outside_loss.py", "catches", "bad_inputs", "HERE"),
    ("outside_loss.py", "exit", "bad_inputs", "HERE"),
    ("outside_loss.py", "hand", "bad_inputs", "HERE"),
]


@pytest.mark.parametrize(("name", "plant", "cause", "mark"), PLANTED)
def test_a_planted_cause_stops_the_script_at_its_line(tmp_path, name, plant, cause, mark):
    script = str(SCRIPTS / name)
    done, seen = traced(tmp_path, script, plant)
    assert done.returncode == 1, done.stderr
    assert seen["stopped"] is True
    assert seen["script_exit"] is None
    (finding,) = seen["findings"]
    assert (finding["cause"], finding["file"], finding["line"]) == (cause, script, line(script, mark))
    assert f"{script}:{finding['line']}" in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("plain_loop.py", [], 0),
        ("hf_trainer.py", ["right"], 0),
        ("amp_scaler.py", [], 0),
        ("outside_loss.py", ["exit-clean"], 7),
    ],
)
def test_a_clean_script_ends_as_it_does(tmp_path, name, arguments, code):
    done, seen = traced(tmp_path, str(SCRIPTS / name), *arguments)
    assert done.returncode == code, done.stderr
    assert (seen["findings"], seen["stopped"], seen["script_exit"]) == ([], False, code)
    assert seen["watched"]["forwards"] > 0
    assert "nothing found" in done.stderr


def test_keep_going_finishes_and_counts(tmp_path):
    done, seen = traced(
        tmp_path, str(SCRIPTS / "hf_trainer.py"), "left", options=("--emulate", "2.8", "--keep-going")
    )
    assert done.returncode == 0, done.stderr
    assert "eval_loss nan" in done.stdout
    assert [(f["cause"], f["count"], f["step"]) for f in seen["findings"]] == [("dead_rows", 4, 2)]
    watched = seen["watched"]
    assert (watched["forwards"], watched["backwards"], watched["steps"]) == (6, 2, 2)
    assert watched["masked_rows_nan"] is True
    assert watched["masked_rows"] > 0
