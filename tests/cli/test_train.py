"""`mpsdiag train` and `python train.py`: exit codes, and real processes that are killed and interrupted."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpsdiag.cli import main

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"
QUIET = ["--disable_tqdm", "true", "--device", "cpu"]


def ended(words):
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, words)])
    return caught.value.code


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_help_is_the_pipelines_own_and_complete(capsys):
    assert ended(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: mpsdiag train" in shown
    for option in ("--attn_implementation", "--disable_mps_fix", "--learning_rate", "--eval_strategy"):
        assert option in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "pretain"], "Did you mean 'pretrain'?"),
        (["--text_column", "nothing"], "has no column 'nothing'"),
        (["--resume_from_checkpoint", "/"], "is not a checkpoint to resume from"),
        (["--output_dir", "/proc/nowhere/x"], "Cannot write into"),
        (["--seed", "-1"], "--seed is -1; give a number from 0 to 4294967295"),
        (["--seed", "4294967296"], "--seed is 4294967296"),
        (["--device", "auto", "--emulate", "2.8", "--dtype", "float64"], "MPS does not support float64"),
        (["--no_such_option"], "Unknown argument '--no_such_option'"),
    ],
)
def test_bad_input_is_one_sentence_and_2(tmp_path, capsys, words, sentence):
    assert ended(["--output_dir", tmp_path, *QUIET, *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mpsdiag: ")
    assert sentence in last


def arguments(folder, **options):
    """A run of short lines that takes a second or two and saves every 5 steps."""
    given = {"output_dir": folder, "max_steps": 40, "save_steps": 5, "logging_steps": 1, "max_length": 64, **options}
    return [*(word for key, value in given.items() for word in (f"--{key}", str(value))), *QUIET]


def start(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(arguments(folder)) == 0
    return summary_of(folder)


@pytest.mark.needs(torch="2.6")  # Beside an older one transformers reads no optimizer.
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_half_way_it_resumes_and_reaches_the_same_losses(tmp_path, undisturbed, how, code):
    process = start(arguments(tmp_path))
    wait_for(tmp_path / "checkpoint-10", process)  # Then that of step 5 is whole.
    process.send_signal(how)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == code
    if how == signal.SIGINT:
        assert "Interrupted at step" in shown
        assert "Traceback" not in shown
        assert summary_of(tmp_path)["status"] == "interrupted"
    steps = [int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*")]
    assert max(steps) < 40, "it was stopped half-way"
    assert ended([*arguments(tmp_path), "--resume_from_checkpoint", "latest"]) == 0
    resumed = summary_of(tmp_path)
    assert resumed["resumed_from"] is not None
    assert resumed["losses"] == undisturbed["losses"]
    assert resumed["eval_loss"] == undisturbed["eval_loss"]


@pytest.fixture
def wikitext_run(wikitext, tmp_path, capsys):
    """The command of the mission on real text, shortened: (summary, stderr)."""

    def go(name, *words):
        folder = tmp_path / name
        given = ["--model", "tiny-gpt2", "--dataset", wikitext / "valid.txt", "--mode", "pretrain", "--max_steps", "20"]
        short = ["--max_length", "96", "--max_samples", "400", "--per_device_train_batch_size", "4"]
        assert ended([*given, *short, "--disable_tqdm", "true", "--output_dir", folder, *words]) == 0
        return summary_of(folder), capsys.readouterr().err

    return go


@pytest.mark.needs(transformers="4.56")  # Older ones write finite masks for GPT-2.
def test_on_real_text_the_fix_gives_a_finite_loss_and_without_it_it_is_nan(wikitext_run):
    fixed, shown = wikitext_run("fixed", "--emulate", "2.8")
    assert math.isfinite(fixed["eval_loss"])
    assert "Using MPSSafeTrainer for MPS device (prevents NaN eval loss)" in shown.splitlines()
    broken, shown = wikitext_run("broken", "--emulate", "2.8", "--disable_mps_fix")
    assert broken["eval_loss"] == "nan"
    assert math.isfinite(broken["train_loss"])
    assert "⚠️  WARNING: MPS device detected but MPS fix disabled via --disable_mps_fix" in shown.splitlines()


@pytest.mark.needs(transformers="4.56")  # Older ones write finite masks for GPT-2.
def test_on_real_text_safe_sdpa_has_the_loss_of_the_run_without_emulation(wikitext_run):
    plain, _ = wikitext_run("plain", "--device", "cpu", "--attn_implementation", "safe_sdpa")
    emulated, _ = wikitext_run("emulated", "--emulate", "2.8", "--attn_implementation", "safe_sdpa")
    assert emulated["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)
    assert f"{emulated['eval_loss']:.4f}" == f"{plain['eval_loss']:.4f}"
