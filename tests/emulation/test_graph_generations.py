"""G0, G0', G1, G2 and G3 against float64 and on the edge cases; the other generations have tests of their own."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.faults import as_the_cached_graph_runs_it
from mpsdiag.emulation.generations.graph import composite_attention, graph_attention
from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.emulation.selection import Emulation, Machine

NEVER = float("-inf")
safe_composite_attention = partial(composite_attention, zero_dead_rows=True, wide_scores=True)
graph_attention_zero_rows = partial(graph_attention, zero_dead_rows=True)
graph_attention_f32 = partial(graph_attention, zero_dead_rows=True, wide_scores=True)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
STEPWISE = {"G0": composite_attention, "G1": graph_attention, "G2": graph_attention_zero_rows}
WIDE = {"G0'": safe_composite_attention, "G3": graph_attention_f32}
ALL = {**STEPWISE, **WIDE}


def by_definition(q, k, v, bias, causal, scale):
    """Attention in float64 by einsum, one number of heads for all."""
    q, k, v = (x.double() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (x[:, torch.arange(q.shape[1]) // groups] for x in (k, v))
    scores = torch.einsum("bhld,bhsd->bhls", q, k) * scale
    if bias is not None:
        scores = scores + bias.double()
    if causal:
        later = torch.arange(k.shape[2])[None] > torch.arange(q.shape[2])[:, None]
        scores = scores.masked_fill(later, NEVER)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhls,bhse->bhle", weights / weights.sum(-1, keepdim=True), v), scores


@st.composite
def calls(draw):
    batch, shared = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    heads = shared * draw(st.integers(1, 3))
    rows, keys = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    width, out = draw(st.sampled_from([4, 16, 80])), draw(st.sampled_from([4, 16]))
    dtype = draw(st.sampled_from([F32, BF16, F16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    q, k = normal(batch, heads, rows, width), normal(batch, shared, keys, width)
    v = normal(batch, shared, keys, out)
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    shape = draw(st.sampled_from([(rows, keys), (batch, 1, rows, keys), (1, heads, rows, keys), (batch, 1, 1, keys)]))
    keep = torch.rand(shape, generator=generator) < 0.6
    keep[..., 0] = True  # no dead rows here
    mask = {"none": None, "causal": None, "bool": keep, "float": normal(*shape).masked_fill(~keep, NEVER)}[kind]
    scale = draw(st.none() | st.floats(0.05, 1.0))
    return q, k, v, mask, kind == "causal", scale


def error_and_scores(function, call):
    q, k, v, mask, causal, scale = call
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros(mask.shape).masked_fill(~mask, NEVER)
    want, scores = by_definition(q, k, v, bias, causal, factor)
    got = function(Call(q, k, v, mask, 0.0, causal, scale, q.shape[1] != k.shape[1]))[0]
    assert got.dtype == q.dtype
    assert got.shape == want.shape
    size = scores[scores.isfinite()].abs().max().item()
    return (got.double() - want).abs().max().item(), size, v.abs().max().item()


@pytest.mark.parametrize("name", WIDE)
@settings(max_examples=60, deadline=None)
@given(call=calls())
def test_float32_inside_means_one_rounding_at_the_end(name, call):
    error, size, largest = error_and_scores(WIDE[name], call)
    eps = torch.finfo(call[0].dtype).eps if call[0].dtype != F32 else 0.0
    assert error <= largest * (eps / 2 + 4e-6 * (1 + size))


@pytest.mark.parametrize("name", STEPWISE)
@settings(max_examples=60, deadline=None)
@given(call=calls())
def test_rounding_at_every_step_stays_within_its_steps(name, call):
    """A score of size s is off by some eps * s before the softmax, a weight by some eps after it."""
    error, size, largest = error_and_scores(STEPWISE[name], call)
    eps = torch.finfo(call[0].dtype).eps
    unscaled = size / (call[5] or call[0].shape[-1] ** -0.5)
    assert error <= largest * eps * (4 + 6 * size) + 1e-5 * largest * (1 + unscaled)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_the_stepwise_rounding_is_really_there(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 32, 64).to(dtype) for _ in range(3))
    want = by_definition(q, k, v, None, False, 0.125)[0]
    errors = {name: (f(Call(q, k, v, None, 0.0, False, None, False))[0] - want).abs().mean() for name, f in ALL.items()}
    assert min(errors[n] for n in STEPWISE) > 1.2 * max(errors[n] for n in WIDE)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_g1_step_by_step_in_small_numbers(dtype):
    """One query, two keys: each step rounded by hand."""
    eps = torch.finfo(dtype).eps
    q, k = torch.tensor([1 + eps, 1.0]), torch.tensor([[1.0, eps / 2], [0.5, 0.0]])
    v = torch.tensor([[1.0], [0.0]])
    products = torch.tensor([1 + 1.5 * eps, (1 + eps) / 2])
    products[0] = 1 + 2 * eps  # ties to even, in both types
    scores = (products * 0.7).to(dtype).float()
    weight = (1 / (1 + math.exp(scores[1] - scores[0]))).real
    want = torch.tensor(weight).to(dtype)
    got = graph_attention(Call(q.to(dtype)[None, None, None], k.to(dtype)[None, None], v.to(dtype)[None, None],
                          None, 0.0, False, 0.7, False))[0]  # fmt: skip
    assert got.item() == want.item()


@pytest.mark.parametrize("name", ALL)
class TestEdges:
    def run(self, name, q, k, v, mask=None, causal=False, scale=None):
        return ALL[name](Call(q, k, v, mask, 0.0, causal, scale, q.shape[1] != k.shape[1]))[0]

    @pytest.fixture
    def qkv(self):
        torch.manual_seed(0)
        return tuple(torch.randn(1, 2, 4, 8) for _ in range(3))

    @pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
    def test_dead_row(self, name, qkv, dtype):
        mask = torch.ones(4, 4, dtype=torch.bool)
        mask[2] = False
        out = self.run(name, *(x.to(dtype) for x in qkv), mask)
        dead = out[..., 2, :]
        assert dead.isnan().all() if name in {"G0", "G1"} else not dead.any()
        assert out[..., [0, 1, 3], :].isfinite().all()

    @pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
    def test_row_of_the_lowest_number_is_the_mean(self, name, qkv, dtype):
        q, k, v = (x.to(dtype) for x in qkv)
        mask = torch.full((4, 4), torch.finfo(dtype).min, dtype=dtype)
        mean = v.float().mean(-2, keepdim=True).expand_as(v)
        torch.testing.assert_close(self.run(name, q, k, v, mask).float(), mean, atol=1e-2, rtol=0)

    def test_row_of_the_lowest_float16(self, name, qkv):
        q, k, v = (x.half() for x in qkv)
        mask = torch.full((4, 4), torch.finfo(F16).min, dtype=F16)
        out = self.run(name, q, k, v, mask).float()
        unmasked = self.run(name, q, k, v).float()
        mean = v.float().mean(-2, keepdim=True).expand_as(v)
        want = unmasked if name in WIDE else mean
        torch.testing.assert_close(out, want, atol=1e-2, rtol=0)

    @pytest.mark.parametrize("value", [-1e9, -1e4])
    def test_large_finite_masks_hide_their_keys(self, name, qkv, value):
        mask = torch.zeros(4, 4)
        mask[:, 3] = value
        q, k, v = qkv
        torch.testing.assert_close(
            self.run(name, q, k, v, mask), self.run(name, q, k[:, :, :3], v[:, :, :3]), atol=1e-6, rtol=1e-5
        )

    def test_nan_in_a_masked_value_spoils_every_row(self, name, qkv):
        q, k, v = qkv
        v[..., 3, :] = float("nan")
        mask = torch.tensor([True, True, True, False]).expand(4, 4)
        assert self.run(name, q, k, v, mask).isnan().all()

    def test_nan_in_a_masked_key_spoils_every_row(self, name, qkv):
        q, k, v = qkv
        k[..., 3, :] = float("nan")
        mask = torch.tensor([True, True, True, False]).expand(4, 4)
        assert self.run(name, q, k, v, mask).isnan().all()

    def test_causal_fill_hides_even_a_nan_key(self, name, qkv):
        """Where the fill replaces the score, NaN in the last key reaches the last row only."""
        q, k, v = qkv
        k[..., 3, :] = float("nan")
        out = self.run(name, q, k, v, causal=True)
        assert out[..., :3, :].isfinite().all()
        assert out[..., 3, :].isnan().all()

    def test_one_query(self, name, qkv):
        q, k, v = qkv
        out = self.run(name, q[:, :, :1], k, v)
        want = by_definition(q[:, :, :1], k, v, None, False, 8**-0.5)[0]
        torch.testing.assert_close(out.double(), want, atol=1e-6, rtol=0)

    def test_fewer_keys_than_queries_causal(self, name, qkv):
        q, k, v = qkv
        out = self.run(name, q, k[:, :, :2], v[:, :, :2], causal=True)
        want = by_definition(q, k[:, :, :2], v[:, :, :2], None, True, 8**-0.5)[0]
        torch.testing.assert_close(out.double(), want, atol=1e-6, rtol=0)


def test_float16_products_that_overflow():
    """Head dimension 80, everything 256: products of 5 million. NaN up to G2, the values' mean in G3."""
    x = torch.full((1, 2, 23, 80), 256.0, dtype=F16)
    for function in (graph_attention, graph_attention_zero_rows):
        assert function(Call(x, x, x, None, 0.0, False, None, False))[0].isnan().all()
        assert torch.equal(function(Call(x, x, x, None, 0.0, False, None, False), wide_scores=True)[0], x)
    assert torch.equal(graph_attention_f32(Call(x, x, x, None, 0.0, False, None, False))[0], x)


@pytest.mark.parametrize("function", [graph_attention, graph_attention_f32])
def test_the_cut_into_blocks_changes_nothing(function, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 5, 6, 8) for _ in range(3))
    mask = torch.randn(3, 1, 6, 6)
    whole = function(Call(q, k, v, mask, 0.0, False, None, False), want_weights=True)
    for size in (1, 40, 100, 400):
        monkeypatch.setattr("mpsdiag.emulation.generations.graph.SCORES_IN_A_BLOCK", size)
        parts = function(Call(q, k, v, mask, 0.0, False, None, False), want_weights=True)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients_of_the_safe_composite_match_cpu_attention(dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 6, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, 1, 6, 6) < 0.6
    mask[0, :, :2] = False
    upstream = torch.randn(2, 2, 6, 8, dtype=dtype)
    ours = safe_composite_attention(Call(*inputs, mask, 0.0, False, None, False))[0]
    stock = torch.nn.functional.scaled_dot_product_attention(*inputs, mask)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(stock, inputs, upstream), strict=True
    ):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, atol=0.03 if dtype == BF16 else 1e-5, rtol=0.02)


def test_gradients_of_the_old_composite_are_nan_through_a_dead_row():
    inputs = [torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3)]
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    composite_attention(Call(*inputs, mask, 0.0, False, None, False))[0].sum().backward()
    assert all(x.grad.isnan().any() for x in inputs)


@pytest.mark.parametrize("function", [composite_attention, safe_composite_attention])
def test_dropout_drops_and_rescales(function):
    q = torch.randn(1, 1, 64, 8)
    torch.manual_seed(0)
    weights = function(Call(q, q, q, dropout_p=0.5))[1]
    kept = function(Call(q, q, q, None, 0.0, False, None, False))[1]
    dropped = weights == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(weights[~dropped], 2 * kept[~dropped])


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize("release", ["2.4", "2.8"])
def test_negative_scales_are_those_of_stock_attention(release, scale):
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    with emulate_mps(release, defects=()):
        emulated = F.scaled_dot_product_attention(query.requires_grad_(), key, value, scale=scale)
    stock = F.scaled_dot_product_attention(query, key, value, scale=scale)
    torch.testing.assert_close(emulated, stock)


def test_each_scale_has_its_own_graph_where_it_is_part_of_the_key():
    query = torch.randn(1, 1, 12, 33, generator=torch.Generator().manual_seed(2)).half()
    mask = torch.randn(12, 12, generator=torch.Generator().manual_seed(3)).half()
    with emulate_mps("2.13", defects=("SDPA016",)), torch.no_grad():
        F.scaled_dot_product_attention(query, query, query, mask.float(), scale=0.05)
        second = F.scaled_dot_product_attention(query, query, query, mask, scale=0.02)
        same_key = F.scaled_dot_product_attention(query, query, query, mask, scale=0.05)
    stock = F.scaled_dot_product_attention(query, query, query, mask, scale=0.02)
    torch.testing.assert_close(second, stock, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(same_key, F.scaled_dot_product_attention(query, query, query, mask, scale=0.05))


def test_the_graph_cache_keeps_causal_masked_and_plain_calls_apart():
    machine = Machine.of(Emulation("2.8", defects=("SDPA015",)), "raise")
    q = torch.randn(1, 1, 4, 40)
    calls = [
        Call(q, q, q, is_causal=True, scale=1.0),
        Call(q, q, q, scale=0.5),
        Call(q, q, q, torch.zeros(4, 4), scale=0.25),
    ]
    assert [as_the_cached_graph_runs_it(call, machine).scale for call in calls] == [1.0, 0.5, 0.25]
    again = [replace(call, scale=2.0) for call in calls]
    assert [as_the_cached_graph_runs_it(call, machine).scale for call in again] == [1.0, 0.5, 0.25]
