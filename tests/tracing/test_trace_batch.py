"""`mpsdiag.trace`: what it takes, what it refuses in a sentence, and that it leaves everything as it was."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mpsdiag
from mpsdiag import emulate_mps, trace
from mpsdiag.errors import BadInput, CannotDecide
from mpsdiag.serialization import dumps
from mpsdiag.tracing.passes import forward as forward_pass


def test_it_is_exported_lazily():
    assert "trace" in dir(mpsdiag)
    assert mpsdiag.trace is trace


def test_all_finite_is_none(build, batch_of, name):
    assert trace(build(name), batch_of()) is None


def test_lists_and_batches_without_labels_or_mask_will_do(build):
    assert trace(build(), {"input_ids": [[5, 6, 7], [8, 9, 10]]}) is None


def test_the_model_is_left_as_it_was(build, batch_of):
    model, batch = build("tiny-llama").train(), batch_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    with emulate_mps("2.8"):
        assert trace(model, batch) is not None
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in batch.items())
    assert torch.is_grad_enabled()


def test_an_origin_can_be_written_as_json(build, batch_of):
    with emulate_mps("2.8"):
        origin = trace(build(), batch_of())
    assert '"cause": "dead_rows"' in dumps(origin, indent=1)
    assert origin.place == "layer 0, model.layers.0.self_attn, scaled_dot_product_attention"
    assert origin.remedy.commands


def test_the_evidence_names_rows_heads_and_ranges(build, batch_of):
    with emulate_mps("2.8"):
        origin = trace(build(), batch_of((3, 0, 0)))
    non_finite = origin.evidence["output"]["non_finite"]
    assert non_finite["rows"] == 3 * 4
    assert (non_finite["sequences"], non_finite["heads"], non_finite["positions"]) == ("0", "0-3", "0-2")
    inputs = {fact["name"]: fact for fact in origin.evidence["inputs"]}
    assert set(inputs) == {"query", "key", "value", "attn_mask"}
    assert inputs["query"]["min"] < inputs["query"]["max"]
    assert [step["positions"] for step in origin.evidence["spread"]] == [3, 11, 11, 11]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda batch: {"input_idz": batch["input_ids"]}, "Did you mean 'input_ids'"),
        (lambda batch: {"attention_mask": batch["attention_mask"]}, "has no 'input_ids'"),
        (lambda batch: {**batch, "attention_mask": batch["attention_mask"][:, :7]}, "(3, 7)"),
        (lambda batch: {**batch, "labels": batch["labels"][:2]}, "(2, 11)"),
        (lambda batch: {**batch, "input_ids": batch["input_ids"][0]}, "(11,)"),
        (lambda batch: {**batch, "input_ids": batch["input_ids"].float()}, "token ids must be integers"),
        (lambda batch: {"input_ids": [[1, 2], [3]]}, "cannot be converted to a tensor"),
        (lambda batch: {}, "empty"),
        (lambda batch: batch["input_ids"], "mapping"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(build, batch_of, change, sentence):
    with pytest.raises(BadInput) as refusal:
        trace(build(), change(batch_of()))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (None, "mpsdiag trace --model FOLDER"),
        ("some/folder", "Load it first"),
        (Path("some/folder"), "mpsdiag trace --model some/folder"),
        (nn.Linear, "Give the loaded model itself"),
    ],
)
def test_what_is_no_model_is_refused(batch_of, model, sentence):
    with pytest.raises(BadInput, match=sentence):
        trace(model, batch_of())


@pytest.mark.needs(transformers="4.56")  # Older ones repeat the heads of Llama.
def test_a_forward_that_fails_leaves_it_undecided(build, batch_of):
    with emulate_mps("2.6"), pytest.raises(CannotDecide) as undecided:
        trace(build("tiny-llama"), batch_of((0, 0)))  # shared heads end the process there
    assert "The forward itself fails" in str(undecided.value)


class Toy(nn.Module):
    """No transformers model: attention by hand, and an operation that writes in place."""

    def __init__(self, fault):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.fault = fault

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if index == 1:
                hidden = self.fault(hidden, attention_mask)
        return hidden


def in_place(hidden, mask):
    hidden[0, 1] -= hidden[0, 1]
    hidden[0, 1] /= hidden[0, 1]
    return hidden


def through_a_view(hidden, mask):
    view = hidden.view(-1)
    view[5:6].sub_(view[5:6].clone()).log_().mul_(0.0)
    return hidden + 1


def eager_softmax(hidden, mask):
    scores = (hidden @ hidden.mT)[:, None]
    visible = mask.bool()[:, None, None, :] & torch.ones(5, 5, dtype=torch.bool).tril()
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, dim=-1)[:, 0] @ hidden


def zero_times_infinity(hidden, mask):
    bias = (1.0 - mask[:, None, None, :].float()) * float("-inf")
    return F.scaled_dot_product_attention(hidden[:, None], hidden[:, None], hidden[:, None], bias)[:, 0]


@pytest.mark.parametrize(
    ("fault", "cause", "operation"),
    [
        (in_place, "division_by_zero", "div"),
        (through_a_view, "unknown", "mul"),
        (eager_softmax, "dead_rows", "softmax"),
        (zero_times_infinity, "bad_mask", "mul"),
    ],
)
def test_any_module_and_any_operation(fault, cause, operation):
    torch.manual_seed(0)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    origin = trace(Toy(fault), {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": mask})
    assert (origin.cause, origin.module, origin.operation) == (cause, "", operation)


def test_a_module_that_torch_does_not_see_is_named():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            with torch._C.DisableTorchFunction():
                return x * float("nan")

        @staticmethod
        def backward(ctx, grad):
            return grad

    model = Toy(lambda hidden, mask: Opaque.apply(hidden))
    origin = trace(model, {"input_ids": torch.arange(10).reshape(2, 5)})
    assert (origin.cause, origin.operation) == ("unknown", "Toy")


def test_a_forward_that_does_not_repeat_is_no_clean_one(build, batch_of):
    """NaN the first time, finite ever after, as memory that nobody wrote may give it."""
    model, runs = build("tiny-llama"), []

    def once(module, args, output):
        runs.append(1)
        return output * float("nan") if len(runs) == 1 else output

    model.model.layers[1].mlp.register_forward_hook(once)
    origin = trace(model, batch_of())
    assert (origin.cause, origin.operation) == ("unknown", "forward")
    assert "does not repeat" in origin.summary


def test_values_that_are_written_over_later_are_kept_as_they_were(build, batch_of):
    """The input of the operation that overflows is changed in place right after it."""
    model = build("tiny-llama", "float16")
    module = model.model.layers[2].mlp

    def hook(module, args, output):
        hidden = output.clone()
        large = hidden.abs() * 60000.0 + 60000.0
        sum_ = large + large
        large.zero_()
        return sum_

    module.register_forward_hook(hook)
    origin = trace(model, batch_of())
    assert (origin.cause, origin.layer, origin.operation) == ("overflow", 2, "add")


def test_a_compiled_model_is_traced_as_it_was_before(build, batch_of):
    model = build("tiny-llama")
    compiled = torch.compile(model, backend="eager")
    with emulate_mps("2.8"):
        origin = trace(compiled, batch_of())
    assert (origin.cause, origin.module) == ("dead_rows", "model.layers.0.self_attn")


def test_a_clean_batch_is_read_from_the_device_once(build, batch_of, monkeypatch):
    reads, numbers = [], forward_pass.numbers

    def counted(*parts):
        reads.append("numbers")
        return numbers(*parts)

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
                reads.append(func.__name__)
            return func(*args, **(kwargs or {}))

    model, batch = build("tiny-llama"), batch_of()
    with torch.no_grad(), Count():
        model(**batch)
    alone, reads[:] = list(reads), []
    forward = forward_pass.ForwardTrace(model)
    monkeypatch.setattr(forward_pass, "numbers", counted)
    with torch.no_grad(), Count():
        assert forward.run(batch).origin is None
    assert sorted(reads) == sorted([*alone, "numbers"])
