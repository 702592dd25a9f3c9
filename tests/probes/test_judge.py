"""The rule for "wrong", against torch's own float64 attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.sdpa.float64 import Yardstick, composite_attention, plain_errors, transposed


def drawn(seed, batch, heads, kv_heads, queries, keys, width):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, heads, queries, width, generator=generator, dtype=torch.float64),
        torch.randn(batch, kv_heads, keys, width, generator=generator, dtype=torch.float64),
        torch.randn(batch, kv_heads, keys, width, generator=generator, dtype=torch.float64),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    width=st.sampled_from([1, 3, 8]),
    masked=st.sampled_from(["none", "causal", "bool", "float"]),
    scale=st.sampled_from([None, 0.3, 2.0]),
    way=st.sampled_from(["scores", "inputs"]),
)
def test_in_float64_it_is_torchs_attention(seed, sizes, width, masked, scale, way):
    batch, kv_heads, group, queries, keys = sizes
    q, k, v = drawn(seed, batch, kv_heads * group, kv_heads, queries, keys, width)
    generator = torch.Generator().manual_seed(seed)
    mask = None
    if masked == "bool":
        mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.6
    if masked == "float":
        mask = torch.randn(queries, keys, generator=generator, dtype=torch.float64)
    causal = masked == "causal"
    ours = composite_attention(q, k, v, mask, is_causal=causal, scale=scale, scaled=way)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=group > 1
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dead_rows_give_zeros_and_finite_gradients(dtype):
    q, k, v = (tensor.to(dtype).requires_grad_() for tensor in drawn(0, 1, 2, 2, 3, 4, 8))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    output = composite_attention(q, k, v, mask)
    assert not output[:, :, 1].any()
    output.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (q, k, v))


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-4), (torch.float32, 1e-8)])
def test_errors_are_those_of_the_dtype(dtype, least):
    q, k, v = (tensor.to(dtype) for tensor in drawn(1, 2, 2, 2, 16, 16, 64))
    reference = composite_attention(q.double(), k.double(), v.double())
    errors = plain_errors(reference, q, k, v)
    assert len(errors) == (4 if dtype == torch.float32 else 2)
    assert all(least < error < 40 * torch.finfo(dtype).eps for error in errors)


def test_an_overflow_of_one_way_of_scaling_leaves_the_other():
    q = torch.full((1, 1, 4, 64), 40.0, dtype=torch.float16)
    v = torch.randn(1, 1, 4, 64, generator=torch.Generator().manual_seed(0)).half()
    reference = composite_attention(q.double(), q.double(), v.double())
    assert not torch.isfinite(composite_attention(q, q, v, scaled="scores")).any()
    assert len(plain_errors(reference, q, q, v)) == 1


def test_the_verdict():
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    yardstick = Yardstick(reference, 0.1)
    assert yardstick.judge(reference + 0.05) == (True, "right", pytest.approx(0.05))
    assert yardstick.judge(reference + 0.2)[:2] == (False, "wrong values")
    bad = reference.clone()
    bad[1, 0] = math.nan
    assert yardstick.judge(bad)[:2] == (False, "NaN")
    assert yardstick.judge(bad, torch.tensor([True, False]))[0]
    bad[1, 0] = math.inf
    assert yardstick.judge(bad)[:2] == (False, "wrong values")
    ok, seen, error = yardstick.judge(reference[:, :1])
    assert (ok, math.isnan(error)) == (False, True)
    assert "(2, 1) instead of (2, 2)" in seen


def test_a_transposed_layout_holds_the_same_values():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    moved = transposed(x)
    assert torch.equal(moved, x)
    assert moved.stride() == (60, 5, 15, 1)
