"""`mpsdiag run --trace` in real processes; each takes seconds. What it finds: tests/tracing/process/test_scripts.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpsdiag.cli import main
from mpsdiag.reporting.trace import script_headline
from mpsdiag.tracing.origin import REMEDIES, Origin
from mpsdiag.tracing.process.watched import ScriptCheck, ScriptFinding, ScriptReport, Watched, check_code

SCRIPTS = Path(__file__).parents[1] / "scripts"
MPSDIAG = [sys.executable, "-c", "from mpsdiag.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(tmp_path, script, *arguments, options=("--emulate", "2.8"), what="--trace"):
    return [*MPSDIAG, "run", what, "--json", str(tmp_path / "seen.json"), *options, str(script), *arguments]


def traced(tmp_path, script, *arguments, **kwargs):
    """The finished process, and the JSON it wrote."""
    words = command(tmp_path, script, *arguments, **kwargs)
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280, env=ENVIRONMENT)
    return done, json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))


def written(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(text, encoding="utf-8")
    return script


def line(script, mark):
    text = script.read_text(encoding="utf-8").splitlines()
    return next(number for number, one in enumerate(text, 1) if one.endswith(f"# {mark}"))


def test_a_planted_cause_stops_the_script_and_is_one_block_a_document_and_a_page(tmp_path):
    script, page = SCRIPTS / "plain_loop.py", tmp_path / "page.html"
    done, seen = traced(tmp_path, script, "padded", options=("--emulate", "2.8", "--html", str(page)))
    assert (done.returncode, done.stdout) == (1, "")
    assert (seen["stopped"], seen["script_exit"]) == (True, None)
    (finding,) = seen["findings"]
    assert (finding["cause"], finding["file"], finding["line"]) == ("dead_rows", str(script), line(script, "HERE"))
    assert (finding["step"], finding["count"]) == (3, 1)
    way = [f"{script}:{line(script, 'HERE')}", f"{script}:{line(script, 'CALL')}"]
    assert finding["evidence"]["user_code"] == way
    assert "Traceback" not in done.stderr
    shown = page.read_text(encoding="utf-8")
    assert shown.startswith("<!DOCTYPE html>")
    for where in (done.stderr.replace("\n", ""), shown):
        assert all(one in where for one in ("dead_rows", "plain_loop.py:", "safe_sdpa", "emulated MPS of torch 2.8"))


def test_keep_going_finishes_counts_and_records_what_trace_replays(tmp_path):
    from mpsdiag.tracing.cases.traced_case import TraceRequest
    from mpsdiag.tracing.run import investigate

    folder = tmp_path / "case"
    options = ("--emulate", "2.8", "--keep-going", "--record", str(folder))
    done, seen = traced(tmp_path, SCRIPTS / "hf_trainer.py", "left", options=options)
    assert done.returncode == 0, done.stderr
    assert "eval_loss nan" in done.stdout
    assert [(f["cause"], f["count"], f["step"]) for f in seen["findings"]] == [("dead_rows", 4, 2)]
    assert (seen["stopped"], seen["script_exit"], seen["recorded"]) == (False, 0, str(folder))
    watched = seen["watched"]
    assert (watched["forwards"], watched["backwards"], watched["steps"]) == (6, 2, 2)
    assert watched["models"] == {"LlamaForCausalLM": 6}
    assert watched["masked_rows_nan"] is True
    assert watched["masked_rows"] > 0
    report = investigate(TraceRequest(folder=folder))
    assert (report.origin.cause, report.emulated.release) == ("dead_rows", "2.8")


@pytest.mark.parametrize(
    ("plant", "options", "code", "causes"),
    [("exit", ["--keep-going"], 7, ["bad_inputs"]), ("exit-clean", [], 7, []), ("catches", [], 1, ["bad_inputs"])],
)
def test_the_exit_code_is_the_scripts_own_and_who_catches_everything_is_stopped(tmp_path, plant, options, code, causes):
    done, seen = traced(tmp_path, SCRIPTS / "outside_loss.py", plant, options=options)
    assert done.returncode == code, done.stderr
    assert [finding["cause"] for finding in seen["findings"]][:1] == causes
    assert seen["script_exit"] == (code if code == 7 else None)
    assert ("nothing found in 4 forwards" in done.stderr) is (not causes)


def test_accelerate_launch_is_watched_in_its_child_and_workers_of_a_loader_are_left_alone(tmp_path):
    pytest.importorskip("accelerate")
    script, folder = SCRIPTS / "accelerate_loop.py", tmp_path / "case"
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", str(script), "left"]
    done, seen = traced(tmp_path, *launch, options=["--emulate", "2.8", "--record", str(folder), "-m"])
    assert (done.returncode, seen["stopped"], seen["watched"]["processes"]) == (1, True, 1)
    (finding,) = seen["findings"]
    assert (finding["cause"], finding["file"], finding["line"]) == ("dead_rows", str(script), line(script, "HERE"))
    assert json.loads((folder / "case.json").read_text(encoding="utf-8"))["phase"] == "evaluation"
    assert (folder / "model").is_dir()


RANKS = """
import os, sys, torch
model, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
with torch.no_grad():
    model(values)
    model(values / int(os.environ["LOCAL_RANK"]))
assert "transformers" not in sys.modules
"""


def test_torchrun_is_watched_in_each_of_its_processes(tmp_path):
    script = written(tmp_path, RANKS)
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", str(script)]
    done, seen = traced(tmp_path, *launch, options=["--keep-going", "-m"])
    assert done.returncode == 0, done.stderr
    assert (seen["watched"]["processes"], seen["watched"]["forwards"]) == (2, 4)
    assert [(f["cause"], f["line"], f["count"]) for f in seen["findings"]] == [("bad_inputs", 6, 1)]


BROKEN = """
import torch
torch.nn.Linear(2, 2)(torch.ones(1, 2))
raise LookupError("of the script itself")
"""


def test_a_crash_keeps_its_traceback_and_its_exit_code(tmp_path):
    script = written(tmp_path, BROKEN)
    done, seen = traced(tmp_path, script)
    assert (done.returncode, seen["script_exit"], seen["stopped"]) == (1, 1, False)
    own = f'Traceback (most recent call last):\n  File "{script}", line 4, in <module>\n'
    assert own + '    raise LookupError("of the script itself")\nLookupError: of the script itself\n' in done.stderr


STDIN = """
import os, sys, time, torch
torch.nn.Linear(2, 2)(torch.ones(1, 2))
text = sys.stdin.readline()
if os.fork() == 0:
    torch.nn.Linear(2, 2)(torch.ones(1, 2))
    os._exit(0)
os.wait()
print("read", text, end="", flush=True)
time.sleep(200)
"""


def test_a_script_that_reads_stdin_and_forks_is_interrupted_from_the_keyboard(tmp_path):
    words = command(tmp_path, written(tmp_path, STDIN))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, env=ENVIRONMENT, start_new_session=True) as process:
        process.stdin.write("something\n")
        process.stdin.flush()
        assert process.stdout.readline() == "read something\n"
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to all in the foreground.
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr
    assert "mpsdiag" not in stderr.partition("Traceback")[2].partition("KeyboardInterrupt")[0]
    assert "nothing found in 1 forward" in stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "There is no script"),
        ("", "a folder without a __main__.py"),
        ("#!/bin/bash\npython train.py\n", "a script for bash, not for Python"),
        ("\x7fELF\x02\x01", "is a program, not a Python file"),
    ],
)
def test_what_is_no_script_is_named(tmp_path, capsys, text, sentence):
    script = tmp_path / "script.py"
    if text == "":
        script.mkdir()
    elif text is not None:
        script.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["run", "--trace", str(script)])
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("what", ["--trace", "--check"])
def test_exit_code_3_stays(tmp_path, what):
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["run", what, str(script)])
    assert ended.value.code == 3


def test_a_finding_elsewhere_in_the_script_counts_in_a_check():
    check = ScriptCheck(model="Linear", device="cpu", batches=1)
    origin = Origin(
        cause="bad_inputs", operation="linear", phase="data", summary="bad", evidence={}, remedy=REMEDIES["loss"]
    )
    report = ScriptReport(check=check, findings=[ScriptFinding(**vars(origin))], watched=Watched(forwards=2))
    assert check_code(report) == 1
    assert script_headline(report).startswith("bad_inputs")
    clean = ScriptReport(check=check, watched=Watched(forwards=2))
    assert check_code(clean) == 3
    assert script_headline(clean).startswith("not affected")


def test_trace_and_check_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--trace", "--check", str(SCRIPTS / "plain_loop.py")])
    assert ended.value.code == 2
    assert "cannot be combined" in " ".join(capsys.readouterr().err.split())


def test_check_answers_for_the_scripts_model_and_batches(tmp_path):
    done, seen = traced(tmp_path, SCRIPTS / "hf_trainer.py", "left", what="--check")
    found = seen["check"]
    assert (done.returncode, found["model"], found["batches"]) == (1, "LlamaForCausalLM", 4)
    assert (found["evaluation"], found["finite"], found["exposure"]["rows"] > 0) == (True, False, True)
    assert found["fixes"] == {"eager": True, "safe_sdpa": True}
    assert found["invariance"]["verdict"] == "varies"
    assert "eval_loss" not in done.stdout  # it was stopped there
    assert "safe_sdpa" in done.stderr
