"""The recording callback in a stock Trainer, and its folder traced again."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from mpsdiag import BadBatchRecorder, emulate_mps
from mpsdiag.errors import BadInput
from mpsdiag.tracing.cases.recorded_case import read_case
from mpsdiag.tracing.cases.traced_case import TraceRequest
from mpsdiag.tracing.run import investigate


@pytest.fixture
def rows(batch_of):
    batch = batch_of((3, 0, 2, 1, 0, 4, 0, 0))
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]


@pytest.fixture
def trainer_of(tmp_path):
    def make(model, rows, recorder, **options):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            max_steps=6,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            logging_steps=1,
            dataloader_pin_memory=False,
            **options,
        )
        return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, callbacks=[recorder])

    return make


def test_the_first_bad_evaluation_batch_is_kept_and_replayed(build, rows, trainer_of, tmp_path, caplog):
    model, recorder = build("tiny-llama"), BadBatchRecorder(tmp_path / "bad")
    with emulate_mps("2.8"):
        trainer_of(model, rows, recorder).evaluate()
    assert recorder.recorded == tmp_path / "bad"
    assert "mpsdiag trace" in caplog.text
    about, batch, weights = read_case(tmp_path / "bad")
    assert (about.phase, about.grad, about.emulation.release) == ("evaluation", False, "2.8")
    assert torch.equal(batch["input_ids"], torch.stack([rows[0]["input_ids"], rows[1]["input_ids"]]))
    assert (weights / "model.safetensors").is_file()
    report = investigate(TraceRequest(folder=tmp_path / "bad"))
    assert report.emulated.release == "2.8"
    assert (report.origin.cause, report.origin.layer) == ("dead_rows", 0)
    # On another device it may be fine: that is what replaying is for.
    report = investigate(TraceRequest(folder=tmp_path / "bad", device="cpu"))
    assert (report.emulated, report.origin) == (None, None)


@pytest.mark.needs(transformers="5.1")  # train_sampling_strategy
def test_the_first_bad_training_batch_is_kept_with_the_weights_before_it(build, rows, trainer_of, tmp_path):
    rows[4]["labels"].fill_(-100)
    rows[5]["labels"].fill_(-100)
    model, recorder = build("tiny-gpt2"), BadBatchRecorder(tmp_path / "bad")
    trainer = trainer_of(model, rows, recorder, train_sampling_strategy="sequential")
    trainer.train()
    about, batch, _ = read_case(tmp_path / "bad")
    assert (about.phase, about.step, about.noticed) == ("training", 2, "loss")
    assert len(about.losses) == 2
    assert bool((batch["labels"] == -100).all())
    report = investigate(TraceRequest(folder=tmp_path / "bad"))
    assert (report.mode, report.origin.cause) == ("training", "no_labels")


def test_gradients_are_looked_at_before_they_spoil_the_weights(build, rows, trainer_of, tmp_path):
    model, recorder = build("tiny-llama"), BadBatchRecorder(tmp_path / "bad")
    module = model.model.layers[1].mlp
    module.register_forward_hook(lambda m, args, output: output + (output * 0.0).abs().sqrt())
    trainer_of(model, rows, recorder).train()
    about, _, weights = read_case(tmp_path / "bad")
    assert (about.step, about.noticed) == (0, "gradients")
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(t).all()) for t in load_file(weights / "model.safetensors").values())


def test_a_healthy_training_records_nothing(build, rows, trainer_of, tmp_path):
    recorder = BadBatchRecorder(tmp_path / "bad")
    trainer = trainer_of(build("tiny-qwen2"), rows, recorder)
    trainer.train()
    trainer.evaluate()
    assert recorder.recorded is None
    assert not (tmp_path / "bad").exists()


def test_without_weights_the_model_has_to_be_given(build, rows, trainer_of, tmp_path):
    recorder = BadBatchRecorder(tmp_path / "bad", save_weights=False)
    with emulate_mps("2.8"):
        trainer_of(build("tiny-llama"), rows, recorder).evaluate()
    with pytest.raises(BadInput, match="--model"):
        investigate(TraceRequest(folder=tmp_path / "bad"))
    report = investigate(TraceRequest(folder=tmp_path / "bad", model="tiny-llama"))
    assert report.origin.cause == "dead_rows"


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(BadInput, match="Choose another folder"):
        BadBatchRecorder(tmp_path)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ('{"schema": 99}', "newer than this mpsdiag"),
        ('{"schema": 1, "phase": "lunch"}', "cannot be read"),
        ("{not json", "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_case_that_is_broken_is_refused(tmp_path, document, sentence):
    (tmp_path / "case.json").write_text(document)
    with pytest.raises(BadInput, match=sentence):
        read_case(tmp_path)


def test_the_folder_holds_json_and_safetensors_only(build, rows, trainer_of, tmp_path):
    recorder = BadBatchRecorder(tmp_path / "bad")
    with emulate_mps("2.8"):
        trainer_of(build("tiny-llama"), rows, recorder).evaluate()
    suffixes = {path.suffix for path in (tmp_path / "bad").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
    json.loads((tmp_path / "bad" / "case.json").read_text(), parse_constant=pytest.fail)
