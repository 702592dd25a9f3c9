"""The dispatch table of the facts, written out: which call reaches the operator, and which kernel it gets there."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mpsdiag.emulation.call import AttentionCall, choose_path, public_call, takes_operator
from mpsdiag.emulation.mode import emulate_mps
from mpsdiag.emulation.releases import RELEASES, TABLE

NEVER = 99  # a macOS on which tensors that are not contiguous would still not get in
# release -> (has the operator, lowest macOS that lets tensors in that are not contiguous, dropout gets in)
OPERATOR = {
    **dict.fromkeys(("2.0", "2.1", "2.2", "2.3", "2.4"), (False, NEVER, False)),
    "2.5": (True, NEVER, False),
    **dict.fromkeys(("2.6", "2.7", "2.8", "2.9", "2.10", "2.11"), (True, 15, False)),
    "2.12": (True, 0, True),
    **dict.fromkeys(("2.13", "2.14", "2.15"), (True, 0, True)),
}


def call(queries=4, keys=4, width=64, *, heads=2, shared=2, out=None, dtype=torch.float32, **more):
    q = torch.zeros(1, heads, queries, width, dtype=dtype)
    k = torch.zeros(1, shared, keys, width, dtype=dtype)
    return AttentionCall(q, k, torch.zeros(1, shared, keys, out or width, dtype=dtype), **more)


def test_the_releases():
    assert list(RELEASES) == list(OPERATOR)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("macos", [13, 14, 15, 26])
def test_who_reaches_the_operator(release, macos):
    exists, loose_from, dropout_in = OPERATOR[release]
    ignored = release == "2.12"

    def takes(c):
        return takes_operator(c, TABLE[release], macos, dropout_ignored=ignored)

    assert takes(call()) == exists
    swapped = torch.zeros(1, 4, 2, 64).transpose(1, 2)
    for tensors in ((swapped, call().key, call().key), (call().query, swapped, call().key)):
        assert takes(AttentionCall(*tensors)) == (exists and macos >= loose_from)
    assert takes(call(dropout_p=0.5)) == (exists and dropout_in)
    for position in range(3):
        tensors = [torch.zeros(1, 2, 4, 64, requires_grad=i == position) for i in range(3)]
        assert not takes(AttentionCall(*tensors))
        with torch.no_grad():
            assert takes(AttentionCall(*tensors)) == exists


@pytest.mark.parametrize("release", RELEASES[5:])
def test_a_mask_that_needs_a_gradient_does_not_count(release):
    mask = torch.zeros(4, 4, requires_grad=True)
    assert takes_operator(call(mask=mask), TABLE[release], 15, dropout_ignored=False)


V1, V2, P, MPP, G = "vector_one_pass", "vector_two_pass", "prefill", "prefill_mpp", "general"
BOOL, FLOAT = torch.ones(1, dtype=torch.bool), torch.zeros(1)
HALF_MASK = torch.zeros(1, dtype=torch.float16)
F16 = {"dtype": torch.float16}
# what is called: paths in 2.5-2.7, in 2.8-2.12, in 2.13, in 2.14 and 2.15 on macOS 15, the same on macOS 26
PATHS = [
    ({}, (G, V1, V1, V1, V1)),
    ({"mask": BOOL}, (G, V1, V1, V1, V1)),
    ({"mask": FLOAT}, (G, G, V1, V1, V1)),
    ({"is_causal": True}, (G, G, V1, V1, V1)),
    ({"queries": 8, "keys": 8}, (G, V1, V1, V1, V1)),
    ({"queries": 8, "keys": 7}, (G, G, G, G, G)),
    ({"queries": 9, "keys": 9}, (G, G, P, P, P)),
    ({"queries": 1, "keys": 1023}, (G, V1, V1, V1, V1)),
    ({"queries": 1, "keys": 1024}, (G, V2, V2, V2, V2)),
    ({"queries": 8, "keys": 4096, "mask": FLOAT}, (G, G, V2, V2, V2)),
    ({"width": 96}, (G, V1, V1, V1, V1)),
    ({"width": 128}, (G, V1, V1, V1, V1)),
    ({"width": 256}, (G, G, V1, V1, V1)),
    ({"width": 80}, (G, G, G, G, G)),
    ({"width": 32}, (G, G, G, G, G)),
    ({"width": 64, "out": 32}, (G, G, G, G, G)),
    ({"mask": FLOAT, **F16}, (G, G, G, G, G)),
    ({"mask": HALF_MASK, **F16}, (G, G, V1, V1, V1)),
    ({"queries": 16, "width": 32}, (G, G, P, P, P)),
    ({"queries": 16, "width": 72}, (G, G, P, P, P)),
    ({"queries": 16, "width": 80, **F16}, (G, G, P, P, P)),
    ({"queries": 16, "width": 48}, (G, G, G, G, G)),
    ({"queries": 16, "width": 256, **F16}, (G, G, P, P, MPP)),
    ({"queries": 16, "width": 64, **F16}, (G, G, P, P, MPP)),
    ({"queries": 16, "width": 64, "dtype": torch.bfloat16}, (G, G, P, P, MPP)),
    ({"queries": 16, "width": 64}, (G, G, P, P, P)),
    ({"queries": 16, "width": 64, "mask": BOOL, **F16}, (G, G, P, P, MPP)),
    ({"queries": 16, "width": 64, "mask": FLOAT, **F16}, (G, G, G, G, G)),
    ({"queries": 16, "width": 64, "mask": FLOAT, "is_causal": True}, (G, G, P, P, P)),
    ({"queries": 4, "width": 64, "mask": FLOAT, "is_causal": True}, (G, G, G, G, G)),
    ({"queries": 16, "width": 64, "out": 32}, (G, G, G, G, G)),
    ({"queries": 16, "keys": 0}, (G, G, G, G, G)),
    ({"heads": 4, "shared": 2}, (G, G, V1, V1, V1)),
    ({"heads": 4, "shared": 1, "keys": 4096}, (G, G, V2, V2, V2)),
]


@pytest.mark.parametrize(("arguments", "paths"), PATHS, ids=str)
def test_which_kernel_runs(arguments, paths):
    columns = [
        (RELEASES[5:8], 15, paths[0]),
        (RELEASES[8:13], 15, paths[1]),
        (("2.13",), 26, paths[2]),
        (("2.14", "2.15"), 15, paths[3]),
        (("2.14", "2.15"), 26, paths[4]),
    ]
    for releases, macos, want in columns:
        for release in releases:
            assert choose_path(call(**arguments), TABLE[release], macos, prefill_disabled=False) == want


@pytest.mark.parametrize("release", ["2.13", "2.14", "2.15"])
@pytest.mark.parametrize("macos", [15, 26])
def test_prefill_can_be_disabled(release, macos, monkeypatch):
    long = call(queries=16, **F16)
    assert choose_path(long, TABLE[release], macos, prefill_disabled=True) == "general"
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 16, 64) for _ in range(3))
    lowest = torch.zeros(16, 16)
    lowest[3] = torch.finfo(torch.float32).min
    with emulate_mps(release, macos):
        zeros = scaled_dot_product_attention(q, k, v, lowest)[0, 0, 3]
        monkeypatch.setenv("PYTORCH_MPS_DISABLE_PREFILL_ATTENTION", "1")
        mean = scaled_dot_product_attention(q, k, v, lowest)[0, 0, 3]
    assert not zeros.any()
    torch.testing.assert_close(mean, v[0, 0].mean(0))


def test_arguments_are_read_by_position_and_by_name():
    q = torch.zeros(1, 1, 2, 4)
    mask = torch.zeros(2, 2)
    by_position = public_call((q, q, q, mask, 0.25, True), {"scale": 0.5, "enable_gqa": True})
    by_name = public_call(
        (),
        {
            "query": q,
            "key": q,
            "value": q,
            "attn_mask": mask,
            "dropout_p": 0.25,
            "is_causal": True,
            "scale": 0.5,
            "enable_gqa": True,
        },
    )
    for read in (by_position, by_name):
        assert read.mask is mask
        assert (read.dropout_p, read.is_causal, read.scale, read.enable_gqa) == (0.25, True, 0.5, True)
