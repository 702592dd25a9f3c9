"""Compiled models: no graph break more than stock SDPA has, and the same numbers.

One layer each: tracing is slow, and every layer is traced alike.
"""

from __future__ import annotations

import pytest
import torch

import mpsdiag


def _explained(model, inputs):
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch._dynamo.explain(model)(**inputs)
    return found.graph_count, found.graph_break_count


@pytest.mark.parametrize("name", ["llama_one_layer", "falcon_one_layer"])
def test_no_graph_break_is_added(name, build, in_place):
    model, inputs = build(name)
    stock = _explained(model, inputs)
    with in_place(model):
        assert _explained(model, inputs) == stock
    with mpsdiag.install("safe_sdpa"):
        assert _explained(model, inputs) == stock


def test_a_compiled_model_gives_the_same_logits(build, logits, in_place):
    model, inputs = build("llama_one_layer")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    stock = logits(compiled, inputs)
    assert torch.equal(stock, logits(model, inputs))
    with in_place(model):
        assert torch.equal(logits(compiled, inputs), stock)
    with mpsdiag.install("safe_sdpa"):
        assert torch.equal(logits(compiled, inputs), stock)


def test_a_compiled_model_follows_install_and_remove(build, logits):
    model, inputs = build("llama_one_layer")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    stock = logits(compiled, inputs)
    with mpsdiag.install("unmask_sdpa"):
        changed = logits(compiled, inputs)
        assert torch.equal(changed, logits(model, inputs))
    assert not torch.equal(changed, stock)
    assert torch.equal(logits(compiled, inputs), stock)
