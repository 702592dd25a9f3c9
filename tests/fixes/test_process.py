"""`install`: in force for every caller, and gone without a trace, whatever others do to the same names meanwhile."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import mpsdiag
from mpsdiag.errors import BadInput
from mpsdiag.fixes.process import installed
from mpsdiag.sdpa.watch import dead_rows

STOCK = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    left, F.scaled_dot_product_attention = F.scaled_dot_product_attention, STOCK
    assert left is STOCK
    assert installed() == ()


@pytest.fixture
def attend():
    """Attention whose first query has no key; looks the function up at each call, as models do."""
    query = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    return lambda: F.scaled_dot_product_attention(query, query, query, mask)


def _dead_row_is_zero(output):
    return bool((output[:, :, 0] == 0).all())


def test_it_is_in_force_for_a_block(attend):
    stock = attend()
    with mpsdiag.install("unmask_sdpa"):
        assert installed() == ("unmask_sdpa",)
        assert not _dead_row_is_zero(attend())
        assert torch.equal(attend()[:, :, 1:], stock[:, :, 1:])
    assert torch.equal(attend(), stock)


def test_it_is_in_force_on_other_threads(attend):
    seen = []
    with mpsdiag.install("unmask_sdpa"):
        thread = threading.Thread(target=lambda: seen.append(attend()))
        thread.start()
        thread.join()
    assert not _dead_row_is_zero(seen[0])


def test_the_last_one_installed_counts_and_they_come_off_in_any_order(attend):
    outer = mpsdiag.install("unmask_sdpa")
    inner = mpsdiag.install("sdpa")
    assert _dead_row_is_zero(attend())
    outer.remove()
    outer.remove()
    assert _dead_row_is_zero(attend())
    again = mpsdiag.install("unmask_sdpa")
    inner.remove()
    assert not _dead_row_is_zero(attend())
    again.remove()


def test_torch_sees_one_call_inside_the_fix(attend):
    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ == "scaled_dot_product_attention":
                masks.append(args[3])
            return func(*args, **(kwargs or {}))

    masks = []
    with mpsdiag.install("safe_sdpa"):
        assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"
        with Calls():
            attend()
    assert len(masks) == 1
    assert not dead_rows(masks[0]).any()


def test_it_reaches_torchs_own_attention_module():
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    blocked = ~torch.ones(4, 4, dtype=torch.bool).tril(-1)
    stock, _ = module(x, x, x, attn_mask=blocked, need_weights=False)
    with mpsdiag.install("unmask_sdpa"):
        opened, _ = module(x, x, x, attn_mask=blocked, need_weights=False)
    assert torch.equal(stock[:, 1:], opened[:, 1:])
    assert not torch.equal(stock[:, 0], opened[:, 0])


def test_an_emulation_imported_or_entered_later_is_still_met(attend):
    with mpsdiag.install("sdpa"), mpsdiag.emulate_mps("2.8"):
        assert attend().isnan().any()
        with mpsdiag.install("safe_sdpa"):
            assert _dead_row_is_zero(attend())


def _wrapping(function, calls):
    # As many libraries do it; wraps copies attributes, so ours must not be found by one.
    @functools.wraps(function)
    def theirs(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return theirs


def test_a_wrapper_over_ours_stays_and_ours_passes_calls_on(attend):
    calls = []
    stock = attend()
    handle = mpsdiag.install("unmask_sdpa")
    ours = F.scaled_dot_product_attention
    theirs = F.scaled_dot_product_attention = _wrapping(ours, calls)
    assert not _dead_row_is_zero(attend())
    handle.remove()
    assert F.scaled_dot_product_attention is theirs
    assert torch.equal(attend(), stock)
    # And with a fix over theirs, which is over our old layer: once more in force, once more gone.
    with mpsdiag.install("safe_sdpa"):
        assert torch.equal(attend(), stock)
    assert F.scaled_dot_product_attention is theirs
    assert len(calls) == 3
    # They restore what they found, which is our layer of then: it passes calls on, and the next install uses it.
    F.scaled_dot_product_attention = ours
    assert torch.equal(attend(), stock)
    with mpsdiag.install("unmask_sdpa"):
        assert F.scaled_dot_product_attention is ours
        assert not _dead_row_is_zero(attend())


def test_a_wrapper_that_was_there_before_is_used_and_restored(attend):
    calls = []
    theirs = F.scaled_dot_product_attention = _wrapping(STOCK, calls)
    with mpsdiag.install("safe_sdpa"):
        attend()
    assert calls == [1]
    assert F.scaled_dot_product_attention is theirs
    F.scaled_dot_product_attention = STOCK


def test_the_entry_of_transformers_is_layered_alike(build, logits):
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []
    entry = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model, inputs = build("llama")
    stock = logits(model, inputs)
    handle = mpsdiag.install("unmask_sdpa")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not entry
    theirs = _wrapping(ALL_ATTENTION_FUNCTIONS["sdpa"], calls)
    AttentionInterface.register("sdpa", theirs)
    try:
        assert not torch.equal(logits(model, inputs), stock)
        handle.remove()
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
        assert torch.equal(logits(model, inputs), stock)
    finally:
        AttentionInterface.register("sdpa", entry)
    with mpsdiag.install("safe_sdpa"):
        pass
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is entry


def test_an_entry_that_does_not_go_through_torchs_name_is_reached(build, logits):
    """A library may hold torch's function under a name of its own: the layer on the entry is for that."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def theirs(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        output = STOCK(query, key, value, attention_mask, dropout, attention_mask is None, scale=scaling)
        return output.transpose(1, 2).contiguous(), None

    entry = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model, inputs = build("llama")
    AttentionInterface.register("sdpa", theirs)
    try:
        stock = logits(model, inputs)
        with mpsdiag.emulate_mps("2.8"):
            assert logits(model, inputs).isnan().any()
        with mpsdiag.install("safe_sdpa"):
            assert torch.equal(logits(model, inputs), stock)
            with mpsdiag.emulate_mps("2.8"):
                assert logits(model, inputs).isfinite().all()
    finally:
        AttentionInterface.register("sdpa", entry)


@pytest.mark.parametrize("mode", ["flex_attention", "flash_attention_2"])
def test_modes_with_masks_of_another_kind_are_refused(mode):
    with pytest.raises(BadInput, match=rf'mpsdiag\.apply\(model, "{mode}"\)'):
        mpsdiag.install(mode)


def test_an_unknown_mode_is_refused():
    with pytest.raises(BadInput, match="Did you mean 'eager'"):
        mpsdiag.install("eagre")


def test_models_are_reached_when_somebody_replaces_torchs_name_after_us(build, logits):
    def theirs(*args, **kwargs):
        return STOCK(*args, **kwargs)

    model, inputs = build("llama")
    stock = logits(model, inputs)
    with mpsdiag.install("safe_sdpa"):
        ours, F.scaled_dot_product_attention = F.scaled_dot_product_attention, theirs
        try:
            with mpsdiag.emulate_mps("2.8"):
                assert logits(model, inputs).isfinite().all()
            assert torch.equal(logits(model, inputs), stock)
        finally:
            F.scaled_dot_product_attention = ours
