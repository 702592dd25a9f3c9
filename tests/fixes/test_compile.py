"""Compiled models: one whole graph with the fix as without it, and the same numbers.

One layer each: tracing is slow, and every layer is traced alike. `fullgraph=True` makes any graph break an error.
"""

from __future__ import annotations

import pytest
import torch

import mpsdiag
from mpsdiag.fixes import anatomy


@pytest.mark.parametrize("name", ["llama_one_layer", "falcon_one_layer"])
def test_a_compiled_model_is_one_graph_with_the_same_logits(name, build, logits, in_place):
    model, inputs = build(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    stock = logits(compiled, inputs)
    assert torch.equal(stock, logits(model, inputs))
    with in_place(model):
        assert torch.equal(logits(compiled, inputs), stock)
    if name != "falcon_one_layer":  # for Falcon that was the way in place already
        with mpsdiag.install("safe_sdpa"):
            assert torch.equal(logits(compiled, inputs), stock)


def test_a_model_that_keeps_the_name_sdpa_is_one_graph_too(build, logits, monkeypatch):
    monkeypatch.setattr(anatomy, "asks_for_exact_name", lambda model: True)
    model, inputs = build("llama_one_layer")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with mpsdiag.apply(model, "unmask_sdpa"):
        assert model.config._attn_implementation == "sdpa"
        changed = logits(model, inputs)
        assert torch.equal(logits(compiled, inputs), changed)
    assert not torch.equal(logits(compiled, inputs), changed)


def test_compiled_code_follows_install_and_remove():
    query = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(query, query, query, mask)

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    stock = compiled()
    assert (stock[:, :, 0] == 0).all()
    with mpsdiag.install("unmask_sdpa"):
        assert torch.equal(compiled(), attend())
        assert (compiled()[:, :, 0] != 0).all()
    assert torch.equal(compiled(), stock)
