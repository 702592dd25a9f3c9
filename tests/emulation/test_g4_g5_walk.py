"""G4 and G5 against the kernels' own walk, key by key in f32, where the order decides: NaN, infinities, rounding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.generations.vector import vector_one_pass, vector_two_pass

NAN, INF = math.nan, math.inf
LOWEST = torch.finfo(torch.float32).min
f32 = np.float32


def walk_group(q, keys, values, mask, is_causal, row, chosen, *, guarded, propagates_nan):
    """One key group: the running maximum, the sum of weights, the weighted sum of values."""
    larger = np.maximum if propagates_nan else np.fmax
    m, total, out = f32(-INF), f32(0), np.zeros(values.shape[1], f32)
    for j in chosen:
        if (is_causal and j > row) or (mask is not None and mask.dtype == bool and not mask[row, j]):
            continue
        score = f32(np.sum(q * keys[j], dtype=f32))
        if mask is not None and mask.dtype != bool:
            score = score + mask[row, j]
        new = larger(m, score)
        if guarded and new == -INF:
            factor, weight = f32(1), f32(0)
        else:
            factor, weight = np.exp(m - new), np.exp(score - new)
        total, out, m = total * factor + weight, out * factor + weight * values[j], new
    return m, total, out


def combine(maxima, totals, outs, *, guarded):
    best = np.fmax.reduce(maxima)
    share = np.ones_like(maxima) if guarded and best == -INF else np.exp(maxima - best)
    total = np.sum(totals * share, dtype=f32)
    return np.sum(outs * share[:, None], axis=0) / (f32(1e-6) if total == 0 else total)


def walk(passes, query, key, value, mask, is_causal, scale, **rules):
    """Run G4 (passes=1) or G5 (passes=2) with loops over everything."""
    dtype, (batch, heads, length, _) = query.dtype, query.shape
    kv_heads, keys = key.shape[1:3]
    result = np.zeros((batch, heads, length, value.shape[-1]), f32)
    q, k, v = (x.float().numpy() for x in (query, key, value))
    m = None if mask is None else (mask.numpy() if mask.dtype == torch.bool else mask.float().numpy())
    stride = 32 if passes == 1 else 256
    with np.errstate(all="ignore"):
        for b, h, row in np.ndindex(batch, heads, length):
            kv = h // (heads // kv_heads)
            states = [
                walk_group(
                    f32(scale) * q[b, h, row], k[b, kv], v[b, kv], None if m is None else m[b, h], is_causal, row,
                    range(group, keys, stride), **rules,
                )
                for group in range(stride)
            ]  # fmt: skip
            maxima, totals, outs = (np.array(x, f32) for x in zip(*states, strict=True))
            guarded = rules["guarded"]
            if passes == 2:
                maxima, totals, outs = blocks(maxima, totals, outs, dtype)
                guarded = False
            result[b, h, row] = combine(maxima, totals, outs, guarded=guarded)
    return torch.from_numpy(result).to(dtype)


def blocks(maxima, totals, outs, dtype):
    """Sum 8 groups to a block; the sums of values are stored in the dtype of the query."""
    maxima, totals, outs = maxima.reshape(32, 8), totals.reshape(32, 8), outs.reshape(32, 8, -1)
    best = np.fmax(np.fmax.reduce(maxima, axis=1), f32(-1e9))
    share = np.exp(maxima - best[:, None])
    stored = torch.from_numpy(np.sum(outs * share[..., None], axis=1)).to(dtype).float().numpy()
    return best, np.sum(totals * share, axis=1), stored


KERNELS = {1: vector_one_pass, 2: vector_two_pass}


def same_kind(got, want):
    """NaN, +inf, -inf and finite in the same places."""
    return (
        torch.equal(got.isnan(), want.isnan())
        and torch.equal(got == INF, want == INF)
        and torch.equal(got == -INF, want == -INF)
    )


@st.composite
def poisoned(draw, max_keys):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kv_heads, repeats = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length, keys = draw(st.integers(1, 3)), draw(st.integers(1, max_keys))
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    tensors = [
        torch.randn(1, n, rows, 2, generator=generator).to(dtype)
        for n, rows in ((kv_heads * repeats, length), (kv_heads, keys), (kv_heads, keys))
    ]
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    mask = None
    if kind in {"bool", "float"}:
        mask = torch.rand(1, kv_heads * repeats, length, keys, generator=generator) < draw(st.sampled_from([0.05, 0.8]))
        if kind == "float":
            fill = draw(st.sampled_from([-INF, torch.finfo(dtype).min, -1e4]))
            mask = torch.zeros(mask.shape).masked_fill(~mask, fill).to(dtype)
            tensors.append(mask)
    for tensor in tensors:
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[place] = draw(st.sampled_from([NAN, INF, -INF]))
    rules = {"guarded": draw(st.booleans()), "propagates_nan": draw(st.booleans())}
    return (*tensors[:3], mask, kind == "causal", 0.5), rules


def check(passes, case):
    call, rules = case
    got, want = KERNELS[passes](Call(*call[:4], 0.0, *call[4:]), **rules), walk(passes, *call, **rules)
    assert same_kind(got, want), (got, want)
    finite = want.isfinite()
    # Scores of order 1, or masked away: f32 rounding of at most keys + 16 operations, one rounding step of the dtype.
    unit = torch.finfo(got.dtype).eps + 4 * (call[1].shape[2] + 16) * 2.0**-24
    largest = call[2].float().masked_fill(~call[2].isfinite(), 0.0).abs().max()
    assert ((got - want)[finite].float().abs() <= unit * largest).all()


@settings(derandomize=True, deadline=None, max_examples=250)
@given(case=poisoned(max_keys=100))
def test_one_pass_walks_into_the_same_nan(case):
    check(1, case)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(case=poisoned(max_keys=530))
def test_two_pass_walks_into_the_same_nan(case):
    check(2, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_pass_stores_partial_sums_in_the_dtype(dtype):
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 2, n, 64, generator=generator).to(dtype) for n in (2, 1100, 1100))
    call = (query, key, value, None, False, 0.125)
    got = vector_two_pass(Call(*call[:4], 0.0, *call[4:]), guarded=True, propagates_nan=True)
    unrounded = vector_one_pass(Call(*call[:4], 0.0, *call[4:]), guarded=True, propagates_nan=True)
    rounded = walk(2, *call, guarded=True, propagates_nan=True)
    # Rounding the partial sums changes more results than a last bit of f32 ever tips over a rounding boundary.
    assert (got == rounded).float().mean() > 0.97
    assert (got == unrounded).float().mean() < 0.9


def test_two_pass_partial_sums_overflow_f16():
    value = torch.full((1, 1, 4096, 64), 1000.0, dtype=torch.float16)
    query, key = torch.zeros(1, 1, 1, 64).half(), torch.zeros(1, 1, 4096, 64).half()
    rules = {"guarded": True, "propagates_nan": True}
    # 128 keys of a block, each with weight 1, sum to 128000 > 65504.
    assert vector_two_pass(Call(query, key, value, None, 0.0, False, 0.125), **rules).isinf().all()
    assert (vector_one_pass(Call(query, key, value, None, 0.0, False, 0.125), **rules) == 1000).all()


class TestPoison:
    """Named cases, each from the facts."""

    generator = torch.Generator().manual_seed(1)

    def inputs(self, keys, length=4, dtype=torch.float32):
        return [torch.randn(1, 1, n, 64, generator=self.generator).to(dtype) for n in (length, keys, keys)]

    @pytest.mark.parametrize("passes", [1, 2])
    @pytest.mark.parametrize("poisoned", ["key", "value"])
    def test_nan_in_a_key_that_a_bool_mask_skips_is_never_read(self, passes, poisoned):
        query, key, value = self.inputs(64)
        clean = [query, key.clone(), value.clone()]
        {"key": key, "value": value}[poisoned][0, 0, 7] = NAN
        mask = torch.ones(1, 1, 4, 64, dtype=torch.bool)
        mask[..., 7] = False
        rules = {"guarded": True, "propagates_nan": True}
        got = KERNELS[passes](Call(query, key, value, mask, 0.0, False, 0.125), **rules)
        assert torch.equal(got, KERNELS[passes](Call(*clean, mask, 0.0, False, 0.125), **rules))
        assert got.isfinite().all()
        # Read by row 2 alone, it spoils row 2 alone.
        mask[..., 2, 7] = True
        got = KERNELS[passes](Call(query, key, value, mask, 0.0, False, 0.125), **rules)
        assert got[0, 0, 2].isnan().all()
        assert got[0, 0, [0, 1, 3]].isfinite().all()

    @pytest.mark.parametrize("passes", [1, 2])
    def test_a_float_mask_lets_nan_through(self, passes):
        query, key, value = self.inputs(64)
        value[0, 0, 7, 3] = NAN
        mask = torch.zeros(1, 1, 4, 64)
        mask[..., 7] = -INF
        got = KERNELS[passes](Call(query, key, value, mask, 0.0, False, 0.125), guarded=True, propagates_nan=True)
        assert got[..., 3].isnan().all()
        assert got[..., :3].isfinite().all()
        key[0, 0, 7] = NAN
        got = KERNELS[passes](Call(query, key, value, mask, 0.0, False, 0.125), guarded=True, propagates_nan=True)
        assert got.isnan().all()

    @pytest.mark.parametrize("passes", [1, 2])
    def test_causal_never_reads_the_future(self, passes):
        query, key, value = self.inputs(8)
        key[0, 0, 2], value[0, 0, 3] = NAN, INF
        got = KERNELS[passes](Call(query, key, value, None, 0.0, True, 0.125), guarded=True, propagates_nan=True)
        assert got[0, 0, :2].isfinite().all()
        assert got[0, 0, 2:].isnan().all()

    @pytest.mark.parametrize(("propagates_nan", "swallowed"), [(False, True), (True, False)])
    @pytest.mark.parametrize("passes", [1, 2])
    def test_nan_query_is_swallowed_by_2_13_alone(self, passes, propagates_nan, swallowed):
        query, key, value = self.inputs(16)
        query[0, 0, 0, 0] = NAN
        got = KERNELS[passes](
            Call(query, key, value, None, 0.0, False, 0.125), guarded=True, propagates_nan=propagates_nan
        )
        assert (got[0, 0, 0] == 0).all() if swallowed else got[0, 0, 0].isnan().all()
        assert got[0, 0, 1:].isfinite().all()
        # Without the guard the NaN was not lost.
        got = KERNELS[passes](
            Call(query, key, value, None, 0.0, False, 0.125), guarded=False, propagates_nan=propagates_nan
        )
        assert got[0, 0, 0].isnan().all()

    @pytest.mark.parametrize("passes", [1, 2])
    def test_2_13_drops_a_nan_key_only_at_the_beginning_of_its_group(self, passes):
        stride = {1: 32, 2: 256}[passes]
        for place, lost in ((5, True), (5 + stride, False)):
            query, key, value = self.inputs(2 * stride)
            key[0, 0, place] = NAN
            got = KERNELS[passes](Call(query, key, value, None, 0.0, False, 0.125), guarded=True, propagates_nan=False)
            assert got.isfinite().all() if lost else got.isnan().all()
            if lost:
                others = [j for j in range(2 * stride) if j != place]
                without = KERNELS[1](
                    Call(query, key[..., others, :], value[..., others, :], None, 0.0, False, 0.125), guarded=True,
                    propagates_nan=False,
                )  # fmt: skip
                torch.testing.assert_close(got, without)
