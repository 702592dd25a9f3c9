"""Training steps: forward, backward and optimizer, and when the learning rate is to blame."""

import pytest
import torch
from torch import nn

from mpsdiag import emulate_mps, trace
from mpsdiag.errors import BadInput
from mpsdiag.tracing.passes.training import trace_training


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model_dtype", [("tiny-gpt2", "float32"), ("tiny-llama", "bfloat16")])
def test_healthy_training_gives_no_finding_and_leaves_the_weights(build, batch_of, model_dtype):
    model = build(*model_dtype)
    before = state(model)
    found = trace_training(model, [batch_of(seed=s) for s in range(2)], 1e-3, steps=5)
    assert found.origin is None
    assert len(found.losses) == len(found.grad_norms) == 5
    assert found.losses[-1] < found.losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_the_losses_are_those_of_plain_training(build, batch_of):
    """An independent loop without any watching gives the same numbers."""
    batch, twin = batch_of(), build("tiny-qwen2").train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    for _ in range(3):
        loss = twin(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert trace_training(build("tiny-qwen2"), [batch], 1e-3, steps=3).losses == expected


@pytest.mark.parametrize(
    ("name", "dtype", "rate", "operation"),
    [
        ("tiny-gpt2", "float32", 1e12, "scaled_dot_product_attention"),
        ("tiny-llama", "bfloat16", 1e12, "scaled_dot_product_attention"),
        *(
            # With the finite masks of older releases the gradients overflow elsewhere.
            pytest.param("tiny-gpt2", dtype, 1e3, "clip_grad_norm_", marks=pytest.mark.needs(transformers="4.56"))
            for dtype in ("float32", "bfloat16")
        ),
        ("tiny-qwen2", "float32", 1e12, "scaled_dot_product_attention"),
    ],
)
def test_a_learning_rate_far_too_high(build, batch_of, name, dtype, rate, operation):
    model = build(name, dtype)
    before = state(model)
    found = trace_training(model, [batch_of(seed=s) for s in range(3)], rate, steps=8)
    origin = found.origin
    assert (origin.cause, origin.operation) == ("divergence", operation)
    step = origin.evidence["step"]
    assert step >= 1
    assert max(origin.evidence["growth"].values()) >= 10
    assert f"finite up to step {step - 1}, not in step {step}" in origin.summary
    assert "learning rate" in origin.remedy.text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_adam_in_pure_half_precision(build, batch_of, name):
    origin = trace_training(build(name, "float16"), [batch_of()], 1e-4, steps=3).origin
    assert (origin.cause, origin.operation, origin.phase) == ("overflow", "AdamW.step", "optimizer")
    assert "eps" in origin.summary


def test_dead_rows_in_training_with_a_frozen_base(build, batch_of):
    model = build("tiny-llama").requires_grad_(requires_grad=False)
    model.lm_head.weight.requires_grad_(requires_grad=True)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of(), train=True)
    assert (origin.cause, origin.layer) == ("dead_rows", 0)
    with emulate_mps("2.8"):
        assert trace(build("tiny-llama"), batch_of(), train=True) is None


def test_a_gradient_that_overflows(build, batch_of, plants, name, dtype):
    """Small steps down and large ones up give the same forward, and a backward beyond the dtype."""
    model, batch = build(name, dtype), batch_of()
    batch["labels"][:, :-1] = -100  # few labels, large gradients
    power = 12 if dtype == "float16" else 70
    layer = 2
    plants.layers(model)[layer].mlp.register_forward_hook(
        lambda module, args, output: output * 2.0**-power * 2.0**-power * 2.0**power * 2.0**power
    )
    assert trace(model, batch) is None
    origin = trace(model, batch, train=True)
    assert (origin.cause, origin.phase, origin.layer) == ("overflow", "backward", layer)
    assert (origin.module, origin.operation) == (plants.path(model, plants.layers(model)[layer].mlp), "mul")


def test_a_gradient_so_large_that_infinities_cancel_overflows_too(build, batch_of, plants):
    """The derivative of a layer norm sums products of both signs: beyond float32 it is NaN, not infinite."""

    class Enlarged(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (1e30 / gradient.abs().max())

    model = build("tiny-gpt2")
    norm = plants.layers(model)[2].ln_1
    norm.register_forward_pre_hook(lambda module, args: (args[0] * 1e3 + 1e9,))
    norm.register_forward_hook(lambda module, args, output: Enlarged.apply(output))
    assert trace(model, batch_of()) is None
    origin = trace(model, batch_of(), train=True)
    assert (origin.cause, origin.phase, origin.layer, origin.operation) == ("overflow", "backward", 2, "layer_norm")
    assert origin.evidence["outgoing"][0]["nan"] > 0
    assert "inf" not in origin.evidence["outgoing"][0]


def test_a_derivative_that_is_infinite(build, batch_of, plants):
    model = build("tiny-gpt2")
    module = plants.layers(model)[1].mlp
    module.register_forward_hook(lambda m, args, output: output + (output * 0.0).abs().sqrt())
    origin = trace(model, batch_of(), train=True)
    assert (origin.cause, origin.phase, origin.layer, origin.operation) == ("derivative", "backward", 1, "sqrt")
    assert origin.evidence["derivative"].startswith("SqrtBackward")


def test_a_derivative_that_torch_functions_do_not_show(build, batch_of, plants):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    model = build("tiny-llama")
    module = plants.layers(model)[3].mlp
    module.register_forward_hook(lambda m, args, output: Broken.apply(output))
    origin = trace(model, batch_of(), train=True)
    assert (origin.cause, origin.phase, origin.layer) == ("derivative", "backward", 3)
    assert origin.operation == "BrokenBackward"


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_causes_in_the_data_stay_what_they_are(build, batch_of, name):
    good, bad = batch_of(), batch_of()
    bad["labels"].fill_(-100)
    found = trace_training(build(name), [good, good, bad], 1e-3)
    assert found.origin.cause == "no_labels"
    assert len(found.losses) == 3


def test_bad_weights_are_named_in_training_too(build, batch_of, plants):
    model = build("tiny-mistral")
    module, operation = plants.bad_weight(model, 1)
    origin = trace(model, batch_of(), train=True)
    assert (origin.cause, origin.module, origin.operation) == ("bad_weights", module, operation)


def test_dropout_is_repeated(build, batch_of):
    """The detailed pass draws the same random numbers: the planted NaN depends on them."""
    model = build("tiny-gpt2")

    def sometimes(module, args, output):
        return output * float("nan") if module.training and torch.rand(()) < 0.5 else output

    for layer in model.transformer.h:
        layer.mlp.register_forward_hook(sometimes)
    layers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        expected = next((layer for layer in range(4) if torch.rand(()) < 0.5), None)
        torch.manual_seed(seed)
        origin = trace(model, batch_of(), train=True)
        assert (None if origin is None else origin.layer) == expected
        layers.add(expected)
    assert len(layers) > 1


def test_what_cannot_be_trained_is_refused(build, batch_of):
    with pytest.raises(BadInput, match="add labels"):
        trace(build(), batch_of(labels=False), train=True)
    with pytest.raises(BadInput, match="Unfreeze some"):
        trace(build().requires_grad_(requires_grad=False), batch_of(), train=True)
