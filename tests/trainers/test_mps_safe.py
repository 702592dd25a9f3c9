"""MPSSafeTrainer against the stock Trainer as the independent reference: the same numbers, bit for bit."""

import logging
import math

import numpy as np
import pytest
import torch
from transformers import Trainer

from mpsdiag import emulate_mps
from mpsdiag.errors import BadInput
from mpsdiag.inputs.models import build_model
from mpsdiag.inputs.nonfinite import NonFiniteLogitsError
from mpsdiag.trainers.mps_safe import MPSSafeTrainer

LOGGER = "mpsdiag.trainers.mps_safe"
SMALL_CHUNK = 20_000  # bytes: 19 rows of the byte vocabulary, so every loss takes many chunks


def losses(metrics):
    return {name: value for name, value in metrics.items() if name.endswith("loss")}


def own_loss(outputs, labels, num_items_in_batch=None):
    logits, targets = outputs["logits"][:, :-1], labels[:, 1:]
    summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return summed / (num_items_in_batch if num_items_in_batch is not None else targets.ne(-100).sum()) * 1.25


def shifted(collator):
    def collate(features):
        batch = collator(features)
        batch["shift_labels"] = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:].contiguous()
        return batch

    return collate


VARIANTS = {
    "default": {},
    "label smoothing": {"options": {"label_smoothing_factor": 0.1}},
    "compute_loss_func": {"compute_loss_func": own_loss},
    "bf16 autocast": {"options": {"bf16": True}},
    "bf16 full eval": {"options": {"bf16_full_eval": True}},
}


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_and_prediction_equal_the_stock_trainer(trainer_of, model, variant, examples):
    stock = trainer_of(Trainer, model, **VARIANTS[variant])
    ours = trainer_of(MPSSafeTrainer, model, always=True, loss_chunk_bytes=SMALL_CHUNK, **VARIANTS[variant])
    assert losses(ours.evaluate()) == losses(stock.evaluate())
    theirs, found = stock.predict(examples), ours.predict(examples)
    assert losses(found.metrics) == losses(theirs.metrics)
    np.testing.assert_array_equal(found.predictions, theirs.predictions)
    np.testing.assert_array_equal(found.label_ids, theirs.label_ids)


def test_shift_labels_are_used_as_they_are(trainer_of, collator):
    stock = trainer_of(Trainer, data_collator=shifted(collator))
    ours = trainer_of(MPSSafeTrainer, always=True, loss_chunk_bytes=SMALL_CHUNK, data_collator=shifted(collator))
    assert losses(ours.evaluate()) == losses(stock.evaluate())


@pytest.mark.needs(transformers="4.57")  # evaluation divides by it from there on
def test_num_items_in_batch_divides_the_sum(trainer_of, collator, examples):
    batch = collator(examples[:4])
    results = []
    for kind, options in ((Trainer, {}), (MPSSafeTrainer, {"always": True, "loss_chunk_bytes": SMALL_CHUNK})):
        trainer = trainer_of(kind, **options)
        trainer.model.eval()
        trainer._get_num_items_in_batch = lambda *_: torch.tensor(11)
        results.append(trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)[0])
    assert torch.equal(*results)
    trainer._get_num_items_in_batch = lambda *_: None
    mean = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)[0]
    assert mean < results[0]


def metrics_of(prediction):
    wrong = prediction.predictions.argmax(-1)[:, :-1] != prediction.label_ids[:, 1:]
    return {"errors": float(wrong.sum()), "losses": float(np.sum(prediction.losses))}


@pytest.mark.parametrize("loss_only", [True, False])
def test_metrics_and_prediction_loss_only(trainer_of, loss_only):
    options = {"include_for_metrics": ["loss"], "prediction_loss_only": loss_only}
    stock = trainer_of(Trainer, options=options, compute_metrics=metrics_of).evaluate()
    ours = trainer_of(MPSSafeTrainer, options=options, compute_metrics=metrics_of, always=True).evaluate()
    assert losses(ours) == losses(stock)
    assert ours.get("eval_errors") == stock.get("eval_errors")
    assert ("eval_errors" in ours) is not loss_only


def test_training_is_untouched(trainer_of):
    """Losses, gradients' norms and final weights of a training with evaluations in between."""
    options = {
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "label_smoothing_factor": 0.1,
    }
    histories, weights = [], []
    for kind, extra in ((Trainer, {}), (MPSSafeTrainer, {"always": True, "loss_chunk_bytes": SMALL_CHUNK})):
        trainer = trainer_of(kind, options=options, **extra)
        trainer.train()
        names = ("loss", "grad_norm", "eval_loss", "learning_rate")
        histories.append([[row.get(name) for name in names] for row in trainer.state.log_history])
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert histories[0] == histories[1]
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_it_is_the_stock_trainer_where_there_is_no_mps(trainer_of, monkeypatch, examples):
    stock, trainer = trainer_of(Trainer), trainer_of(MPSSafeTrainer)
    monkeypatch.setattr("mpsdiag.trainers.mps_safe.evaluation_losses_on_cpu", None)  # would fail if it were called
    found, theirs = trainer.evaluate(), stock.evaluate()
    assert found.keys() == theirs.keys()
    assert losses(found) == losses(theirs)
    assert trainer.predict(examples).metrics.keys() == stock.predict(examples).metrics.keys()
    assert not trainer.acts()
    with emulate_mps("2.8"):
        assert trainer.acts()


# What it is for: logits that the device made non-finite.


@pytest.mark.parametrize("variant", ["default", "label smoothing", "compute_loss_func"])
def test_the_defect_is_repaired_with_one_copy_and_one_warning(trainer_of, variant, caplog, monkeypatch):
    import mpsdiag.trainers.second_pass as tally

    true_loss = trainer_of(Trainer, **VARIANTS[variant]).evaluate()["eval_loss"]
    copies, stock_copy = [], tally.copy_to_cpu
    monkeypatch.setattr(tally, "copy_to_cpu", lambda model: copies.append(1) or stock_copy(model))
    trainer = trainer_of(MPSSafeTrainer, **VARIANTS[variant])
    with emulate_mps("2.8"), caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == true_loss
        assert metrics["eval_nonfinite_batches"] == 0
        assert metrics["eval_cpu_forward_batches"] == 3
        assert trainer.nonfinite_causes == {"device": 3}
        assert len(copies) == 1
        trainer.evaluate()
        assert len(copies) == 2, "weights may have changed since the first evaluation"
    assert len(caplog.records) == 1
    assert "evaluated again on a copy of the model on the CPU" in caplog.text


def test_predictions_without_labels_are_repaired_too(trainer_of, examples, collator):
    def unlabelled(features):
        batch = collator(features)
        del batch["labels"]
        return batch

    stock = trainer_of(Trainer, data_collator=unlabelled).predict(examples)
    trainer = trainer_of(MPSSafeTrainer, data_collator=unlabelled)
    with emulate_mps("2.8"):
        found = trainer.predict(examples)
    np.testing.assert_array_equal(found.predictions, stock.predictions)
    assert found.metrics["test_cpu_forward_batches"] == 3


def test_keep_leaves_the_nan_and_counts_it(trainer_of, caplog):
    trainer = trainer_of(MPSSafeTrainer, on_nonfinite_logits="keep")
    with emulate_mps("2.8"), caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer.evaluate()
    assert math.isnan(metrics["eval_loss"])
    assert metrics["eval_nonfinite_batches"] == 3
    assert len(caplog.records) == 1


def test_raise_ends_the_evaluation(trainer_of):
    trainer = trainer_of(MPSSafeTrainer, on_nonfinite_logits="raise")
    with emulate_mps("2.8"), pytest.raises(NonFiniteLogitsError, match="not finite"):
        trainer.evaluate()


def test_labels_that_are_all_ignored_are_not_called_the_mps_defect(trainer_of, collator, caplog):
    def unlabelled(features):
        batch = collator(features)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch

    trainer = trainer_of(MPSSafeTrainer, data_collator=unlabelled)
    with emulate_mps("2.9"), caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer.evaluate()
    assert metrics["eval_nonfinite_batches"] == 3
    assert trainer.nonfinite_causes == {"no_labels": 3}
    assert "every label of the batch is -100" in caplog.text
    assert "not the MPS defect" in caplog.text
    assert "eval_cpu_forward_batches" not in metrics


def test_weights_that_are_nan_are_named_and_not_evaluated_twice(trainer_of, caplog):
    model = build_model("tiny-gpt2", max_positions=128)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    trainer = trainer_of(MPSSafeTrainer, model, always=True)
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer.evaluate()
    assert trainer.nonfinite_causes == {"bad_weights": 3}
    assert "weights of the model are not finite" in caplog.text


def test_what_overflows_on_the_cpu_too_is_not_blamed_on_the_device(trainer_of):
    model = build_model("tiny-gpt2", max_positions=128)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    trainer = trainer_of(MPSSafeTrainer, model, always=True)
    metrics = trainer.evaluate()
    assert trainer.nonfinite_causes == {"same_on_cpu": 3}
    assert metrics["eval_nonfinite_batches"] == 3


@pytest.mark.mps
def test_on_a_real_mps_device(trainer_of):
    """Whatever this torch release does there, the losses come out as on the CPU."""
    reference = trainer_of(Trainer).evaluate()["eval_loss"]
    for variant in VARIANTS.values():
        options = {**variant.get("options", {}), "use_cpu": False}
        trainer = trainer_of(MPSSafeTrainer, **{**variant, "options": options})
        assert trainer.acts()
        metrics = trainer.evaluate()
        assert metrics["eval_nonfinite_batches"] == 0
        if not variant:
            assert metrics["eval_loss"] == pytest.approx(reference, rel=1e-4)


# Its own arguments.


@pytest.mark.parametrize("batches", [1, 2, 99])
def test_eval_max_batches_takes_the_first_ones(trainer_of, batches, examples):
    stock = trainer_of(Trainer).evaluate(examples[: 4 * batches])["eval_loss"]
    trainer = trainer_of(MPSSafeTrainer, eval_max_batches=batches)
    assert trainer.evaluate()["eval_loss"] == stock
    assert trainer.evaluate(examples)["eval_loss"] == stock
    assert len(trainer.predict(examples).predictions) == len(examples)


def test_eval_max_batches_with_named_evaluation_sets(trainer_of, examples):
    trainer = trainer_of(MPSSafeTrainer, eval_max_batches=1, eval_dataset={"a": examples, "b": examples[4:]})
    metrics = trainer.evaluate()
    alone = trainer_of(Trainer)
    assert metrics["eval_a_loss"] == alone.evaluate(examples[:4])["eval_loss"]
    assert metrics["eval_b_loss"] == alone.evaluate(examples[4:8])["eval_loss"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_nonfinite_logits": "cpu_forwards"}, "Did you mean 'cpu_forward'"),
        ({"eval_max_batches": 0}, "from 1 upward"),
    ],
)
def test_bad_arguments(trainer_of, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        trainer_of(MPSSafeTrainer, **options)
