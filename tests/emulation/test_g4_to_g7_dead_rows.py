"""What G4 to G7 give for a row whose every key is masked: table 3 of the facts, written down here by hand."""

import math
from functools import partial

import pytest
import torch

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.generations.prefill import prefill
from mpsdiag.emulation.generations.vector import vector_one_pass, vector_two_pass

INF = math.inf
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
UNIT = {F32: 2.0**-24, BF16: 2.0**-8, F16: 2.0**-11}
GUARDED = {"guarded": True, "propagates_nan": True}

# path: kernel, queries, keys
PATHS = {
    "vector 1-pass": (partial(vector_one_pass, **GUARDED), 4, 512),
    "vector 1-pass 2.13": (partial(vector_one_pass, guarded=True, propagates_nan=False), 4, 512),
    "vector 2-pass": (partial(vector_two_pass, **GUARDED), 4, 2048),
    "vector 2-pass 2.13": (partial(vector_two_pass, guarded=True, propagates_nan=False), 4, 2048),
    "prefill": (prefill, 16, 512),
    "prefill long": (prefill, 16, 2048),
    "mpp": (partial(prefill, mpp=True), 16, 512),
    "mpp long": (partial(prefill, mpp=True), 16, 2048),
}
ONE, TWO = ("vector 1-pass", "vector 1-pass 2.13"), ("vector 2-pass", "vector 2-pass 2.13")
TILES = ("prefill", "prefill long", "mpp", "mpp long")

# mask value, dtypes, outcome by path: "0", "U" (the mean of V) or "sm" (softmax of the raw scores)
TABLE = [
    ("bool", (F32, BF16, F16), dict.fromkeys(PATHS, "0")),
    (-INF, (F32, BF16, F16), dict.fromkeys(PATHS, "0")),
    ("min", (F32, BF16), dict.fromkeys(ONE, "U") | dict.fromkeys(TWO + TILES, "0")),
    ("min", (F16,), dict.fromkeys(PATHS, "sm")),
    (-1e10, (F32, BF16), dict.fromkeys(TWO, "0") | dict.fromkeys(ONE + TILES, "U")),
    (-1e9, (F32, BF16), dict.fromkeys(PATHS, "U")),
    (-1e4, (F32, BF16, F16), dict.fromkeys(PATHS, "sm")),
]
CELLS = [
    pytest.param(value, dtype, path, outcome, id=f"{value} {dtype} {path}".replace("torch.", ""))
    for value, dtypes, outcomes in TABLE
    for dtype in dtypes
    for path, outcome in outcomes.items()
]


def inputs(dtype, length, keys, *, far=False):
    """Random q, k, v with two kv heads for four query heads; `far` makes every score of the dead row about -20."""
    generator = torch.Generator().manual_seed(7)
    query, key, value = (
        torch.randn(1, heads, rows, 64, generator=generator) for heads, rows in ((4, length), (2, keys), (2, keys))
    )
    if far:
        key = key / 4 + 1.0
        query[:, :, 1] = -2.5
    return query.to(dtype), key.to(dtype), value.to(dtype)


def mask_dead_row(value, dtype, length, keys):
    """Row 1 is masked everywhere, the other rows nowhere."""
    if value == "bool":
        mask = torch.ones(1, 1, length, keys, dtype=torch.bool)
        mask[..., 1, :] = False
    else:
        mask = torch.zeros(1, 1, length, keys, dtype=dtype)
        mask[..., 1, :] = torch.finfo(dtype).min if value == "min" else value
    return mask.expand(1, 4, length, keys)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(("value", "dtype", "path", "outcome"), CELLS)
def test_table_3(value, dtype, path, outcome, far):
    kernel, length, keys = PATHS[path]
    query, key, values = inputs(dtype, length, keys, far=far)
    mask = mask_dead_row(value, dtype, length, keys)
    got = kernel(Call(query, key, values, mask, 0.0, False, 0.125))
    dead = got[0, :, 1].double()
    if outcome == "0":
        assert (dead == 0).all()
    else:
        raw = 0.125 * query[0, :, 1, None].double() @ key[0].double().repeat_interleave(2, 0).transpose(-2, -1)
        weights = (raw * (outcome == "sm")).softmax(-1)
        v = values[0].double().repeat_interleave(2, 0)
        wanted, absolute = (weights @ v)[:, 0], (weights @ v.abs())[:, 0]
        # Beside the mask a score is rounded to half a step of f32, in units of log2 for the tiled kernels; G6 also
        # rounds q and its factor to the dtype. A weight changes by exp(2 error), and the sums are f32.
        step = torch.tensor(mask[0, 0, 1, 0].float().item() * (1.4427 if path in TILES else 1.0)).abs()
        step = (step.nextafter(torch.tensor(INF)) - step).item() * (math.log(2) if path in TILES else 1.0)
        terms = 0.125 * (query[0, :, 1].double().abs().sum(-1).max() * key.double().abs().max()).item()
        error = (step / 2 if outcome == "sm" else 0.0) + 67 * 2.0**-24 * terms
        if path.startswith("prefill") and outcome == "sm":
            error += 2.1 * UNIT[dtype] * terms
        # The two-pass kernel rounds once more, in between.
        allowed = (math.expm1(2 * error) + (2 * keys + 16) * 2.0**-24 + 2.1 * UNIT[dtype]) * absolute
        assert ((dead - wanted).abs() <= allowed).all()
    # The rows that see every key are what they are without a mask.
    others = [row for row in range(length) if row != 1]
    assert torch.equal(got[:, :, others], kernel(Call(query, key, values, None, 0.0, False, 0.125))[:, :, others])


def test_the_outcomes_differ_by_more_than_their_bounds():
    """A test that cannot tell U from softmax would be worth nothing."""
    query, key, value = inputs(F16, 4, 512)
    raw = 0.125 * query[0, 0].float() @ key[0, 0].float().T
    assert (raw.softmax(-1) @ value[0, 0].float() - value[0, 0].float().mean(-2)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_without_the_guard_one_pass_gives_nan_and_two_pass_zero(dtype):
    """Torch 2.8 to 2.12: a bool mask, through the operator itself."""
    for kernel, keys, dead_is_nan in ((vector_one_pass, 512, True), (vector_two_pass, 2048, False)):
        query, key, value = inputs(dtype, 4, keys)
        mask = mask_dead_row("bool", dtype, 4, keys)
        got = kernel(Call(query, key, value, mask, 0.0, False, 0.125), guarded=False, propagates_nan=False)
        dead = got[0, :, 1]
        assert dead.isnan().all() if dead_is_nan else (dead == 0).all()
        assert got[0, :, [0, 2, 3]].isfinite().all()


def test_without_the_guard_a_leading_minus_infinity_spoils_the_row():
    query, key, value = inputs(F32, 4, 64)
    mask = torch.zeros(1, 1, 4, 64)
    mask[..., 0, 5], mask[..., 2, 40] = -INF, -INF
    got = vector_one_pass(
        Call(query, key, value, mask.expand(1, 4, 4, 64), 0.0, False, 0.125), guarded=False, propagates_nan=False
    )
    # Key 5 begins its group; key 40 is the second of its group (8), whose maximum is finite by then.
    assert got[0, :, 0].isnan().all()
    assert got[0, :, 1:].isfinite().all()
