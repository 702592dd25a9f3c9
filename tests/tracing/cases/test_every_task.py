"""Task by command: `trace`, the recorder and the replay of what it recorded, for every kind of model."""

import os
import random
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from mpsdiag import BadBatchRecorder, emulate_mps, trace
from mpsdiag.errors import BadInput
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.inputs.models import build_model, model_notes
from mpsdiag.inputs.tasks import task_of
from mpsdiag.quiet import no_bars
from mpsdiag.scenario.run import run_scenario
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.tracing.cases.traced_case import TraceRequest
from mpsdiag.tracing.run import investigate
from mpsdiag.words import BUILTIN_MODELS

CLEAN_RUNS = int(os.environ.get("MPSDIAG_CLEAN_RUNS", "30"))
TEXTS = ["a heron paints", "rain", "my neighbour counts seven letters"]
STRUCK = {"tiny-bert": None, "tiny-bart": None, "tiny-t5": None, "tiny-embedder": "dead_rows", "tiny-vlm": "dead_rows"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 259, "pad_token_id": 0}


def batch_of(model, name=""):
    task, tokenizer = task_of(model.config, name=name), byte_tokenizer("left")
    batch = task.collator(tokenizer, model)(task.rows(TEXTS, tokenizer, 48, config=model.config))
    if task.loss is not None:
        del batch["labels"]
    return batch


@pytest.mark.parametrize("name", STRUCK)
def test_trace_of_the_command(name):
    plain = investigate(TraceRequest(model=name, device="cpu", batches=1))
    assert (plain.exit_code, plain.origin) == (0, None)
    report = investigate(TraceRequest(model=name, batches=1, emulate="2.8"))
    assert (None if report.origin is None else report.origin.cause) == STRUCK[name]


def classifier(kind="BertForSequenceClassification", **options):
    torch.manual_seed(0)
    if kind.startswith("Llama"):
        config = transformers.LlamaConfig(**SMALL, intermediate_size=32, **options)
    else:
        config = transformers.BertConfig(**SMALL, intermediate_size=32, **options)
    model = getattr(transformers, kind)(config).eval()
    model.config.architectures = [kind]
    return model


def broken(model):
    with torch.no_grad():
        list(model.parameters())[-1].fill_(torch.nan)
    return model


CASES = {
    "classifier": (lambda: broken(classifier(num_labels=3)), None, "bad_weights"),
    "reward model": (lambda: classifier("LlamaForSequenceClassification", num_labels=1), "2.8", "dead_rows"),
    "tagger": (lambda: broken(classifier("BertForTokenClassification", num_labels=3)), None, "bad_weights"),
    "masked": (lambda: broken(build_model("tiny-bert", max_positions=64)), None, "bad_weights"),
    "seq2seq": (lambda: broken(build_model("tiny-t5")), None, "bad_weights"),
    "embedder": (lambda: build_model("tiny-embedder", max_positions=64), "2.8", "dead_rows"),
    "image-text": (lambda: build_model("tiny-vlm", max_positions=64), "2.8", "dead_rows"),
}


@pytest.mark.parametrize("case", CASES)
@no_bars()
def test_what_is_recorded_is_replayed_with_the_model_that_was_recorded(tmp_path, case):
    make, release, cause = CASES[case]
    model = make()
    batch = batch_of(model)
    recorder = BadBatchRecorder(tmp_path / "bad")
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False
    )
    trainer = Trainer(
        model=model, args=arguments, eval_dataset=[0], data_collator=lambda _: dict(batch), callbacks=[recorder]
    )
    if release is None:
        trainer.evaluate()
        found = trace(make(), batch)
    else:
        with emulate_mps(release):
            trainer.evaluate()
            found = trace(make(), batch)
    assert found.cause == cause
    assert recorder.recorded is not None
    report = investigate(TraceRequest(folder=recorder.recorded))
    assert report.origin.cause == cause
    assert report.origin.module == found.module
    assert report.notes == model_notes(make())


def test_a_recorded_folder_given_as_another_task_is_one_sentence(tmp_path):
    build_model("tiny-bert", max_positions=64).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a BertForMaskedLM, not a model for token-classification") as caught:
        investigate(TraceRequest(model=str(tmp_path), task="token-classification"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("also", [False, True])
def test_a_broken_weight_that_the_class_does_not_read_is_a_finding(tmp_path, also):
    model = build_model("tiny-llama", max_positions=128)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.inf
    model.save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    release = "2.8" if also else None
    asked = TraceRequest(model=str(tmp_path), task="feature-extraction", batches=1, device="cpu")
    report = investigate(replace(asked, emulate=release))
    assert report.exit_code == 1
    found = report.origin.also[0] if also else report.origin
    assert (found.cause, found.module, found.operation) == ("bad_weights", "lm_head", "from_pretrained")
    assert (report.origin.cause == "dead_rows") is also
    assert "in weights that LlamaModel does not read: lm_head.weight" in found.summary
    outcome = run_scenario(Scenario(model=str(tmp_path), task="feature-extraction", max_length=32, max_steps=0))
    assert (outcome.status, outcome.missing_weights) == ("ok", found.summary)


def test_a_model_without_sdpa_is_traced_and_said_to_have_none(tmp_path):
    config = transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=259, pad_token_id=0)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    report = investigate(TraceRequest(model=str(tmp_path), batches=1, emulate="2.8"))
    assert (report.exit_code, report.origin) == (0, None)
    assert any("has only eager attention" in note for note in report.notes)


def test_no_false_alarm_on_clean_runs():
    """Random models, paddings and dtypes of every task on the plain CPU: nothing is found, because nothing is wrong."""
    dice = random.Random(14)
    words = " ".join(TEXTS).split()
    for _ in range(CLEAN_RUNS):
        name, dtype = dice.choice(BUILTIN_MODELS), dice.choice(("float32", "bfloat16", "float16", "float64"))
        model = build_model(name, seed=dice.randrange(99), dtype=dtype, max_positions=64)
        task, tokenizer = task_of(model.config, name=name), byte_tokenizer(dice.choice(("left", "right")))
        texts = [" ".join(dice.choices(words, k=dice.randint(1, 7))) for _ in range(dice.randint(1, 4))]
        collate = task.collator(tokenizer, model, pad_to_multiple_of=dice.choice((None, 16)))
        batch = collate(task.rows(texts, tokenizer, 48, config=model.config))
        if task.loss is not None:
            del batch["labels"]
        assert trace(model, batch) is None, (name, dtype, tokenizer.padding_side, texts)


@pytest.mark.parametrize(
    ("kind", "labels", "sentence"),
    [
        ("multi_label_classification", torch.ones(2, 3).long(), "multiple labels must be floats"),
        ("single_label_classification", torch.ones(2), "classes and tokens must be integers"),
        (None, torch.ones(2, 5), "Target size"),
    ],
)
def test_labels_of_a_wrong_type_are_one_sentence(kind, labels, sentence):
    model = classifier(num_labels=3, problem_type=kind)
    with pytest.raises(BadInput, match=sentence):
        trace(model, {"input_ids": torch.full((2, 4), 7), "labels": labels})
