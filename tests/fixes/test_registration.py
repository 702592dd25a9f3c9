"""The attention functions of transformers: never without their mask function, and honest with what stock does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpsdiag
from mpsdiag.errors import BadInput
from mpsdiag.fixes import registration, repairs
from mpsdiag.fixes.modes import MODES

REPAIRING = [name for name, mode in MODES.items() if mode.repair() is not None]


@pytest.mark.needs(transformers="5.1")  # the arguments of its mask functions
@pytest.mark.parametrize("name", REPAIRING)
def test_both_registries_know_the_name_with_the_mask_of_sdpa(name, build):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mpsdiag.apply(build("llama_one_layer")[0], name).remove()
    assert name in ALL_ATTENTION_FUNCTIONS
    size = {"batch_size": 1, "q_length": 4, "kv_length": 4}
    pads = torch.tensor([[False, False, True, True]])
    made = ALL_MASK_ATTENTION_FUNCTIONS[name](**size, attention_mask=pads)
    assert torch.equal(made, sdpa_mask(**size, attention_mask=pads))


def test_the_mask_function_is_registered_first(monkeypatch):
    """Were the second registration to fail, the name would be unknown rather than a trap."""
    from transformers import AttentionInterface, AttentionMaskInterface

    order = []
    monkeypatch.setattr(AttentionMaskInterface, "register", lambda name, function: order.append("mask"))
    monkeypatch.setattr(AttentionInterface, "register", lambda name, function: order.append("attention"))
    registration.register("never_registered", repairs.safe)
    assert order == ["mask", "attention"]


def test_an_old_transformers_is_refused_with_a_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.masking_utils", None)
    with pytest.raises(BadInput, match=r"needs transformers 4\.53 or later"):
        registration.register("safe_sdpa", repairs.safe)


def _forward(mask, **options):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 8, generator=generator) for _ in range(3))
    module = nn.Module()
    stock, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
    safe, _ = registration.repaired_attention(sdpa_attention_forward, repairs.safe, (module, q, k, v, mask), options)
    return stock, safe


@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5), (1, 4, 5, 5), (2, 4, 5, 5), (2, 1, 1, 5)])
def test_masks_of_every_shape(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.2
    mask.view(-1, *shape[-2:])[0, 0] = False
    for given in (mask, torch.where(mask, 0.5, -torch.inf)):
        stock, safe = _forward(given)
        assert torch.equal(stock, safe)


@pytest.mark.needs(transformers="5.1")  # up to 4.57 its SDPA takes no position bias
def test_a_position_bias_makes_rows_finite_and_they_stay():
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril(-1)
    bias = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    stock, safe = _forward(mask, position_bias=bias)
    assert (stock[:, 0] != 0).any()
    assert torch.equal(stock, safe)


def test_a_position_bias_with_the_users_infinite_mask():
    mask = torch.where(torch.ones(2, 1, 5, 5).tril(-1) > 0, 0.0, -torch.inf)
    bias = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    stock, safe = _forward(mask, position_bias=bias)
    assert (stock[:, 0] == 0).all()
    assert torch.equal(stock, safe)
