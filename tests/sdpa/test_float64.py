import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.sdpa.float64 import reference_attention

NEVER = float("-inf")


def by_hand(q, k, v, visible, bias, scale):
    """One head in plain Python numbers."""
    rows = []
    for i, query in enumerate(q):
        seen = [j for j in range(len(k)) if visible[i][j]]
        scores = [scale * sum(a * b for a, b in zip(query, k[j], strict=True)) + bias[i][j] for j in seen]
        top = max(scores, default=0.0)
        weights = [math.exp(s - top) for s in scores]
        total = sum(weights) or 1.0
        columns = range(len(v[0]))
        rows.append([sum(w * v[j][c] for w, j in zip(weights, seen, strict=True)) / total for c in columns])
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    keys=st.integers(1, 5),
    causal=st.booleans(),
    additive=st.booleans(),
    scale=st.none() | st.floats(0.1, 2.0),
    seed=st.integers(0, 2**31),
)
def test_against_plain_python(rows, keys, causal, additive, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (rows, keys, keys))
    keep = torch.rand(rows, keys, generator=generator) < 0.6
    bias = torch.randn(rows, keys, generator=generator, dtype=torch.float64) if additive else torch.zeros(rows, keys)
    mask = torch.where(keep, bias, NEVER) if additive else keep
    visible = keep & torch.ones(rows, keys).tril().bool() if causal else keep
    factor = 1 / math.sqrt(3) if scale is None else scale
    want = by_hand(q.tolist(), k.tolist(), v.tolist(), visible.tolist(), bias.tolist(), factor)
    got = reference_attention(q, k, v, mask, causal, scale)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_grouped_heads_and_broadcast_masks_match_sdpa():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 4, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 2, 7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 1, 7, generator=generator) < 0.7
    want = scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(reference_attention(q, k, v, mask, enable_gqa=True), want)


@pytest.mark.parametrize("where", ["key", "value"])
def test_nan_in_a_masked_key_stays_out_and_in_a_visible_one_comes_through(where):
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in range(3))
    {"key": k, "value": v}[where][..., 2, :] = float("nan")
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    result = reference_attention(q, k, v, mask)[0, 0]
    assert result[0].isfinite().all()
    assert torch.equal(result[1], torch.zeros(4, dtype=torch.float64))
    assert result[2].isnan().all()


def test_result_is_detached_float64_on_the_cpu():
    q = torch.randn(1, 1, 2, 4, dtype=torch.float16, requires_grad=True)
    result = reference_attention(q, q, q)
    assert result.dtype == torch.float64
    assert result.device.type == "cpu"
    assert not result.requires_grad
