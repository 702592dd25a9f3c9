"""NonFiniteCallback in the stock Trainer, which hides what it counts."""

import logging
import math

import pytest
import torch
from transformers import Trainer

from mpsdiag import emulate_mps
from mpsdiag.inputs.models import build_model
from mpsdiag.trainers.callbacks import NonFiniteCallback
from mpsdiag.trainers.mps_safe import MPSSafeTrainer

LOGGER = "mpsdiag.trainers.callbacks"


class NanAt:
    """Collate as usual, and make the loss of some batches NaN by a label mask that leaves nothing."""

    def __init__(self, collator, bad):
        self.collator, self.bad, self.calls = collator, bad, 0

    def __call__(self, features):
        batch = self.collator(features)
        if self.calls in self.bad:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        self.calls += 1
        return batch


def diverged(model="tiny-gpt2"):
    built = build_model(model, max_positions=128)
    with torch.no_grad():
        built.lm_head.weight[0, 0] = torch.nan
    return built


@pytest.mark.parametrize("filtered", [True, False])
def test_evaluation_counts_are_in_metrics_and_log(trainer_of, collator, filtered, caplog):
    watcher = NonFiniteCallback()
    trainer = trainer_of(
        Trainer, callbacks=[watcher], data_collator=NanAt(collator, {1}), options={"logging_nan_inf_filter": filtered}
    )
    with caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer.evaluate()
    assert metrics["eval_nonfinite_batches"] == 1
    assert trainer.state.log_history[-1]["eval_nonfinite_batches"] == 1
    assert (watcher.evaluation.batches, watcher.evaluation.bad) == (3, 1)
    assert len(caplog.records) == 1
    assert "1 of 3 evaluation batches are not finite" in caplog.text
    assert "every label of the batch is -100" in caplog.text
    assert ("eval_loss is the mean of the others" in caplog.text) == math.isfinite(metrics["eval_loss"])


def test_a_clean_evaluation_counts_zero_and_says_nothing(trainer_of, caplog):
    watcher = NonFiniteCallback()
    with caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer_of(Trainer, callbacks=[watcher]).evaluate()
    assert metrics["eval_nonfinite_batches"] == 0
    assert watcher.evaluation.batches == 3
    assert not caplog.records


def test_it_warns_once_over_many_evaluations(trainer_of, caplog):
    trainer = trainer_of(Trainer, callbacks=[NonFiniteCallback()])
    with emulate_mps("2.8"), caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            assert trainer.evaluate()["eval_nonfinite_batches"] == 3
    assert len(caplog.records) == 1
    assert "safe_sdpa" in caplog.text


def test_the_hidden_training_loss_is_counted(trainer_of, caplog):
    """With the default filter transformers logs 0.0 here."""
    watcher = NonFiniteCallback()
    trainer = trainer_of(
        Trainer,
        diverged(),
        callbacks=[watcher],
        options={"max_steps": 3, "logging_nan_inf_filter": True, "logging_steps": 1},
    )
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in logged] == [0.0, 0.0, 0.0]
    assert [row["nonfinite_train_batches"] for row in logged] == [1, 2, 3]
    assert watcher.train.bad == watcher.train.batches == 3
    assert len(caplog.records) == 1
    assert "weights of the model are not finite" in caplog.text


@pytest.mark.parametrize("filtered", [True, False])
def test_a_training_shorter_than_its_first_log_is_counted(trainer_of, filtered, caplog):
    watcher = NonFiniteCallback()
    options = {"max_steps": 2, "logging_steps": 10, "logging_nan_inf_filter": filtered}
    trainer = trainer_of(Trainer, diverged(), callbacks=[watcher], options=options)
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer.train()
    assert (watcher.train.batches, watcher.train.bad) == (2, 2)
    assert "2 of 2 training batches up to step 2" in caplog.text


def test_weights_that_were_loaded_bad_are_not_called_diverged_for_sure(trainer_of, caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer_of(Trainer, diverged(), callbacks=[NonFiniteCallback()]).evaluate()
    assert "training has diverged, or they were loaded so" in caplog.text


def test_micro_batches_of_gradient_accumulation_are_counted_one_by_one(trainer_of):
    watcher = NonFiniteCallback()
    options = {"max_steps": 2, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
    trainer_of(Trainer, callbacks=[watcher], options=options).train()
    assert (watcher.train.batches, watcher.train.bad) == (6, 0)


def test_non_finite_gradients_alone_are_seen_too(trainer_of):
    """The loss is finite and its gradient is not."""

    def loss(outputs, labels, num_items_in_batch=None):
        del labels, num_items_in_batch
        return torch.sqrt(outputs["logits"].float().sum() * 0.0) + 1.0

    watcher = NonFiniteCallback()
    trainer = trainer_of(Trainer, callbacks=[watcher], compute_loss_func=loss, options={"max_steps": 1})
    trainer.train()
    assert watcher.train.bad == 0
    assert watcher.grad_norms == 1
    assert [row["nonfinite_grad_norms"] for row in trainer.state.log_history if "loss" in row] == [1]


def test_it_can_stop_the_training(trainer_of, collator):
    watcher = NonFiniteCallback(stop_training=True)
    trainer = trainer_of(
        Trainer, callbacks=[watcher], data_collator=NanAt(collator, {2}), options={"max_steps": 9, "logging_steps": 50}
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert watcher.train.bad == 1


def test_it_stops_after_an_evaluation_that_is_not_finite(trainer_of):
    trainer = trainer_of(
        Trainer,
        callbacks=[NonFiniteCallback(stop_training=True)],
        options={"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2},
    )
    with emulate_mps("2.8"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("options", [{"label_smoothing_factor": 0.1}, {}])
def test_watch_sees_losses_that_are_made_outside_the_model(trainer_of, collator, options):
    """The logits are finite here; only the loss is 0/0."""
    trainer = trainer_of(Trainer, data_collator=NanAt(collator, {0, 2}), options=options)
    watcher = NonFiniteCallback().watch(trainer)
    assert trainer.evaluate()["eval_nonfinite_batches"] == 2
    assert watcher.evaluation.unlabelled == 2
    trainer = trainer_of(
        Trainer, data_collator=NanAt(collator, {1}), options={**options, "max_steps": 3}, callbacks=[watcher]
    )
    watcher.watch(trainer)
    trainer.train()
    assert trainer.callback_handler.callbacks.count(watcher) == 1
    assert (watcher.train.batches, watcher.train.bad) == (3, 1)


def test_label_smoothing_without_watch_judges_the_logits(trainer_of):
    trainer = trainer_of(Trainer, callbacks=[NonFiniteCallback()], options={"label_smoothing_factor": 0.1})
    with emulate_mps("2.8"):
        assert trainer.evaluate()["eval_nonfinite_batches"] == 3


def test_prediction_metrics_have_the_count(trainer_of, examples):
    trainer = trainer_of(Trainer, callbacks=[NonFiniteCallback()])
    assert trainer.predict(examples).metrics["test_nonfinite_batches"] == 0
    with emulate_mps("2.8"):
        assert trainer.predict(examples).metrics["test_nonfinite_batches"] == 3


def test_with_the_safe_trainer_the_final_losses_count(trainer_of, caplog):
    trainer = trainer_of(MPSSafeTrainer, callbacks=[NonFiniteCallback()])
    with emulate_mps("2.8"), caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer.evaluate()
    assert metrics["eval_nonfinite_batches"] == 0
    assert not [record for record in caplog.records if record.name == LOGGER]


def test_several_evaluation_sets_are_counted_apart(trainer_of, examples):
    trainer = trainer_of(
        Trainer, callbacks=[NonFiniteCallback()], eval_dataset={"padded": examples, "even": [examples[0]] * 4}
    )
    with emulate_mps("2.8"):
        metrics = trainer.evaluate()
    assert (metrics["eval_padded_nonfinite_batches"], metrics["eval_even_nonfinite_batches"]) == (3, 0)


def frozen(model="tiny-llama"):
    """Only the head is trained: attention runs without gradients, in training too."""
    built = build_model(model, max_positions=128).requires_grad_(requires_grad=False)
    built.lm_head.weight = torch.nn.Parameter(built.lm_head.weight.detach().clone())
    return built


@pytest.mark.parametrize("filtered", [True, False])
def test_the_weights_are_judged_before_the_optimizer_spoils_them(trainer_of, filtered, caplog):
    watcher, model = NonFiniteCallback(), frozen()
    options = {"max_steps": 2, "logging_steps": 2, "logging_nan_inf_filter": filtered}
    trainer = trainer_of(Trainer, model, callbacks=[watcher], options=options)
    with emulate_mps("2.8"), caplog.at_level(logging.WARNING, LOGGER):
        trainer.train()
    assert watcher.train.bad >= 1
    assert not bool(model.lm_head.weight.isfinite().all())  # By the time of the log.
    assert "weights of the model are not finite" not in caplog.text
    assert "safe_sdpa" in caplog.text


def test_weights_that_a_step_broke_are_named_in_the_next_one(trainer_of, caplog):
    """The first loss is finite, an infinite learning rate breaks the weights, and the second loss is their doing."""
    options = {"max_steps": 2, "logging_steps": 2, "learning_rate": 1e30, "lr_scheduler_type": "constant"}
    watcher = NonFiniteCallback()
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer_of(Trainer, callbacks=[watcher], options=options).train()
    assert watcher.train.bad == 1
    assert ("weights of the model are not finite" in caplog.text) or ("neither labels nor weights" in caplog.text)


def test_a_gradient_that_is_not_finite_is_said_to_be_one(trainer_of, caplog):
    def loss(outputs, labels, num_items_in_batch=None):
        del labels, num_items_in_batch
        return torch.sqrt(outputs["logits"].float().sum() * 0.0) + 1.0

    options = {"max_steps": 1, "logging_steps": 1}
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer_of(Trainer, callbacks=[NonFiniteCallback()], compute_loss_func=loss, options=options).train()
    assert "The gradient norm up to step 1 is not finite, but the losses are" in caplog.text
    assert "weights of the model" not in caplog.text


def test_running_statistics_count_as_weights(trainer_of, caplog):
    class Normalized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lm, self.norm = build_model("tiny-gpt2", max_positions=128), torch.nn.BatchNorm1d(1)

        def forward(self, input_ids, attention_mask, labels=None):
            output = self.lm(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
            return {"loss": self.norm(output.loss.reshape(1, 1)).sum(), "logits": output.logits}

    model = Normalized()
    model.norm.running_var[0] = float("nan")
    with caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer_of(Trainer, model, callbacks=[NonFiniteCallback()]).evaluate()
    assert metrics["eval_nonfinite_batches"] == 3
    assert "weights of the model are not finite" in caplog.text


def test_no_count_where_nothing_could_be_judged(trainer_of, examples):
    """A model that gives neither loss nor logits."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"score": self.weight * float("nan")}

    class Scored(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            return (output["score"].sum(), output) if return_outputs else output["score"].sum()

    metrics = trainer_of(Scored, Own(), callbacks=[NonFiniteCallback()]).evaluate()
    assert math.isnan(metrics["eval_loss"])
    assert "eval_nonfinite_batches" not in metrics
    watched = trainer_of(Scored, Own())
    NonFiniteCallback().watch(watched)
    assert watched.evaluate()["eval_nonfinite_batches"] == 3


@pytest.mark.needs(transformers="4.56")  # Older ones fail here by themselves.
def test_no_count_where_there_was_no_batch(trainer_of):
    assert "eval_nonfinite_batches" not in trainer_of(Trainer, callbacks=[NonFiniteCallback()]).evaluate([])


def test_a_loss_that_is_made_outside_the_model_is_not_counted_as_clean(trainer_of, caplog):
    class Divided(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            loss = output.logits.sum() * float("nan")
            return (loss, output) if return_outputs else loss

    with caplog.at_level(logging.WARNING, LOGGER):
        metrics = trainer_of(Divided, callbacks=[NonFiniteCallback()]).evaluate()
    assert math.isnan(metrics["eval_loss"])
    assert "eval_nonfinite_batches" not in metrics
    assert "NonFiniteCallback().watch(trainer)" in caplog.text
