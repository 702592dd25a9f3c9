"""What the model was given: running statistics, buffers of masks, class labels."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

from mpsdiag import trace


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("hidden", torch.full((3,), float("-inf")).masked_fill(torch.ones(3).bool(), 0.0))

    def forward(self, x, labels):
        logits = self.head(self.norm(self.first(x))) + self.hidden
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


BATCH = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(3)), "labels": torch.tensor([0, 1, 2, 0, 1])}


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_running_statistics(statistic, value):
    model = Normalized()
    getattr(model.norm, statistic)[2] = value
    with torch.no_grad():
        plain = model.eval()(**BATCH)["loss"]
    origin = trace(model, BATCH)
    if bool(plain.isfinite()):  # An infinite variance divides to zero: nothing of it reaches the loss.
        assert origin is None
    else:
        assert (origin.cause, origin.module) == ("bad_weights", "norm")
        assert f"the buffer norm.{statistic}" in origin.summary
        assert "reset_running_stats" in origin.remedy.commands[0]
    assert trace(model, BATCH, train=True) is None  # Training does not read them.


def test_a_negative_variance_is_no_division_by_zero():
    model = Normalized()
    model.norm.running_var[1] = -1.0
    origin = trace(model, BATCH)
    assert (origin.cause, origin.module) == ("unknown", "norm")
    assert "negative running variance" in origin.summary


def test_minus_infinity_in_a_buffer_that_masks_is_meant():
    model = Normalized()
    model.hidden[2] = float("-inf")
    labels = BATCH["labels"].clamp(max=1)
    assert trace(model, {**BATCH, "labels": labels}) is None


def classifier(name, **options):
    config = hf.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **options
    )
    torch.manual_seed(0)
    return getattr(hf, name)(config).eval()


IDS = torch.arange(3, 21).reshape(2, 9)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("value", [4, -1])
def test_a_class_that_the_model_does_not_have(train, value):
    sequences = torch.tensor([0, value])
    tokens = torch.full_like(IDS, -100)
    tokens[1, 2] = value
    for name, labels in (("BertForSequenceClassification", sequences), ("BertForTokenClassification", tokens)):
        origin = trace(classifier(name, num_labels=4), {"input_ids": IDS, "labels": labels}, train=train)
        assert (origin.cause, origin.evidence["input"], origin.evidence["size"]) == ("bad_inputs", "labels", 4)
        assert "num_labels 4" in origin.summary
        assert "num_labels" in origin.remedy.commands[0]


@pytest.mark.parametrize("train", [False, True])
def test_a_class_out_of_range_in_a_model_of_ones_own(train):
    labels = torch.tensor([0, 1, 3, 0, -100])
    origin = trace(Normalized(), {**BATCH, "labels": labels}, train=train)
    assert (origin.cause, origin.operation, origin.evidence["input"]) == ("bad_inputs", "cross_entropy", "labels")
    assert origin.evidence["range"] == [-100, 3]
    assert "num_labels" in origin.summary
    assert trace(Normalized(), {**BATCH, "labels": labels.clamp(max=2)}) is None


def test_a_token_type_out_of_range_is_named():
    model = classifier("BertForSequenceClassification", num_labels=4, type_vocab_size=2)
    types = torch.zeros_like(IDS)
    types[0, 3] = 2
    origin = trace(model, {"input_ids": IDS, "token_type_ids": types, "labels": torch.tensor([0, 1])})
    assert (origin.cause, origin.operation, origin.evidence["input"]) == ("bad_inputs", "embedding", "token_type_ids")


def test_labels_of_a_regression_are_no_classes():
    model = classifier("BertForSequenceClassification", num_labels=1)
    assert trace(model, {"input_ids": IDS, "labels": torch.tensor([7.0, -3.0])}) is None
