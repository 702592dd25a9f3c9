"""G6 and G7 against the kernels' own walk, tile by tile in f32; what Macs printed; poison in single places."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.generations.prefill import prefill

NAN, INF = math.nan, math.inf
LOG2E = 1.44269504089
KERNELS = {"g6 of 2.13": partial(prefill, scales_query=True), "g6": prefill, "g7": partial(prefill, mpp=True)}
f32 = np.float32


def rounded(array, dtype):
    return torch.from_numpy(np.asarray(array, f32)).to(dtype).float().numpy()


def walk(name, query, key, value, mask, is_causal, scale, *, block, propagates_nan):
    """Run the kernel with loops over heads, tiles of queries and tiles of keys."""
    dtype, (batch, heads, length, _) = query.dtype, query.shape
    kv_heads, keys = key.shape[1:3]
    result = np.zeros((batch, heads, length, value.shape[-1]), f32)
    q, k, v = (x.float().numpy() for x in (query, key, value))
    m = None if mask is None else (mask.numpy() if mask.dtype == torch.bool else mask.float().numpy())
    rows = 64 if name == "g7" else 16 if query.shape[-1] == 256 else 32
    factor = f32(scale) * f32(LOG2E)
    if name == "g6 of 2.13":
        q, factor = rounded(q * rounded(factor, dtype), dtype), f32(1)
    with np.errstate(all="ignore"):
        for b, h, first in ((b, h, r) for b, h in np.ndindex(batch, heads) for r in range(0, length, rows)):
            kv, mine = h // (heads // kv_heads), slice(first, min(first + rows, length))
            last = first + rows if name == "g7" else mine.stop
            tiles = [t for t in range(0, keys, block) if not is_causal or t < last]
            result[b, h, mine] = walk_tiles(
                q[b, h, mine], k[b, kv], v[b, kv], None if m is None else m[b, h, mine], is_causal, first, tiles, block,
                factor, propagates_nan=propagates_nan,
            )  # fmt: skip
    return torch.from_numpy(result).to(dtype)


def walk_tiles(q, keys, values, mask, is_causal, first, tiles, block, factor, *, propagates_nan):
    """One tile of queries: visit the tiles of keys in order."""
    larger = np.maximum if propagates_nan else np.fmax
    best, total, out = (np.full(len(q), -INF, f32), np.zeros(len(q), f32), np.zeros((len(q), values.shape[1]), f32))
    for start in tiles:
        k, v = keys[start : start + block], values[start : start + block]
        scores = np.sum(q[:, None, :] * k[None, :, :], axis=-1, dtype=f32) * factor
        if is_causal:
            scores[np.arange(start, start + len(k))[None, :] > np.arange(first, first + len(q))[:, None]] = -INF
        if mask is not None:
            part = mask[:, start : start + block]
            # A fused multiply-add: one rounding. float64 holds the product of two f32 exactly.
            added = (scores.astype(np.float64) + np.float64(f32(LOG2E)) * part.astype(np.float64)).astype(f32)
            scores = np.where(part, scores, f32(-INF)) if mask.dtype == bool else added
        new = larger(best, larger.reduce(scores, axis=1))
        weights = np.where(new[:, None] == -INF, f32(0), np.exp2(scores - new[:, None]))
        shrink = np.where(new == -INF, f32(1), np.exp2(best - new))
        total = total * shrink + weights.sum(1)
        out = out * shrink[:, None] + (weights[:, :, None] * v[None]).sum(1)
        best = new
    return out / np.where(best == -INF, f32(1), total)[:, None]


def same_kind(got, want):
    """NaN, +inf, -inf and finite in the same places."""
    return (
        torch.equal(got.isnan(), want.isnan())
        and torch.equal(got == INF, want == INF)
        and torch.equal(got == -INF, want == -INF)
    )


@st.composite
def poisoned(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kv_heads, repeats = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length, keys = draw(st.integers(1, 80)), draw(st.integers(1, 110))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    tensors = [
        torch.randn(1, n, rows, 2, generator=generator).to(dtype)
        for n, rows in ((kv_heads * repeats, length), (kv_heads, keys), (kv_heads, keys))
    ]
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    mask = None
    if kind in {"bool", "float"}:
        mask = torch.rand(1, kv_heads * repeats, length, keys, generator=generator) < draw(st.sampled_from([0.02, 0.8]))
        if kind == "float":
            fill = draw(st.sampled_from([-INF, torch.finfo(dtype).min, -1e4]))
            mask = torch.zeros(mask.shape).masked_fill(~mask, fill).to(dtype)
            tensors.append(mask)
    for tensor in tensors:
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[place] = draw(st.sampled_from([NAN, INF, -INF]))
    rules = {"block": draw(st.sampled_from([8, 16, 32])), "propagates_nan": draw(st.booleans())}
    return (*tensors[:3], mask, kind == "causal", 0.5), rules


@pytest.mark.parametrize("name", KERNELS)
@settings(derandomize=True, deadline=None, max_examples=150)
@given(case=poisoned())
def test_tiles_walk_into_the_same_nan(name, case):
    call, rules = case
    got, want = KERNELS[name](Call(*call[:4], 0.0, *call[4:]), **rules), walk(name, *call, **rules)
    assert same_kind(got, want), (got, want)
    finite = want.isfinite()
    # Scores of order 1, or masked away: f32 rounding of at most keys + 16 operations, one rounding step of the dtype.
    unit = torch.finfo(got.dtype).eps + 4 * (call[1].shape[2] + 16) * 2.0**-24
    largest = call[2].float().masked_fill(~call[2].isfinite(), 0.0).abs().max()
    # -1e4 beside a score rounds it to 2^-10 (log2 units: 2^-9), which weighs only where every key has -1e4.
    unit = unit + (2.0**-8 if call[3] is not None and call[3].dtype != torch.bool else 0.0)
    assert ((got - want)[finite].float().abs() <= unit * largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_g6_of_2_13_rounds_the_scaled_query_and_no_later_one_does(dtype):
    query, key, value = inputs(dtype=dtype)
    call, rules = (query, key, value, None, False, 0.1), {"block": 32, "propagates_nan": True}
    got = {name: KERNELS[name](Call(*call[:4], 0.0, *call[4:]), **rules) for name in KERNELS}
    # Rounding q to the dtype changes more results than a last bit of f32 ever tips over a rounding boundary.
    for name in KERNELS:
        assert (got[name] == walk(name, *call, **rules)).float().mean() > 0.97
    assert torch.equal(got["g6"], got["g7"])
    assert (got["g6 of 2.13"] == got["g7"]).float().mean() < 0.9


@pytest.mark.parametrize(("name", "printed"), [("g6 of 2.13", "0.0110"), ("g6", "0.0085"), ("g7", "0.0085")])
def test_largest_error_of_issue_195910_as_macs_printed_it(name, printed):
    """pytorch#195910, seed 0: torch 2.13.0 printed 0.011, torch 2.14.0 0.0085 (both kernels of 2.14 give it)."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 64, 64) for _ in range(3))
    torch.set_rng_state(state)
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True)
    got = KERNELS[name](Call(query.bfloat16(), key.bfloat16(), value.bfloat16(), None, 0.0, True, 0.125))
    assert f"{(got.float() - wanted).abs().max().item():.4f}" == printed


def inputs(length=40, keys=96, head_dim=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 1, n, head_dim, generator=generator).to(dtype) for n in (length, keys, keys)]


@pytest.mark.parametrize("name", KERNELS)
def test_a_masked_value_is_read_all_the_same(name):
    query, key, value = inputs()
    value[0, 0, 7, 3] = NAN
    mask = torch.ones(1, 1, 40, 96, dtype=torch.bool)
    mask[..., 7] = False
    got = KERNELS[name](Call(query, key, value, mask, 0.0, False, 0.125))
    assert got[..., 3].isnan().all()
    assert got[..., 4:].isfinite().all()
    # Even a dead row multiplies it by 0.
    got = KERNELS[name](Call(query, key, value, torch.zeros_like(mask), 0.0, False, 0.125))
    assert got[..., 3].isnan().all()
    assert (got[..., 4:] == 0).all()


@pytest.mark.parametrize("name", KERNELS)
def test_a_masked_key_is_overwritten_by_a_bool_mask_only(name):
    query, key, value = inputs()
    key[0, 0, 7] = NAN
    mask = torch.ones(1, 1, 40, 96, dtype=torch.bool)
    mask[..., 7] = False
    assert KERNELS[name](Call(query, key, value, mask, 0.0, False, 0.125)).isfinite().all()
    added = torch.zeros(mask.shape).masked_fill(~mask, -INF)
    assert KERNELS[name](Call(query, key, value, added, 0.0, False, 0.125)).isnan().all()


@pytest.mark.parametrize(
    ("name", "head_dim", "rows", "block"),
    [("g6", 64, 32, 32), ("g6", 96, 32, 32), ("g6", 128, 32, 16), ("g6", 256, 16, 8), ("g7", 64, 64, 32)],
)
def test_causal_tiles_above_the_diagonal_are_not_visited(name, head_dim, rows, block):
    length = rows + 2
    query, key, value = inputs(length, 4 * rows, head_dim)
    value[0, 0, rows] = NAN
    got = KERNELS[name](Call(query, key, value, None, 0.0, True, 0.1))
    # The first tile of queries ends before key `rows`; the second visits its tile, row `rows - 1 + 1` on.
    assert got[0, 0, :rows].isfinite().all()
    assert got[0, 0, rows:].isnan().all()
    # Within a visited tile the future is read: weight 0 times NaN.
    query, key, value = inputs(length, 4 * rows, head_dim)
    value[0, 0, rows - 1] = NAN
    assert KERNELS[name](Call(query, key, value, None, 0.0, True, 0.1)).isnan().all()
    # G6 cuts the last tile of queries at their number, G7 does not.
    query, key, value = inputs(length, 4 * rows, head_dim)
    value[0, 0, rows + block] = NAN
    got = KERNELS[name](Call(query, key, value, None, 0.0, True, 0.1))
    assert got[0, 0, rows:].isnan().all() == (name == "g7")
    assert got[0, 0, :rows].isfinite().all()


@pytest.mark.parametrize("name", KERNELS)
def test_nan_in_a_query_spoils_its_row_alone(name):
    query, key, value = inputs()
    query[0, 0, 5, 0] = NAN
    got = KERNELS[name](Call(query, key, value, None, 0.0, False, 0.125))
    assert got[0, 0, 5].isnan().all()
    assert got[0, 0, torch.arange(40) != 5].isfinite().all()
    # A maximum that drops NaN leaves -inf, and the guards turn that into zeros.
    got = KERNELS[name](Call(query, key, value, None, 0.0, False, 0.125), propagates_nan=False)
    assert (got[0, 0, 5] == 0).all()
