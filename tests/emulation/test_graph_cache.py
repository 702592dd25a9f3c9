"""What two calls must share for the second to get the first's graph: each part of the key by itself."""

from dataclasses import replace

import pytest
import torch

from mpsdiag.emulation.call import AttentionCall as Call
from mpsdiag.emulation.faults import as_the_cached_graph_runs_it
from mpsdiag.emulation.selection import Emulation, Machine

Q, K, V = (torch.randn(1, 2, length, 8) for length in (12, 14, 14))
FIRST = Call(Q, K, V, scale=0.5)
MASKED = replace(FIRST, mask=torch.zeros(12, 14))


def abort(*_):
    raise AssertionError


def scale_after(first, second):
    """The scale with which a second call runs where the first one's is a constant of its graph (SDPA015)."""
    machine = Machine.of(Emulation("2.8", defects=("SDPA015",)), abort)
    as_the_cached_graph_runs_it(first, machine)
    return as_the_cached_graph_runs_it(replace(second, scale=0.25), machine).scale


@pytest.mark.parametrize("call", [FIRST, MASKED, replace(FIRST, is_causal=True)])
def test_a_call_of_the_same_key_gets_the_first_scale(call):
    assert scale_after(call, call) == 0.5


@pytest.mark.parametrize(
    "other",
    [
        replace(FIRST, query=Q[:, :, :11]),
        replace(FIRST, key=K[:, :, :13], value=V[:, :, :13]),
        replace(FIRST, value=V[..., :7]),
        replace(FIRST, query=Q.half(), key=K.half(), value=V.half()),
        replace(FIRST, is_causal=True),
        MASKED,
    ],
)
def test_a_call_that_differs_in_one_part_of_the_key_keeps_its_own(other):
    assert scale_after(FIRST, other) == scale_after(other, FIRST) == 0.25
