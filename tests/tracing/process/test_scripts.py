"""Scripts as people write them, watched in this process under the emulation of torch 2.8: planted causes, and clean.

Each is run as `__main__`, as `mpsdiag run` does; what needs a process of its own is in tests/cli/test_run_trace.py.
"""

import os
import runpy
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

import mpsdiag

SCRIPTS = Path(__file__).parents[2] / "scripts"


def watched(monkeypatch, name, *arguments, release="2.8"):
    """What watching a script showed; this file is the outermost user code, and leads to the script."""
    script = str(SCRIPTS / name)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries
        with mpsdiag.emulate_mps(release), mpsdiag.watch() as seen, suppress(RuntimeError, SystemExit):
            runpy.run_path(script, run_name="__main__")
    return seen.report


def line(name, mark):
    text = (SCRIPTS / name).read_text(encoding="utf-8").splitlines()
    return f"{SCRIPTS / name}:{next(number for number, one in enumerate(text, 1) if one.endswith(f'# {mark}'))}"


# A script, its arguments with a planted cause and without, the cause, the marks of the lines on the way to the model.
SIMPLE = [
    ("plain_loop.py", ["padded"], [], "dead_rows", ["HERE", "CALL"]),
    ("hf_trainer.py", ["left"], ["right"], "dead_rows", ["HERE"]),
    ("amp_scaler.py", ["planted"], [], "overflow", ["HERE"]),
    ("outside_loss.py", ["unlabelled"], [], "no_labels", ["HERE"]),
    ("outside_loss.py", ["root"], None, "derivative", ["HERE"]),
    ("outside_loss.py", ["rate"], None, "divergence", ["HERE"]),
    ("outside_loss.py", ["exit"], ["exit-clean"], "bad_inputs", ["HERE"]),
    ("outside_loss.py", ["hand"], None, "bad_inputs", ["HERE"]),
    ("generate.py", ["left"], ["compile"], "dead_rows", ["HERE"]),
    ("likelihoods.py", ["left"], [], "dead_rows", ["HERE"]),
    ("own_trainer.py", ["left"], [], "dead_rows", ["HERE"]),
    ("accelerate_loop.py", ["left"], [], "dead_rows", ["HERE", "CALL"]),
    pytest.param(
        *("seq2seq_trainer.py", ["planted"], [], "bad_mask", ["HERE"]),
        marks=pytest.mark.needs(transformers="5.1"),  # Older ones write finite masks for BART.
    ),
]
FIELD = [
    ("trl", "field_trainers.py", ["sft", "planted"], ["sft", "clean"], "dead_rows", ["HERE"]),
    ("trl", "field_trainers.py", ["dpo", "planted"], ["dpo", "clean"], "dead_rows", ["HERE"]),
    ("trl", "field_trainers.py", ["grpo", "planted"], ["grpo", "clean"], "dead_rows", ["TRAIN"]),
    ("peft", "field_trainers.py", ["peft", "planted"], ["peft", "clean"], "dead_rows", ["HERE"]),
    ("sentence_transformers", "embedding_training.py", ["left"], [], "dead_rows", ["HERE"]),
]


def proves(monkeypatch, name, planted, clean, cause, marks):
    first, *_ = watched(monkeypatch, name, *planted).findings
    assert (first.cause, f"{first.file}:{first.line}") == (cause, first.user_code[0]), first.summary
    assert first.file == __file__
    own = [one for one in first.user_code if one.startswith(str(SCRIPTS))]
    assert own[: len(marks)] == [line(name, mark) for mark in marks]
    if clean is not None:
        report = watched(monkeypatch, name, *clean)
        assert report.findings == []
        assert report.watched.forwards > 0
        assert ("steps that GradScaler skipped" in str(report)) is (name == "amp_scaler.py")


@pytest.mark.parametrize(("name", "planted", "clean", "cause", "marks"), SIMPLE)
def test_the_cause_and_the_line_of_the_script(monkeypatch, name, planted, clean, cause, marks):
    proves(monkeypatch, name, planted, clean, cause, marks)


@pytest.mark.parametrize(("library", "name", "planted", "clean", "cause", "marks"), FIELD)
def test_trainers_of_other_libraries(monkeypatch, library, name, planted, clean, cause, marks):
    pytest.importorskip(library)
    proves(monkeypatch, name, planted, clean, cause, marks)
