"""The modes as bodies of SDPA, over shapes and masks: against SDPA on the CPU and the float64 reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.fixes import repairs
from mpsdiag.fixes.modes import MODES
from mpsdiag.sdpa.float64 import reference_attention
from mpsdiag.sdpa.watch import dead_rows

L, S = 4, 6
SDPA = repairs.MaskArgument("attn_mask", 3)


def attend(mode, *args, **options):
    return repairs.repaired_sdpa(F.scaled_dot_product_attention, SDPA, MODES[mode].repair(), args, options)


SHAPES = [(L, S), (1, S), (2, 1, L, S), (1, 1, L, S), (2, 4, L, S), (1, 4, 1, S)]


@st.composite
def calls(draw, dtypes=("float32", "bfloat16", "float16")):
    """Query, key, value and a mask with some rows that have no key."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = getattr(torch, draw(st.sampled_from(dtypes)))
    q, k, v = (torch.randn(2, 4, size, 8, generator=generator).to(dtype).requires_grad_() for size in (L, S, S))
    shape = draw(st.sampled_from(SHAPES))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    if draw(st.booleans()):
        bias = torch.randn(shape, generator=generator)
        mask = torch.where(mask, bias, -torch.inf).to(dtype)
    return q, k, v, mask


def _run(function, q, k, v, mask, **options):
    output = function(q, k, v, mask, **options)
    return output.detach(), torch.autograd.grad(output.float().square().sum(), (q, k, v))


@settings(deadline=None, max_examples=60)
@given(calls())
def test_safe_is_bit_equal_with_its_gradients(call):
    stock = F.scaled_dot_product_attention

    def safe(q, k, v, mask):
        return attend("safe_sdpa", q, k, v, mask)

    output, gradients = _run(safe, *call)
    expected, expected_gradients = _run(stock, *call)
    assert torch.equal(output, expected)
    assert all(map(torch.equal, gradients, expected_gradients))
    with torch.no_grad():
        assert torch.equal(safe(*call), stock(*call))


@settings(deadline=None, max_examples=40)
@given(calls())
def test_no_repair_hands_on_a_dead_row_nor_touches_a_living_one(call):
    q, k, v, mask = (x.detach() for x in call)
    living = ~dead_rows(mask)
    stock = F.scaled_dot_product_attention(q, k, v, mask)
    for name in ("safe_sdpa", "unmask_sdpa", "min_mask_sdpa"):
        repaired = MODES[name].repair()(mask, q.dtype)
        assert not dead_rows(repaired.mask).any()
        output = attend(name, q, k, v, mask)
        assert output.isfinite().all()
        rows = living.expand(2, 4, L)
        assert torch.equal(output[rows], stock[rows])


@settings(deadline=None, max_examples=40)
@given(calls(dtypes=("float32", "float64")), st.sampled_from([None, 0.3]))
def test_eager_is_the_definition(call, scale):
    q, k, v, mask = (x.detach() for x in call)
    output = repairs.eager(q, k, v, mask, scale=scale)
    exact = reference_attention(q, k, v, mask, scale=scale)
    stock = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    living = ~dead_rows(mask).expand(2, 4, L)
    assert (output.shape, output.dtype) == (stock.shape, q.dtype)
    error, theirs = ((x - exact)[living].abs() for x in (output, stock))
    # One rounding of the largest value is granted beside twice the error of stock: stock may hit it exactly.
    assert error.sum() <= 2 * theirs.sum() + torch.finfo(q.dtype).eps * v.abs().max() * max(error.numel(), 1)
    # A query without a key averages all values.
    mean = v.double().mean(-2, keepdim=True).expand_as(exact)
    off = (output - mean)[~living].abs()
    assert off.numel() == 0 or off.max() <= S * torch.finfo(q.dtype).eps * v.abs().max()


def test_eager_with_causality_and_shared_heads():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=generator)
    k, v = (torch.randn(2, 2, 7, 8, generator=generator) for _ in range(2))
    output = repairs.eager(q, k, v, is_causal=True, enable_gqa=True)
    exact = reference_attention(q, k, v, is_causal=True, enable_gqa=True)
    stock = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert (output - exact).abs().max() <= 2 * (stock - exact).abs().max()


def test_eager_drops_weights():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 3, 8, generator=generator) for _ in range(2))
    v = torch.ones(1, 1, 3, 8)
    assert (repairs.eager(q, k, v, dropout_p=1.0) == 0).all()
    assert torch.allclose(repairs.eager(q, k, v), v)
    torch.manual_seed(0)
    dropped = torch.cat([repairs.eager(q, k, v, dropout_p=0.5) for _ in range(200)])
    assert not torch.allclose(dropped, torch.ones(()))
    # The mean of 200 sums of three weights that are 0 or doubled, within four standard errors.
    assert abs(dropped[..., 0].mean() - 1) < 4 * dropped[..., 0].std() / 600**0.5


def test_without_a_mask_nothing_is_done():
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    for name in ("safe_sdpa", "unmask_sdpa", "min_mask_sdpa"):
        output = attend(name, q, q, q, None, 0.0, is_causal=True)
        assert torch.equal(output, F.scaled_dot_product_attention(q, q, q, is_causal=True))


def test_a_mask_of_another_dtype_is_refused_by_torch_in_its_own_words():
    q = torch.randn(1, 2, 4, 8)
    for name in ("safe_sdpa", "unmask_sdpa", "min_mask_sdpa"):
        with pytest.raises(RuntimeError, match="attn_mask dtype"):
            attend(name, q, q, q, torch.ones(4, 4, dtype=torch.long))
