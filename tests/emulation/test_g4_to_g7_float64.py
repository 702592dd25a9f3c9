"""G4 to G7 against attention in float64, on random shapes and masks, within the rounding of the dtype."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.generations.prefill import prefill
from mpsdiag.emulation.generations.vector import vector_one_pass, vector_two_pass

F32 = 2.0**-24
UNIT = {torch.float32: F32, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Half the distance of neighbours around 0: what rounding a subnormal number can lose.
TINY = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}

VECTOR = {"guarded": True, "propagates_nan": True}
KERNELS = {
    "g4": partial(vector_one_pass, **VECTOR),
    "g4 of 2.13": partial(vector_one_pass, guarded=True, propagates_nan=False),
    "g5": partial(vector_two_pass, **VECTOR),
    "g6": prefill,
    "g6 of 2.13": partial(prefill, scales_query=True, propagates_nan=False),
    "g7": partial(prefill, mpp=True),
}


def exact(query, key, value, mask, is_causal, scale):
    """Attend in float64, one query head after the other; returns the output, the weights, and sum |c q k| + |mask|."""
    query, key, value = (x.double() for x in (query, key, value))
    batch, heads, length, _ = query.shape
    kv_heads, keys = key.shape[1:3]
    out = query.new_zeros(batch, heads, length, value.shape[-1])
    absolute, size = torch.zeros_like(out), query.new_zeros(batch, heads, length)
    for b in range(batch):
        for h in range(heads):
            k, v = key[b, h * kv_heads // heads], value[b, h * kv_heads // heads]
            scores = scale * (query[b, h] @ k.T)
            terms = abs(scale) * (query[b, h].abs() @ k.abs().T)
            hidden = torch.zeros(length, keys, dtype=torch.bool)
            if is_causal:
                hidden |= torch.arange(keys)[None, :] > torch.arange(length)[:, None]
            if mask is not None and mask.dtype == torch.bool:
                hidden |= ~mask[b, h]
            elif mask is not None:
                hidden |= mask[b, h] == -math.inf
                scores = scores + mask[b, h].double()
                terms = terms + mask[b, h].double().abs()
            alive = ~hidden.all(-1)
            scores, terms = scores.masked_fill(hidden, -math.inf), terms.masked_fill(hidden, 0.0)
            weights = scores[alive].softmax(-1)
            out[b, h, alive] = weights @ v
            absolute[b, h, alive] = weights @ v.abs()
            size[b, h] = terms.amax(-1)
    return out, absolute, size


def bound(name, dtype, out, absolute, size, keys, head_dim):
    """How far the kernel may be from float64: standard error analysis, first order in f32, exact in the weights.

    A score made of D products is off by (D + 3) u sum |terms|, with G6 of 2.13 also by twice the unit of the dtype,
    because the factor and its product with q are rounded to it. A score off by e multiplies a weight by up to
    exp(2 e), as the sum of the weights is off too. Then come exp, the sums over the keys and the last rounding.
    """
    unit, tiny = UNIT[dtype], TINY[dtype]
    per_term = (head_dim + 3) * F32 + (2 * unit + unit**2 if name == "g6 of 2.13" else 0.0)
    weight = torch.expm1(2 * per_term * size)[..., None] + (2 * keys + 16) * F32
    error = weight * absolute
    if name.startswith("g5"):
        # 32 partial sums are rounded to the dtype; their weights are at most 1 and the total at least 1.
        error = error + unit * (absolute + error) + 32 * tiny
    return error + unit * (out.abs() + error) + tiny


@st.composite
def attention(draw, max_length, min_keys, max_keys):
    """Random q, k, v, mask, is_causal and scale; the values by seed, everything else drawn."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    kv_heads, repeats, batch = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    length, keys = draw(st.integers(1, max_length)), draw(st.integers(min_keys, max_keys))
    head_dim = draw(st.sampled_from([8, 64, 80, 96]))
    value_dim = draw(st.sampled_from([head_dim, 5]))
    heads = kv_heads * repeats

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    query, key = normal(batch, heads, length, head_dim), normal(batch, kv_heads, keys, head_dim)
    value = normal(batch, kv_heads, keys, value_dim)
    kind = draw(st.sampled_from(["none", "bool", "-inf", "bias", "causal"]))
    mask = None
    if kind in {"bool", "-inf"}:
        mask = torch.rand(batch, heads, length, keys, generator=generator) < draw(st.sampled_from([0.1, 0.7]))
        if draw(st.booleans()):
            mask[0, 0, 0] = False
        if kind == "-inf":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf).to(dtype)
    elif kind == "bias":
        mask = normal(1, 1, length, keys).mul(4).expand(batch, heads, length, keys)
    scale = draw(st.sampled_from([head_dim**-0.5, 0.05, 0.3]))
    return query, key, value, mask, kind == "causal", scale


def check(name, call):
    query, key = call[:2]
    got = KERNELS[name](Call(*call[:4], 0.0, *call[4:]))
    assert got.dtype == query.dtype
    out, absolute, size = exact(*call)
    assert got.shape == out.shape
    allowed = bound(name, query.dtype, out, absolute, size, key.shape[2], query.shape[3])
    error = (got.double() - out).abs()
    assert (error <= allowed).all(), (error / allowed).max().item()


@pytest.mark.parametrize("name", ["g4", "g4 of 2.13"])
@settings(derandomize=True, deadline=None, max_examples=150)
@given(call=attention(max_length=8, min_keys=1, max_keys=200))
def test_one_pass_is_attention(name, call):
    check(name, call)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(call=attention(max_length=8, min_keys=1, max_keys=1400))
def test_two_pass_is_attention(call):
    check("g5", call)


@pytest.mark.parametrize("name", ["g6", "g6 of 2.13", "g7"])
@settings(derandomize=True, deadline=None, max_examples=150)
@given(call=attention(max_length=80, min_keys=1, max_keys=150))
def test_prefill_is_attention(name, call):
    check(name, call)


@pytest.mark.parametrize("name", KERNELS)
def test_a_query_of_one_and_views_that_are_not_contiguous(name):
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, n, 4, 64, generator=generator).transpose(1, 2) for n in (1, 1100, 1100))
    assert not key.is_contiguous()
    check(name, (query, key, value, None, False, 0.125))


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_are_left_alone(name):
    generator = torch.Generator().manual_seed(6)
    query, key, value = (torch.randn(1, 2, n, 64, generator=generator) for n in (5, 40, 40))
    mask = torch.randn(1, 1, 5, 40, generator=generator).expand(1, 2, 5, 40)
    before = [x.clone() for x in (query, key, value, mask)]
    KERNELS[name](Call(query, key, value, mask, 0.0, False, 0.125))
    assert all(torch.equal(now, then) for now, then in zip((query, key, value, mask), before, strict=True))
