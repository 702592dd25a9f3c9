"""Quotients by zero and infinite losses in the many forms people write them, each with a near miss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag import trace


class Run(nn.Module):
    """A model of one line."""

    def __init__(self, line):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.line = line

    def forward(self, x, labels=None):
        return {"loss": self.line(x * self.weight, labels)}


def pooled(x, labels):
    count = (labels >= 0).float()
    return (x * count).sum(-1).div(count.sum(-1)).mean()


def own_sum(x, labels):
    return x.sum() / (labels >= 0).sum().item() if bool((labels >= 0).any()) else x.sum() / torch.zeros(())


X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
NOTHING, SOME = torch.full((2, 3), -1), torch.tensor([[0, 1, 2], [2, 1, 0]])

BY_ZERO = {
    "pooling over nothing": (pooled, "div"),
    "x by 0": (own_sum, "div"),
    "an in-place quotient": (lambda x, y: (x + 0.0).div_(y.clamp(min=0).sum().float()).sum(), "div"),
    "number / tensor": (lambda x, y: (1.0 / (y.clamp(min=0) * x)).sum(), "div"),
    "reciprocal": (lambda x, y: (y.clamp(min=0) * x).reciprocal().sum(), "reciprocal"),
    "rsqrt": (lambda x, y: (y.clamp(min=0) * x).rsqrt().sum(), "rsqrt"),
    "the norm of a zero row": (lambda x, y: (z := x * y.clamp(min=0)).div(z.norm(dim=-1, keepdim=True)).sum(), "div"),
    "normalize without eps": (lambda x, y: F.normalize(x * y.clamp(min=0), dim=-1, eps=0.0).sum(), "normalize"),
    "the spread of one value": (lambda x, y: x[:1, :1].std() + x.sum(), "std"),
    "the variance of one row": (lambda x, y: x[:1].var(0).sum(), "var"),
    "a mean over nothing": (lambda x, y: x[y > 99].mean(), "mean"),
    "an empty mse": (lambda x, y: F.mse_loss(x[y > 99], x[y > 99]), "mse_loss"),
    "remainder": (lambda x, y: torch.remainder(x, y.clamp(min=0)).sum(), "remainder"),
    "layer norm of a constant row, eps 0": (lambda x, y: F.layer_norm(x * 0 + 2, (3,), eps=0.0).sum(), "layer_norm"),
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", BY_ZERO)
@pytest.mark.parametrize("train", [False, True])
def test_division_by_zero(name, train):
    line, operation = BY_ZERO[name]
    origin = trace(Run(line), {"x": X, "labels": NOTHING}, train=train)
    assert (origin.cause, origin.operation, origin.phase) == ("division_by_zero", operation, "forward")
    assert "zero" in origin.summary


def test_class_weights_of_zero():
    def line(x, labels):
        return F.cross_entropy(x, labels[:, 0], weight=torch.tensor([0.0, 1.0, 1.0]))

    batch = {"x": X, "labels": torch.zeros(2, 3, dtype=torch.long)}
    assert trace(Run(line), batch).cause == "division_by_zero"
    assert trace(Run(line), {**batch, "labels": SOME}) is None


@pytest.mark.parametrize("name", ["pooling over nothing", "x by 0", "a mean over nothing"])
def test_the_same_lines_are_clean_where_something_is_left(name):
    line, _ = BY_ZERO[name]
    labels = torch.full_like(SOME, 100) if name == "a mean over nothing" else SOME
    assert trace(Run(line), {"x": X, "labels": labels}) is None


def test_a_mean_over_ignored_labels_is_no_labels():
    def line(x, labels):
        kept = labels.flatten() != -100
        return F.cross_entropy(x[:, :, None].expand(2, 3, 4).flatten(0, 1)[kept], labels.flatten()[kept])

    origin = trace(Run(line), {"x": X, "labels": torch.full((2, 3), -100)})
    assert (origin.cause, origin.operation) == ("no_labels", "cross_entropy")
    origin = trace(Run(lambda x, y: x[y != -100].mean()), {"x": X, "labels": torch.full((2, 3), -100)})
    assert (origin.cause, origin.operation) == ("no_labels", "mean")


def test_a_quotient_beyond_the_dtype_is_an_overflow():
    origin = trace(Run(lambda x, y: (x * 1e30 / 1e-30).sum()), {"x": X})
    assert (origin.cause, origin.operation) == ("overflow", "div")


def test_infinity_by_infinity_is_not_a_division_by_zero():
    origin = trace(Run(lambda x, y: ((x * 1e38 * 1e38) / (x * 1e38 * 1e38)).sum()), {"x": X})
    assert (origin.cause, origin.operation) == ("overflow", "mul")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("line", "operation"),
    [
        (lambda x, y: -(x * 0.0).log().mean(), "log"),
        (lambda x, y: (x * 0.0).log().sum(), "log"),
        (lambda x, y: -torch.log2(x - x).mean(), "log2"),
        (lambda x, y: x.masked_fill(x > 5, float("-inf")).neg().logsumexp(-1).sum(), "neg"),
    ],
)
def test_an_infinite_loss_is_a_finding(line, operation, train):
    origin = trace(Run(line), {"x": X}, train=train)
    assert (origin.cause, origin.operation) == ("unknown", operation)
    assert "does not repeat" not in origin.summary


def banned(x, _labels=None):
    return x.masked_fill(torch.tensor([False, False, True]), float("-inf"))


def test_a_label_on_a_class_that_is_ruled_out():
    line = lambda x, y: F.cross_entropy(banned(x), y[:, 0])  # noqa: E731
    origin = trace(Run(line), {"x": X, "labels": SOME})
    assert (origin.cause, origin.operation, origin.evidence["labels"]) == ("bad_inputs", "cross_entropy", "1")
    assert trace(Run(line), {"x": X, "labels": SOME * 0}) is None


def test_label_smoothing_over_a_class_that_is_ruled_out():
    line = lambda x, y: F.cross_entropy(banned(x), y[:, 0], label_smoothing=0.1)  # noqa: E731
    origin = trace(Run(line), {"x": X, "labels": SOME * 0})
    assert (origin.cause, origin.operation) == ("unknown", "cross_entropy")
    assert "label smoothing" in origin.summary


def test_does_not_repeat_is_said_after_a_second_run_that_was_finite():
    """A kernel that gives an infinity each time it runs unwatched, and nothing while it is watched."""

    def line(x, labels):
        watched = bool(torch.overrides._get_current_function_mode_stack())
        return x.sum() if watched else x.sum().as_subclass(torch.Tensor) * float("inf")

    origin = trace(Run(line), {"x": X})
    assert "whenever it runs as it is" in origin.summary
