import math

import pytest
import torch
from transformers import Trainer

from mpsdiag import emulate_mps
from mpsdiag.scenario.preparation import TRAINERS
from mpsdiag.words import TRAINER_VARIANTS


def test_the_variants_are_those_of_the_contract():
    assert tuple(TRAINERS) == TRAINER_VARIANTS
    assert TRAINERS["standard"] is Trainer


@pytest.mark.parametrize("variant", TRAINERS)
def test_without_the_defect_all_give_the_stock_loss(trainer_of, variant):
    stock = trainer_of(Trainer).evaluate()["eval_loss"]
    assert trainer_of(TRAINERS[variant]).evaluate()["eval_loss"] == stock


@pytest.mark.parametrize(
    ("variant", "resolves"),
    [("standard", False), ("cpu_loss", False), ("cpu_forward", True), ("grad_eval", True), ("mps_safe", True)],
)
def test_which_of_them_resolves_the_defect(trainer_of, variant, resolves):
    true_loss = trainer_of(Trainer).evaluate()["eval_loss"]
    with emulate_mps("2.8"):
        found = trainer_of(TRAINERS[variant]).evaluate()["eval_loss"]
    # With gradients on torch takes another path, whose last bit is another.
    expected = pytest.approx(true_loss, rel=1e-6) if variant == "grad_eval" else true_loss
    assert (found == expected) if resolves else math.isnan(found)


def test_cpu_loss_does_nothing_else(trainer_of):
    with emulate_mps("2.8"):
        trainer = trainer_of(TRAINERS["cpu_loss"])
        metrics = trainer.evaluate()
    assert metrics["eval_nonfinite_batches"] == 3
    assert "eval_cpu_forward_batches" not in metrics


def test_cpu_forward_says_how_many_batches_ran_there(trainer_of):
    assert trainer_of(TRAINERS["cpu_forward"]).evaluate()["eval_cpu_forward_batches"] == 3


def test_grad_eval_keeps_no_graph(trainer_of, collator, examples):
    trainer = trainer_of(TRAINERS["grad_eval"])
    trainer.model.eval()
    batch = collator(examples[:2])
    loss, logits, _ = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=False)
    assert loss.grad_fn is None
    assert logits.grad_fn is None
    with torch.no_grad():
        alone = trainer.compute_loss(trainer.model, dict(batch))
    assert alone.grad_fn is None
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, dict(batch)).grad_fn is not None
