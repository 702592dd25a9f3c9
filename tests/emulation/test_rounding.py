"""Where each generation rounds, bit by bit against chains written out here; scores near every threshold.

Head dims of 80 and 96: their scale is no power of two, so a step that is rounded elsewhere shows.
"""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.generations.graph import composite_attention, graph_attention
from mpsdiag.emulation.mode import emulate_mps

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INF = math.inf
HALF = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
WIDTHS = pytest.mark.parametrize("width", [80, 96])


def draw(dtype, width, rows=24, keys=40, size=2.0):
    generator = torch.Generator().manual_seed(width)
    shapes = ((2, 3, rows, width), (2, 3, keys, width), (2, 3, keys, width))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return (q * size).to(dtype), (k * size).to(dtype), v.to(dtype)


def to(dtype, x):
    """Round to a dtype, and go on in float32."""
    return x.to(dtype).float()


def share_equal(got, want):
    return (got == want).float().mean().item()


@HALF
@WIDTHS
def test_g0_scales_both_factors_by_the_root(dtype, width):
    q, k, v = draw(dtype, width)
    root = width**-0.25
    scores = to(dtype, to(dtype, q * root) @ to(dtype, k * root).mT)
    want = (to(dtype, scores.softmax(-1)) @ v.float()).to(dtype)
    got = composite_attention(Call(q, k, v, None, 0.0, False, None, False))[0]
    assert share_equal(got, want) > 0.99
    product_scaled = to(dtype, to(dtype, q.float() @ k.float().mT) * width**-0.5)
    other = (to(dtype, product_scaled.softmax(-1)) @ v.float()).to(dtype)
    assert share_equal(got, other) < 0.9


def test_g0_in_float32_scales_both_factors_by_the_root():
    """Products of 1e40 overflow; roots of 1e-40, taken first, do not."""
    q, k = torch.full((1, 1, 2, 16), 1e20), torch.full((1, 1, 3, 16), 1e20)
    v = torch.randn(1, 1, 3, 16)
    got = composite_attention(Call(q, k, v, None, 0.0, False, 1e-40, False))[0]
    torch.testing.assert_close(got, v.mean(-2, keepdim=True).expand_as(got))


@HALF
@WIDTHS
def test_g1_rounds_the_product_the_scaled_product_and_the_weights(dtype, width):
    q, k, v = draw(dtype, width)
    product = q.float() @ k.float().mT
    steps = {
        "all": to(dtype, to(dtype, product) * width**-0.5),
        "not after the scale": to(dtype, product) * width**-0.5,
        "not before it": to(dtype, product * width**-0.5),
    }
    outputs = {name: (to(dtype, scores.softmax(-1)) @ v.float()).to(dtype) for name, scores in steps.items()}
    got = graph_attention(Call(q, k, v, None, 0.0, False, None, False))[0]
    assert share_equal(got, outputs["all"]) > 0.99
    assert share_equal(got, outputs["not after the scale"]) < 0.95
    assert share_equal(got, outputs["not before it"]) < 0.95
    assert share_equal(got, (steps["all"].softmax(-1) @ v.float()).to(dtype)) < 0.95


@HALF
def test_g1_rounds_the_sum_with_the_mask(dtype):
    q, k, v = draw(dtype, 80)
    mask = torch.randn(24, 40, generator=torch.Generator().manual_seed(1)).mul(8).to(dtype)
    scores = to(dtype, to(dtype, to(dtype, q.float() @ k.float().mT) * 80**-0.5) + mask.float())
    want = (to(dtype, scores.softmax(-1)) @ v.float()).to(dtype)
    assert share_equal(graph_attention(Call(q, k, v, mask, 0.0, False, None, False))[0], want) > 0.99


@pytest.mark.parametrize(
    ("release", "macos", "dtype", "shifted"),
    [
        ("2.7", 15, F32, False),
        ("2.8", 14, F32, False),
        ("2.8", 15, F32, True),
        ("2.9", 26, F32, True),
        ("2.10", 15, F32, False),
        ("2.8", 15, BF16, False),
        ("2.9", 26, BF16, False),
    ],
)
def test_the_tiny_shift_is_for_float32_on_macos_15(release, macos, dtype, shifted):
    """Products of 1e-36 and -1e-36, scaled by 1e36 to 1 and -1: beside a shift of 1e-20 they are nothing."""
    q = torch.full((1, 1, 12, 1), 1e-18).to(dtype)
    k = torch.tensor([1e-18, -1e-18]).view(1, 1, 2, 1).to(dtype)
    v = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1).to(dtype)
    with torch.no_grad(), emulate_mps(release, macos):
        got = scaled_dot_product_attention(q, k, v, scale=1e36)[0, 0, 0, 0].item()
    assert got == pytest.approx(0.5 if shifted else 1 / (1 + math.exp(-2)), rel=2e-2)


def row_of(release, macos, dtype, fill, *, rows=1, keys=2048, width=96):
    """The first row when every key of it has the same mask value: zeros, the mean of V, or the unmasked softmax."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 1, n, width, generator=generator).to(dtype) for n in (rows, keys, keys))
    mask = torch.full((1, 1, rows, keys), fill, dtype=dtype)
    with torch.no_grad(), emulate_mps(release, macos):
        row = scaled_dot_product_attention(q, k, v, mask)[0, 0, 0].double()
    if not row.any():
        return "zeros"
    scores = q.double() @ k.double().mT * width**-0.5
    for name, weights in {"mean": (scores * 0).softmax(-1), "softmax": scores.softmax(-1)}.items():
        if (row - (weights @ v.double())[0, 0, 0]).abs().max() < 5e-3:
            return name
    return "neither"


LOWEST = torch.finfo(F32).min
LOG2E = 1.44269504089


@pytest.mark.parametrize("release", ["2.13", "2.14"])
@pytest.mark.parametrize(
    ("fill", "outcome"),
    [(-5e8, "mean"), (-9.99e8, "mean"), (-1.01e9, "zeros"), (-1.5e9, "zeros"), (-3e9, "zeros"), (-INF, "zeros")],
)
def test_two_pass_rows_are_zeros_below_a_thousand_million(release, fill, outcome):
    assert row_of(release, 15, F32, fill) == outcome
    assert row_of(release, 15, F32, fill, keys=1000) == ("zeros" if fill == -INF else "mean")  # one pass


@pytest.mark.parametrize(("release", "macos"), [("2.13", 15), ("2.14", 15), ("2.14", 26), ("2.15", 26)])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("fill", "outcome"), [(LOWEST / LOG2E * 0.99, "mean"), (LOWEST / LOG2E * 1.01, "zeros"), (-1e9, "mean")]
)
def test_prefill_rows_are_zeros_where_log2_takes_the_mask_out_of_range(release, macos, dtype, fill, outcome):
    assert row_of(release, macos, dtype, fill, rows=16, keys=64) == outcome


@pytest.mark.parametrize("release", ["2.8", "2.9", "2.12", "2.13", "2.14"])
@pytest.mark.parametrize("rows", [4, 16])
def test_the_lowest_float16_is_no_infinity(release, rows):
    want = "mean" if release in {"2.8", "2.9"} else "softmax"
    assert row_of(release, 15, F16, -65504.0, rows=rows, keys=64) == want


@pytest.mark.parametrize(("offset", "dead"), [(-15.0, False), (-17.0, True)])
def test_float16_scores_beside_the_lowest_number_round_at_sixteen(offset, dead):
    """65504 is the last number before infinity; half its spacing of 32 is the limit."""
    q, k = torch.ones(1, 1, 12, 80).half(), torch.zeros(1, 1, 6, 80).half()
    k[..., 0] = offset * 80**0.5
    v = torch.randn(1, 1, 6, 80).half()
    mask = torch.full((12, 6), -65504.0).half()
    for release in ("2.8", "2.9"):
        with torch.no_grad(), emulate_mps(release):
            row = scaled_dot_product_attention(q, k, v, mask)[0, 0, 0]
        if not dead:
            torch.testing.assert_close(row.float(), v[0, 0].float().mean(0), atol=2e-3, rtol=0)
        else:
            assert row.isnan().all() if release == "2.8" else not row.any()
