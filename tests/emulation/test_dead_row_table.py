"""The outcome of a fully masked row, release by release, path by path: the table of the facts, written out here.

NaN: not a number. 0: zeros. U: the plain mean of V over all keys. sm: about the softmax of the raw scores.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.sdpa.float64 import reference_attention

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ROW = 1

# How a call reaches each path: queries, keys, head dimension, macOS.
SHAPES = {
    "short general": (4, 512, 64, 15),
    "long general": (16, 512, 64, 15),
    "odd dim": (16, 512, 48, 15),
    "odd dim short": (4, 512, 48, 15),
    "vector": (4, 512, 64, 15),
    "vector 256": (8, 100, 256, 15),
    "two-pass": (4, 2048, 64, 15),
    "prefill": (16, 512, 64, 15),
    "prefill 72": (9, 100, 72, 15),
    "mpp": (16, 512, 64, 26),
}
# The ends of each range: the releases between them are in the probes' own table (tests/probes/test_ranges.py).
OLD, FIRST, F32_GRAPH, NEW = ("2.0", "2.4"), ("2.5", "2.8"), ("2.10", "2.12"), ("2.13", "2.15")
GENERAL = ("short general", "long general", "odd dim", "two-pass")
# releases, paths, then: -inf or bool; finfo.min of float32 and bfloat16; of float16, small scores; all below
# -16
TABLE = [
    (OLD, GENERAL, "NaN", "U", "U", "NaN"),
    (FIRST, GENERAL, "NaN", "U", "U", "NaN"),
    (("2.9",), GENERAL, "0", "U", "U", "0"),
    (F32_GRAPH, GENERAL, "0", "U", "sm", "sm"),
    (NEW, ("vector", "vector 256"), "0", "U", "sm", "sm"),
    (NEW, ("two-pass",), "0", "0", "sm", "sm"),
    (NEW, ("prefill", "prefill 72"), "0", "0", "sm", "sm"),
    (NEW, ("mpp",), "0", "0", "sm", "sm"),
    (NEW, ("odd dim", "odd dim short"), "0", "U", "sm", "sm"),
]
CELLS = [
    pytest.param(release, path, *row[2:], id=f"{release}-{path}")
    for row in TABLE
    for release in row[0]
    for path in row[1]
]


def tensors(path, dtype, *, low=False):
    queries, keys, width, _ = SHAPES[path]
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, 2, n, width, generator=generator) for n in (queries, keys, keys))
    if low:  # every scaled score lies some units around -22
        q[..., 0], k[..., 0] = 4.0, -22.0 * width**0.5 / 4.0
        assert ((q @ k.mT) / width**0.5).max() < -16.5
    return q.to(dtype), k.to(dtype), v.to(dtype)


def float_mask(path, dtype, fill):
    queries, keys, _, _ = SHAPES[path]
    mask = torch.zeros(1, 1, queries, keys, dtype=dtype)
    mask[..., ROW, :] = fill
    return mask


def kind_of(output, q, k, v):
    row = output[0, :, ROW].double()
    if row.isnan().all():
        return "NaN"
    if not row.any():
        return "0"
    half = 2 if q.dtype != F32 else 0
    mean = v.double().mean(dim=-2)[0]
    softmax = reference_attention(q, k, v)[0, :, ROW]
    assert (mean - softmax).abs().max() > 0.05, "the two outcomes must be told apart"
    if (row - mean).abs().max() < 1e-6 + half * 1e-3:
        return "U"
    if (row - softmax).abs().max() < 0.02:
        return "sm"
    return f"neither: {(row - mean).abs().max():.3g} from U, {(row - softmax).abs().max():.3g} from sm"


def outcome(release, path, dtype, mask, *, low=False, grad=False):
    q, k, v = tensors(path, dtype, low=low)
    if grad:
        q.requires_grad_()
    with emulate_mps(release, SHAPES[path][3]):
        output = scaled_dot_product_attention(q, k, v, mask)
    return kind_of(output.detach(), q, k, v)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize(("release", "path", "never", "finfo", "small", "low"), CELLS)
def test_without_gradients(release, path, never, finfo, small, low, dtype):
    mask = float_mask(path, dtype, float("-inf"))
    assert outcome(release, path, dtype, mask) == never
    assert outcome(release, path, dtype, mask == 0) == never
    lowest = float_mask(path, dtype, torch.finfo(dtype).min)
    assert outcome(release, path, dtype, lowest + lowest) == never
    if dtype == F16:
        assert outcome(release, path, dtype, lowest) == small
        assert outcome(release, path, dtype, lowest, low=True) == low
    else:
        assert outcome(release, path, dtype, lowest) == finfo


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("release", [*OLD, *FIRST, "2.9", *F32_GRAPH, *NEW])
def test_with_gradients_the_composite_path_is_taken(release, dtype):
    old = release in OLD
    never = float_mask("short general", dtype, float("-inf"))
    assert outcome(release, "short general", dtype, never, grad=True) == ("NaN" if old else "0")
    lowest = float_mask("short general", dtype, torch.finfo(dtype).min)
    want = "U" if old or dtype != F16 else "sm"
    assert outcome(release, "short general", dtype, lowest, grad=True) == want


@pytest.mark.parametrize("path", ["short general", "two-pass", "prefill", "mpp", "odd dim"])
@pytest.mark.parametrize("release", [*OLD, *FIRST, "2.9", *F32_GRAPH, *NEW])
def test_causal_rows_are_never_fully_masked(release, path):
    q, k, v = tensors(path, F32)
    with emulate_mps(release, SHAPES[path][3]):
        output = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(output.double(), reference_attention(q, k, v, is_causal=True), atol=2e-5, rtol=0)


@pytest.mark.parametrize("release", [*FIRST, "2.9", *F32_GRAPH])
def test_float16_scores_far_below_take_their_own_key_out_only(release):
    """2.5 to 2.9: an entry below -16 becomes -inf, the mean is over the others; later, float32 keeps them all."""
    q = torch.full((1, 1, 4, 64), 0.5, dtype=F16)
    k = torch.zeros(1, 1, 8, 64, dtype=F16)
    k[..., 5:, :] = -5.0  # scores of -20
    v = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 64).to(F16)
    mask = torch.full((4, 8), torch.finfo(F16).min, dtype=F16)
    with emulate_mps(release):
        row = scaled_dot_product_attention(q, k, v, mask)[0, 0, ROW]
    assert torch.equal(row, torch.full((64,), 2.0, dtype=F16))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("release", "path", "ten_to_the_ten", "ten_to_the_nine", "ten_to_the_four"),
    [
        ("2.7", "long general", "U", "U", "sm"),
        ("2.12", "long general", "U", "U", "sm"),
        ("2.13", "vector", "U", "U", "sm"),
        ("2.13", "two-pass", "0", "U", "sm"),
        ("2.13", "prefill", "U", "U", "sm"),
        ("2.14", "mpp", "U", "U", "sm"),
        ("2.15", "odd dim", "U", "U", "sm"),
    ],
)
def test_finite_masks_that_are_not_the_lowest(release, path, ten_to_the_ten, ten_to_the_nine, ten_to_the_four, dtype):
    if release == "2.7" and dtype == BF16:
        ten_to_the_four = "U"  # bfloat16 scores have steps of 64 there
    # Nearest below in bfloat16, so that the row's maximum is below -1e9 where it should be.
    assert outcome(release, path, dtype, float_mask(path, dtype, -1e10)) == ten_to_the_ten
    if dtype == F32:
        assert outcome(release, path, dtype, float_mask(path, dtype, -1e9)) == ten_to_the_nine
    assert outcome(release, path, dtype, float_mask(path, dtype, -1e4)) == ten_to_the_four


@pytest.mark.parametrize("release", ["2.5", "2.6", "2.8", "2.11"])
def test_below_macos_15_tensors_that_are_not_contiguous_escape(release):
    """2.5 on every macOS, 2.6 to 2.11 below macOS 15: composite, so zeros."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors("long general", F32))
    mask = float_mask("long general", F32, float("-inf"))
    for macos in (13, 14, 15):
        with emulate_mps(release, macos):
            output = scaled_dot_product_attention(q, k, v, mask)
        reached = release != "2.5" and macos >= 15
        assert kind_of(output, q, k, v) == ("NaN" if reached and release != "2.11" else "0")


@pytest.mark.parametrize("release", ["2.8", "2.9", "2.10", "2.11", "2.12", "2.13", "2.15"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
def test_bool_masks_by_the_operator_itself(release, dtype):
    """Up to 2.12 the one-pass kernel gives NaN, the two-pass kernel zeros; from 2.13 on both give zeros."""
    operator = torch.ops.aten._scaled_dot_product_attention_math_for_mps
    for path in ("vector", "two-pass"):
        q, k, v = tensors(path, dtype)
        mask = float_mask(path, F32, float("-inf")) == 0
        with emulate_mps(release, defects=("SDPA029",) if int(release[2:]) < 13 else None):
            output = operator(q, k, v, mask)[0]
        want = "NaN" if path == "vector" and int(release[2:]) < 13 else "0"
        assert kind_of(output, q, k, v) == want
