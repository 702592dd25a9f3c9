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


def traced(tmp_path, script, *arguments, options=("--emulate", "2.8"), what="--trace", **kwargs):
    """The finished process, and the JSON it wrote."""
    done = subprocess.run(
        [*MPSDIAG, "run", what, "--json", str(tmp_path / "seen.json"), *options, script, *arguments],
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
    ("generate.py", "left", "dead_rows", "HERE"),
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
    assert ("Traceback" in done.stderr) is (name == "generate.py")  # sampling itself fails on NaN


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("plain_loop.py", [], 0),
        ("hf_trainer.py", ["right"], 0),
        ("amp_scaler.py", [], 0),
        ("outside_loss.py", ["exit-clean"], 7),
        ("generate.py", ["compile"], 0),
    ],
)
def test_a_clean_script_ends_as_it_does(tmp_path, name, arguments, code):
    done, seen = traced(tmp_path, str(SCRIPTS / name), *arguments)
    assert done.returncode == code, done.stderr
    assert (seen["findings"], seen["stopped"], seen["script_exit"]) == ([], False, code)
    assert seen["watched"]["forwards"] > 0
    assert "nothing found" in done.stderr


def test_keep_going_finishes_and_counts(tmp_path):
    done, seen = traced(tmp_path, str(SCRIPTS / "hf_trainer.py"), "left", options=("--emulate", "2.8", "--keep-going"))
    assert done.returncode == 0, done.stderr
    assert "eval_loss nan" in done.stdout
    assert [(f["cause"], f["count"], f["step"]) for f in seen["findings"]] == [("dead_rows", 4, 2)]
    watched = seen["watched"]
    assert (watched["forwards"], watched["backwards"], watched["steps"]) == (6, 2, 2)
    assert watched["masked_rows_nan"] is True
    assert watched["masked_rows"] > 0


@pytest.mark.parametrize("plant", ["left", "right"])
def test_accelerate_launch_is_watched_in_its_child(tmp_path, plant):
    pytest.importorskip("accelerate")
    script, folder = str(SCRIPTS / "accelerate_loop.py"), tmp_path / "case"
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", script, plant]
    options = ["--emulate", "2.8", "--record", str(folder), "-m"]
    done, seen = traced(tmp_path, *launch, options=options)
    assert seen["watched"]["processes"] == 1
    if plant == "right":
        assert (done.returncode, seen["findings"]) == (0, [])
        return
    assert (done.returncode, seen["stopped"]) == (1, True)
    (finding,) = seen["findings"]
    assert (finding["cause"], finding["file"]) == ("dead_rows", script)
    assert finding["line"] == line(script, "HERE")
    assert json.loads((folder / "case.json").read_text(encoding="utf-8"))["phase"] == "evaluation"
    assert (folder / "model").is_dir()


BROKEN = """
import sys, torch
torch.nn.Linear(2, 2)(torch.ones(1, 2))
raise LookupError("of the script itself")
"""


def test_a_crash_keeps_its_traceback_and_its_exit_code(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN, encoding="utf-8")
    done, seen = traced(tmp_path, str(script))
    assert (done.returncode, seen["script_exit"], seen["stopped"]) == (1, 1, False)
    assert "LookupError: of the script itself" in done.stderr
    assert "mpsdiag/" not in done.stderr.partition("LookupError")[0]


STDIN = """
import os, sys, torch
text = sys.stdin.read()
if os.fork() == 0:
    torch.nn.Linear(2, 2)(torch.ones(1, 2))
    os._exit(0)
os.wait()
print("read", text)
os.kill(os.getpid(), 2) if "interrupt" in text else None
"""


@pytest.mark.parametrize(("text", "code"), [("plain", 0), ("interrupt", -2)])
def test_a_script_that_reads_stdin_forks_and_is_interrupted(tmp_path, text, code):
    script = tmp_path / "reads.py"
    script.write_text(STDIN, encoding="utf-8")
    done, _ = traced(tmp_path, str(script), input=text)
    assert (done.returncode, done.stdout) == (code, f"read {text}\n")
    assert "nothing was watched" in done.stderr


@pytest.mark.parametrize(
    ("target", "sentence"), [("none.py", "No script none.py"), (str(SCRIPTS), "a folder without a __main__.py")]
)
def test_what_is_no_script_is_named(tmp_path, target, sentence):
    done, _ = traced(tmp_path, target)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("side", "code", "resolves"), [("left", 1, True), ("right", 0, True)])
def test_check_answers_for_the_scripts_model_and_batches(tmp_path, side, code, resolves):
    done, seen = traced(tmp_path, str(SCRIPTS / "hf_trainer.py"), side, what="--check")
    found = seen["check"]
    assert (done.returncode, found["model"], found["batches"]) == (code, "LlamaForCausalLM", 4)
    assert found["evaluation"] is True
    assert found["finite"] is (side == "right")
    assert (found["exposure"]["rows"] > 0) is (side == "left")
    assert found["fixes"] == {"eager": resolves, "safe_sdpa": resolves}
    assert "eval_loss" not in done.stdout  # it was stopped there
    if side == "right":
        assert found["padding_error"] <= found["padding_bound"]


def test_trace_and_check_exclude_each_other(tmp_path):
    done, _ = traced(tmp_path, str(SCRIPTS / "plain_loop.py"), options=("--check",))
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


@pytest.mark.parametrize(("library", "kind", "cause"), [("peft", "peft", "dead_rows"), ("trl", "sft", None)])
def test_trainers_of_other_libraries(tmp_path, library, kind, cause):
    """TRL's collator for SFT pads on the right, whatever the tokenizer says: nothing to find."""
    pytest.importorskip(library)
    script = str(SCRIPTS / "field_trainers.py")
    done, seen = traced(tmp_path, script, kind, "left")
    assert done.returncode == (1 if cause else 0), done.stderr
    assert [(f["cause"], f["line"]) for f in seen["findings"]] == ([(cause, line(script, "HERE"))] if cause else [])
    assert set(seen["watched"]["models"]) <= {"PeftModel", "PeftModelForCausalLM", "LlamaForCausalLM"}
