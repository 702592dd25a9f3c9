"""What a model returns: transformers' Trainer takes a dict and a tuple as well, so none of them may hide a NaN."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

from mpsdiag import BadBatchRecorder, trace
from mpsdiag.inputs.modules import logits_of, loss_of
from mpsdiag.tracing.passes.forward import trace_batches
from mpsdiag.trainers.callbacks import NonFiniteCallback

FORMS = {
    "dict": lambda loss, logits: {"loss": loss, "logits": logits},
    "tuple": lambda loss, logits: (loss, logits),
    "attributes": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "model output": lambda loss, logits: CausalLMOutput(loss=loss, logits=logits),
}


class Small(nn.Module):
    """Predicts the token it is given; `bad` says where the square root of a negative number goes."""

    def __init__(self, form, bad=None):
        super().__init__()
        self.form, self.bad = FORMS[form], bad
        self.table = nn.Embedding(8, 8)

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if self.bad == "loss":
            loss = loss + torch.sqrt(-1.0 - loss.detach())
        if self.bad == "logits":
            logits = torch.sqrt(-1.0 - logits.abs())
        return self.form(loss, logits)


@pytest.fixture
def batch():
    ids = torch.arange(8).reshape(2, 4)
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", ["loss", "logits"])
def test_a_nan_is_found_in_every_form_of_output(form, bad, batch):
    origin = trace(Small(form, bad), batch)
    assert origin is not None
    assert origin.operation == "sqrt"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_finite_stays_finite_and_has_its_loss(form, batch):
    assert trace(Small(form), batch) is None
    found = trace_batches(Small(form), [batch, batch])
    assert found.eval_loss == pytest.approx(found.losses[0])
    assert trace(Small(form), batch, train=True) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_is_found_in_a_training_step(form, batch):
    origin = trace(Small(form, "loss"), batch, train=True)
    assert (origin.operation, origin.phase) == ("sqrt", "forward")


def test_a_tensor_of_another_name_is_looked_at_where_there_are_no_logits(batch):
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(8, 8)

        def forward(self, input_ids):
            scores = torch.sqrt(-1.0 - self.table(input_ids).abs())
            return {"loss": scores.nan_to_num().sum(), "scores": scores}

    assert trace(Scores(), {"input_ids": batch["input_ids"]}).operation == "sqrt"


@pytest.mark.parametrize("form", ["dict", "tuple", "model output"])
@pytest.mark.parametrize("callback", ["counts", "records"])
def test_the_callbacks_see_it_too(form, callback, batch, tmp_path):
    watcher = NonFiniteCallback() if callback == "counts" else BadBatchRecorder(tmp_path / "bad")
    trainer = Trainer(
        model=Small(form, "loss"),
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, prediction_loss_only=True
        ),
        eval_dataset=[{name: tensor[i] for name, tensor in batch.items()} for i in range(2)],
        callbacks=[watcher],
    )
    metrics = trainer.evaluate()
    if callback == "counts":
        assert metrics["eval_nonfinite_batches"] == 1
    else:
        assert watcher.recorded == tmp_path / "bad"


def test_loss_and_logits_by_hand():
    loss, logits = torch.tensor(1.0), torch.zeros(2, 3, 4)
    for form in FORMS.values():
        assert loss_of(form(loss, logits)) is loss
        assert logits_of(form(loss, logits)) is logits
    assert (loss_of((logits,)), logits_of((logits, logits))) == (None, logits)
    assert (loss_of(()), logits_of(()), loss_of(None), logits_of({"loss": 3})) == (None,) * 4
