"""Guards against wrong blame: for each rule a case that looks like its cause, and has another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag import emulate_mps, trace

LENGTH = 6


class Net(nn.Module):
    """One operation of the test's choice between an embedding and a mean loss."""

    def __init__(self, between, dtype=torch.float32, loss=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8, dtype=dtype)
        self.between, self.loss = between, loss

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.between(self.embed(input_ids))
        if labels is None:
            return {"logits": hidden}
        if self.loss is not None:
            return {"loss": self.loss(hidden, labels), "logits": hidden}
        return {"loss": F.cross_entropy(hidden.flatten(0, 1), labels.flatten()), "logits": hidden}


def batch(label=None):
    ids = torch.arange(2 * LENGTH).reshape(2, LENGTH)
    return {"input_ids": ids} if label is None else {"input_ids": ids, "labels": torch.full_like(ids, label)}


def softmax_of(scores):
    return scores.softmax(-1)


def test_rows_of_a_sequence_of_padding_only_are_counted_once(build, batch_of):
    with emulate_mps("2.8"):
        origin = trace(build("tiny-llama"), batch_of((3, 11, 0)))
    where = {"padding before the first real token": 3, "sequences of padding only": 11}
    assert (origin.cause, origin.evidence["where"], origin.evidence["dead_rows"]) == ("dead_rows", where, 14)
    assert origin.summary.startswith("3 fully masked")
    (other,) = origin.also
    assert (other.cause, other.evidence["where"]) == ("bad_mask", where)


def test_padding_only_beside_a_window_on_the_right_is_counted_once(build, batch_of):
    with emulate_mps("2.8"):
        origin = trace(build("tiny-mistral"), batch_of((8, 16), length=16, side="right"))
    kinds = {"padding after the last real token": 4, "sequences of padding only": 16}
    assert (origin.cause, origin.evidence["where"]) == ("dead_rows", kinds)


def test_two_masks_and_a_plus_infinity_is_an_overflow():
    """Subtracting the lowest number twice gives plus infinity: no key is hidden by that."""
    low = torch.finfo(torch.float16).min
    mask = torch.zeros(LENGTH, 8, dtype=torch.float16)
    mask[:, 5:] = low
    origin = trace(Net(lambda hidden: (0.0 - mask) - (hidden * 0 + mask), torch.float16), batch())
    assert (origin.cause, origin.operation) == ("overflow", "sub")


@pytest.mark.parametrize(("depth", "masks"), [(1.0, 2), (0.6, 2), (0.4, 1), (0.05, 1)])
def test_only_what_is_near_the_lowest_number_counts_as_a_mask(depth, masks):
    low = torch.finfo(torch.float16).min
    first = torch.zeros(LENGTH, 8, dtype=torch.float16)
    first[:, 5:] = low
    second = first * depth

    def add(hidden):
        return softmax_of(hidden + (first + second))

    origin = trace(Net(add, torch.float16), batch())
    # All keys but five are hidden twice, and no row is without a key: the infinity is harmless here.
    assert origin is None
    first[:], second[:] = low, low * depth
    origin = trace(Net(add, torch.float16), batch())
    assert (origin.cause, origin.operation) == ("bad_mask", "add")
    assert origin.evidence["masks_at_lowest"] == masks


def test_labels_of_minus_100_are_not_blamed_for_another_division():
    def divide(hidden):
        return hidden + torch.zeros(8) / torch.zeros(8)

    origin = trace(Net(divide), batch(-100))
    assert (origin.cause != "no_labels", origin.operation) == (True, "div")
    assert [other.cause for other in origin.also] == ["no_labels"]


def test_labels_that_count_are_not_blamed_for_a_loss_divided_by_nothing():
    def over_nothing(hidden, labels):
        kept = labels.eq(19)
        return (hidden.sum(-1) * kept).sum() / kept.sum()

    origin = trace(Net(lambda hidden: hidden, loss=over_nothing), batch(3))
    assert (origin.cause != "no_labels", origin.operation) == (True, "div")


def test_a_mean_over_no_label_is_no_labels_however_it_is_written():
    def over_labels(hidden, labels):
        kept = labels.ne(-100)
        return (hidden.sum(-1) * kept).sum() / kept.sum()

    origin = trace(Net(lambda hidden: hidden, loss=over_labels), batch(-100))
    assert (origin.cause, origin.operation) == ("no_labels", "div")


def test_ignored_labels_are_not_blamed_for_a_non_finite_divisor():
    def by_infinity(hidden, labels):
        large = hidden.sum() * 0 + float("inf")
        return large / large

    origin = trace(Net(lambda hidden: hidden, loss=by_infinity), batch(-100))
    assert origin.cause != "no_labels"


def test_ignored_labels_are_not_blamed_for_a_tiny_divisor():
    def by_almost_nothing(hidden, labels):
        return hidden.abs().sum() / torch.tensor(1e-38)

    origin = trace(Net(lambda hidden: hidden * 1e3, loss=by_almost_nothing), batch(-100))
    assert (origin.cause, origin.operation) == ("overflow", "div")


def test_activations_that_overflow_downwards_are_not_taken_for_masks():
    """Two residuals of about minus forty thousand in float16: their sum is minus infinity, and neither hides a key."""

    def add(hidden):
        large = -40000.0 - hidden.abs() * 4000.0
        return softmax_of(large + large)

    origin = trace(Net(add, torch.float16), batch())
    assert (origin.cause, origin.operation) == ("overflow", "add")
