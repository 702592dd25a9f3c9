"""The pipeline in this process: messages, numbers, exit codes, summary."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
import transformers
from transformers import Trainer, TrainerCallback

from mpsdiag.environment import version_numbers
from mpsdiag.errors import BadInput
from mpsdiag.training import pipeline
from mpsdiag.training.console import FIX_DISABLED, USING_SAFE_TRAINER, USING_STANDARD_TRAINER

DISABLED_ON_MPS = """\
⚠️  WARNING: MPS device detected but MPS fix disabled via --disable_mps_fix
    You may experience NaN eval_loss during evaluation.
    To enable the fix, remove the --disable_mps_fix flag.
Using standard HuggingFace Trainer
"""


@pytest.fixture
def lines(tmp_path):
    """Text of unequal lines, without a validation split."""
    from mpsdiag.inputs.texts import synthetic_texts

    file = tmp_path / "lines.txt"
    file.write_text("\n".join(synthetic_texts(60)), encoding="utf-8")
    return str(file)


@pytest.fixture
def run(tmp_path, lines, capsys):
    """Run the pipeline on a few short lines: (exit code, summary, stdout, stderr)."""

    def go(*words, name="out", **options):
        defaults = {
            "dataset": lines,
            "max_length": 96,
            "validation_fraction": 0.2,
            "max_steps": 4,
            "logging_steps": 1,
            "output_dir": str(tmp_path / name),
            "disable_tqdm": True,
            "device": "cpu",
        }
        if "emulate" in options:
            del defaults["device"]
        given = {**defaults, **options}
        arguments = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        code = pipeline.main([*arguments, *words])
        shown = capsys.readouterr()
        summary = json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8"))
        return code, summary, shown.out, shown.err

    return go


def test_a_plain_run_on_the_cpu(run, tmp_path):
    code, summary, out, err = run()
    assert code == 0
    assert err.splitlines()[-1] != ""
    assert USING_STANDARD_TRAINER in err.splitlines()
    assert "WARNING: MPS" not in err
    assert "no effect" not in err
    assert summary["status"] == "finished"
    assert summary["schema"] == 1
    assert (summary["attention"], summary["trainer"], summary["emulated"]) == ("sdpa", "Trainer", None)
    assert [row["step"] for row in summary["losses"]["train"]] == [1, 2, 3, 4]
    assert math.isfinite(summary["eval_loss"])
    assert f"eval_loss = {summary['eval_loss']:.4f}" in out
    assert "{" not in out, "the Trainer's log belongs to stderr"
    assert {"torch", "transformers", "mpsdiag", "python"} <= set(summary["versions"])
    assert summary["arguments"]["training"]["max_steps"] == 4
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "checkpoint-4" / "model.safetensors").is_file()


def test_it_says_what_labels_predicted_at_padding_make_of_eval_loss(run, monkeypatch):
    evaluated, measured = [], pipeline._first_label

    def beside(trainer):
        for batch in trainer.get_eval_dataloader():
            printed = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)[0]
            with torch.no_grad():
                mean = trainer.model(**batch).loss
            labels = (batch["labels"][:, 1:] != -100).sum()
            evaluated.append([float(printed), len(batch["labels"]), float(mean), int(labels)])
        return measured(trainer)

    monkeypatch.setattr(pipeline, "_first_label", beside)
    _, summary, out, _ = run(max_steps=1)
    losses = summary["first_label"]
    assert summary["nonfinite"]["eval_batches_seen"] == summary["nonfinite"]["train_batches_seen"] + 1
    # The first batches are all that there are. The Trainer averages its losses of the batches over the sequences; that
    # of 4.57 divides each by all labels, also by those at the first position, which nothing predicts.
    printed, sequences, means, labels = np.array(evaluated).T
    assert summary["eval_loss"] == pytest.approx(np.average(printed, weights=sequences), abs=5e-5)
    assert losses["eval_loss"] == pytest.approx(np.average(means, weights=labels), abs=5e-5)
    if version_numbers(transformers.__version__) >= (5, 23):
        np.testing.assert_allclose(printed, means, rtol=1e-6)
    assert losses["eval_loss_without"] == pytest.approx(losses["eval_loss_alone"], abs=5e-5)
    assert losses["eval_loss"] != pytest.approx(losses["eval_loss_without"], abs=1e-4)
    (line,) = (line for line in out.splitlines() if line.startswith("first_label = "))
    assert f"it is {losses['eval_loss']:.6g} with them, {losses['eval_loss_without']:.6g} without" in line
    _, summary, out, _ = run(max_steps=1, padding_side="right", name="right")
    assert summary["first_label"] is None
    assert "first_label" not in out


def test_on_mps_the_fix_is_on_and_says_so(run):
    code, summary, _, err = run(emulate="2.8")
    assert code == 0
    assert math.isfinite(summary["eval_loss"])
    assert (summary["attention"], summary["trainer"], summary["mps_fix"]) == ("eager", "MPSSafeTrainer", True)
    assert summary["emulated"] == "emulated MPS of torch 2.8 on macOS 15"
    assert USING_SAFE_TRAINER in err.splitlines()
    assert "attention switched from sdpa to eager on emulated MPS of torch 2.8 on macOS 15" in err
    assert "--attn_implementation safe_sdpa" in err
    assert "To silence this warning: --attn_implementation eager" in err


def test_eager_asked_for_is_no_switch_and_no_warning(run):
    _, summary, _, err = run(emulate="2.8", attn_implementation="eager", max_steps=1)
    assert summary["attention"] == "eager"
    assert "switched" not in err


def test_with_the_fix_disabled_the_evaluation_is_nan_and_the_warning_stands(run):
    code, summary, _, err = run("--disable_mps_fix", emulate="2.8")
    assert code == 0
    assert DISABLED_ON_MPS in err
    assert summary["eval_loss"] == "nan"
    assert all(math.isfinite(row["loss"]) for row in summary["losses"]["train"])
    assert (summary["attention"], summary["trainer"]) == ("sdpa", "Trainer")
    assert summary["nonfinite"]["eval_batches"] == summary["nonfinite"]["eval_batches_seen"] > 0
    assert "switched" not in err


def logged(folder):
    """What stands in TensorBoard's event files: tag to values."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(value.simple_value)
    return found


def test_tensorboard_gets_our_counts_of_the_evaluation(run, tmp_path):
    _, summary, _, _ = run("--disable_mps_fix", emulate="2.8", report_to="tensorboard", max_steps=1)
    found = logged(tmp_path / "out")
    assert math.isnan(found["eval/loss"][-1])
    assert found["eval/nonfinite_batches"] == [summary["nonfinite"]["eval_batches"]] != [0]
    assert "train/nonfinite_train_batches" not in found


def test_tensorboard_gets_our_counts_of_the_training(run, tmp_path):
    _, summary, _, _ = run(model="tiny-gpt2", report_to="tensorboard", learning_rate=1e6, lr_scheduler_type="constant")
    found = logged(tmp_path / "out")
    assert found["train/nonfinite_train_batches"][-1] == summary["nonfinite"]["train_batches"] > 0
    assert found["eval/nonfinite_batches"] == [summary["nonfinite"]["eval_batches"]]


def test_a_macos_without_an_emulation_is_said_to_do_nothing(run):
    _, _, _, err = run(emulate_macos=14, max_steps=1)
    assert "WARNING: --emulate_macos has no effect without --emulate." in err.splitlines()


@pytest.mark.parametrize("tqdm", [True, False])
def test_under_emulation_it_says_so_first_and_times_nothing(run, tmp_path, tqdm):
    _, summary, out, err = run("--disable_mps_fix", emulate="2.8", disable_tqdm=not tqdm, eval_steps=2)
    first = "EMULATED MPS of torch 2.8 on macOS 15 (on the CPU): nothing here was measured on MPS."
    assert err.startswith(first)
    assert f"train_loss = {summary['train_loss']:.4f} (emulated)" in out.splitlines()
    assert "eval_loss = nan (emulated)" in out.splitlines()
    rows = [line for line in err.splitlines() if line.startswith("{")]
    assert any("'eval_loss'" in row for row in rows) or tqdm  # no bar, no row, after the training
    assert any("'loss'" in row for row in rows)
    assert all("'emulated': True" in row for row in rows)
    assert "_runtime" not in err
    assert "per_second" not in err
    assert summary["seconds"] is None
    assert len(summary["losses"]["evaluation"]) == 1
    assert "runtime" not in (tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8")


def test_without_emulation_it_is_timed_and_nothing_is_marked(run):
    _, summary, out, err = run(max_steps=1)
    assert "emulated" not in (out + err).lower()
    assert "eval_runtime" in err
    assert summary["seconds"] > 0


def test_off_mps_the_flag_changes_nothing(run):
    _, _, _, err = run("--disable_mps_fix", max_steps=1)
    assert USING_STANDARD_TRAINER in err.splitlines()
    assert FIX_DISABLED not in err


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("tiny-gpt2", marks=pytest.mark.needs(transformers="4.56")),  # Older ones write finite masks here.
        "tiny-mistral",
    ],
)
def test_safe_sdpa_under_emulation_has_the_loss_of_the_run_without(run, model):
    options = {"attn_implementation": "safe_sdpa", "model": model}
    _, plain, out, _ = run(name="plain", **options)
    _, emulated, same, _ = run(name="emulated", emulate="2.8", **options)
    # The emulated kernel rounds as it does itself, and training adds up the differences; NaN rows would be far above.
    assert emulated["eval_loss"] == pytest.approx(plain["eval_loss"], rel=2e-5)
    for lines, summary, mark in ((out, plain, ""), (same, emulated, " (emulated)")):
        (line,) = (line for line in lines.splitlines() if line.startswith("eval_loss"))
        assert line == f"eval_loss = {summary['eval_loss']:.4f}{mark}"
    assert emulated["nonfinite"]["eval_on_cpu"] == 0


def test_a_trained_folder_is_evaluated_to_the_same_loss(run, tmp_path, lines):
    _, trained, _, _ = run(eval_dataset=lines, name="trained")
    code, again, _, err = run(model=str(tmp_path / "trained"), mode="evaluate", name="again")
    assert code == 0
    assert again["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-6)
    assert again["losses"]["train"] == []
    assert again["examples"]["train"] is None
    assert "random" not in err


def test_fine_tuning_on_completions(run, tmp_path):
    rows = [{"prompt": f"What is {i} + 1? ", "completion": str(i + 1)} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _, summary, _, err = run(mode="sft", dataset=str(file), padding_side="right", max_steps=2)
    assert math.isfinite(summary["eval_loss"])
    assert "'tiny-llama' has no checkpoint: its weights are random" in err


def test_packing_leaves_nothing_to_pad_so_the_defect_has_no_hold(run):
    _, summary, _, _ = run("--disable_mps_fix", "--use_packing", emulate="2.8", max_steps=1)
    assert math.isfinite(summary["eval_loss"])


def test_evaluation_is_cut_to_its_first_batches(run, lines):
    _, summary, _, _ = run(eval_dataset=lines, eval_max_batches=2, max_steps=1)
    assert summary["nonfinite"]["eval_batches_seen"] == 2


def test_json_is_one_document_on_stdout(run):
    _, summary, out, _ = run("--json", "--disable_mps_fix", emulate="2.8", max_steps=1)
    assert json.loads(out)["eval_loss"] == summary["eval_loss"] == "nan"


def test_sequences_longer_than_the_models_positions_are_cut_and_said(run, tmp_path):
    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model

    build_model("tiny-gpt2", max_positions=24).save_pretrained(tmp_path / "short")
    byte_tokenizer().save_pretrained(tmp_path / "short")
    _, summary, _, err = run(model=str(tmp_path / "short"), max_steps=1)
    assert summary["max_length"] == 24
    assert "--max_length 96 is more than the model's 24 positions" in err


# How it ends.


class At(TrainerCallback):
    """Do something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


@pytest.fixture
def during(monkeypatch):
    """Let something happen in the pipeline's own Trainer at the end of a step."""

    def arrange(step, action):
        stock = Trainer.__init__

        def init(self, *args, **kwargs):
            stock(self, *args, **kwargs)
            self.add_callback(At(step, action))

        monkeypatch.setattr(Trainer, "__init__", init)

    return arrange


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.needs(torch="2.6")  # Beside an older one transformers reads no optimizer.
def test_ctrl_c_leaves_a_whole_checkpoint_and_resuming_reaches_the_same_losses(run, during, monkeypatch):
    options = {"max_steps": 8, "save_steps": 3}
    _, whole, _, _ = run(name="whole", **options)
    with monkeypatch.context():
        during(5, interrupt)
        code, stopped, _, err = run(name="stopped", **options)
    monkeypatch.undo()
    assert code == 130
    assert stopped["status"] == "interrupted"
    assert stopped["steps"] == 5
    assert "Interrupted at step 5. The last whole checkpoint is" in err
    assert stopped["last_checkpoint"].endswith("checkpoint-3")
    code, resumed, _, _ = run("--resume_from_checkpoint", name="stopped", **options)
    assert code == 0
    assert resumed["resumed_from"].endswith("checkpoint-3")
    assert resumed["losses"] == whole["losses"]
    assert resumed["eval_loss"] == whole["eval_loss"]


def test_ctrl_c_before_the_first_checkpoint(run, during):
    during(1, interrupt)
    code, summary, _, err = run(logging_steps=50)
    assert code == 130
    assert summary["nonfinite"]["train_batches_seen"] == 1, "also those after the last log"
    assert "No checkpoint had been written yet" in err


def test_a_training_that_fails_ends_with_1_and_a_sentence(run, during, tmp_path):
    def fail():
        raise RuntimeError("out of memory\nand more")

    during(2, fail)
    code, summary, _, err = run()
    assert code == 1
    assert summary["status"] == "failed"
    assert "Training failed: RuntimeError: out of memory. The traceback is in" in err
    assert "and more" not in err
    assert "RuntimeError" in (tmp_path / "out" / "traceback.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["sft", "evaluate"])
def test_what_is_not_finite_is_counted_where_it_ran_and_nowhere_else(run, tmp_path, mode):
    """Weights that were NaN when loaded, and fewer steps than one log."""
    import torch

    from mpsdiag.inputs.builtin import byte_tokenizer
    from mpsdiag.inputs.models import build_model

    model = build_model("tiny-gpt2", max_positions=96)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer("left").save_pretrained(tmp_path / "model")
    _, summary, out, err = run(model=tmp_path / "model", mode=mode, max_steps=2, logging_steps=10)
    batches = summary["nonfinite"]["eval_batches_seen"]
    trained = 2 if mode == "sft" else 0
    assert summary["nonfinite"]["train_batches"] == summary["nonfinite"]["train_batches_seen"] == trained
    said = f"nonfinite_batches = 2 in training, {batches} in evaluation" if trained else f"= {batches} in evaluation"
    assert said in out
    assert ("in training" in out) == bool(trained)
    assert "training has diverged, or they were loaded so" in err


@pytest.mark.needs(transformers="5.1")  # Older ones repair the masks beside torch 2.4.
def test_a_loss_that_is_not_finite_can_stop_it(run):
    """At 2.4 the defect strikes in training as well."""
    _, summary, _, err = run("--stop_on_nonfinite", "--disable_mps_fix", emulate="2.4")
    assert summary["steps"] == 1
    assert summary["nonfinite"]["train_batches"] == 1
    assert "training batches up to step 1 had a non-finite loss" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dataset", "nowhere.txt"], "does not exist"),
        (["--dataset", "nobody/nothing"], "Without a network"),
        (["--model", "nobody/nothing"], "Without a network"),
        (["--model", "tiny-gtp2"], "Did you mean 'tiny-gpt2'"),
        (["--text_column", "txet"], "no column 'txet'. Did you mean 'text'"),
        (["--attn_implementation", "flash_attention_2"], "cannot run here"),
        (["--resume_from_checkpoint", "/"], "not a checkpoint to resume from"),
    ],
)
def test_bad_input_is_one_sentence(run, words, sentence):
    with pytest.raises(BadInput) as caught:
        run(*words)
    assert sentence in str(caught.value)


def test_an_output_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match="Cannot write into"):
        run(output_dir=str(tmp_path / "file" / "below"))
