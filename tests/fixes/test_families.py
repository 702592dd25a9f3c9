"""`safe_sdpa` on model families: what the CPU gives, bit for bit; and finite and the same under the emulation.

What "the same" means under the emulation: the emulated MPS kernel rounds otherwise than the CPU's, so no mode can be
bit-equal to the CPU there. Two things can be, and are asked for: (1) bit-equal to stock SDPA under the same
emulation with its defects left out (`defects=()`: the same kernel, which then writes zeros into dead rows); (2) as
close to the model in float64 as twice the distance of the CPU's own float32.
"""

from __future__ import annotations

import pytest
import torch

import mpsdiag

NEWER = pytest.mark.needs(transformers="5.1")
"""Up to 4.57 these classes write finite masks of their own, or have no SDPA at all (T5)."""
WITH_DEAD_ROWS = [
    "gpt2",
    "llama",
    "qwen2",
    "mistral",
    "mistral_right",
    "gemma3",
    "falcon",
    "bart",
    "modernbert",
    "llama_bool_mask",
    "llama_float_mask",
    "llama_all_pad",
]
# T5 writes its masks as finfo.min beside its position bias: no row is dead, and none may be zeroed.
WITHOUT_DEAD_ROWS = ["llama_unpadded", "t5"]
ALL = [
    pytest.param(
        name,
        marks=[NEWER]
        if name in ("falcon", "bart", "modernbert", "t5")
        else [pytest.mark.needs(transformers="4.56")]  # Older ones write finite masks for GPT-2.
        if name == "gpt2"
        else [],
    )
    for name in WITH_DEAD_ROWS + WITHOUT_DEAD_ROWS
]


@pytest.mark.parametrize("name", ALL)
def test_safe_sdpa_is_bit_equal_to_the_cpu(name, build, logits, in_place, verify):
    model, inputs = build(name)
    stock = logits(model, inputs)
    before = verify(model, inputs)
    assert (before.dead_rows > 0) == (name in WITH_DEAD_ROWS)
    with in_place(model):
        assert torch.equal(logits(model, inputs), stock)
        after = verify(model, inputs)
    assert after.ok
    assert after.dead_rows == 0
    # The mask is still there: an attention function without its mask function would run without one.
    assert (after.sdpa_calls, after.masked_calls) == (before.sdpa_calls, before.masked_calls)
    with mpsdiag.install("safe_sdpa"):
        assert torch.equal(logits(model, inputs), stock)
        assert verify(model, inputs).dead_rows == 0


@pytest.mark.parametrize("name", ALL)
def test_safe_sdpa_is_right_under_the_emulation(name, build, logits, in_place):
    model, inputs = build(name)
    stock = logits(model, inputs)
    with mpsdiag.emulate_mps("2.8"):
        emulated = logits(model, inputs)
    assert emulated.isfinite().all() == (name in WITHOUT_DEAD_ROWS)
    with mpsdiag.emulate_mps("2.8", defects=()):
        healthy = logits(model, inputs)
    with mpsdiag.emulate_mps("2.8"), in_place(model):
        safe = logits(model, inputs)
    assert safe.isfinite().all()
    assert torch.equal(safe, healthy)
    with mpsdiag.emulate_mps("2.8"), mpsdiag.install("safe_sdpa"):
        assert torch.equal(logits(model, inputs), healthy)

    exact = logits(model.double(), {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()})
    assert (safe - exact).abs().max() <= 2 * (stock - exact).abs().max()


@pytest.mark.parametrize("name", ["llama", "mistral_right", pytest.param("falcon", marks=NEWER)])
@pytest.mark.parametrize("mode", ["eager", "unmask_sdpa", "min_mask_sdpa"])
def test_the_other_modes_are_finite_and_right_where_tokens_are_real(name, mode, build, logits, in_place):
    model, inputs = build(name)
    stock = logits(model, inputs)
    real = inputs["attention_mask"].bool()
    with in_place(model, mode), mpsdiag.emulate_mps("2.8"):
        emulated = logits(model, inputs)
    with in_place(model, mode):
        plain = logits(model, inputs)
    assert emulated.isfinite().all()
    exact = logits(model.double(), inputs)
    bound = 2 * (stock - exact).abs().max()
    assert (plain - exact)[real].abs().max() <= bound
    assert (emulated - exact)[real].abs().max() <= bound
    # They are not exact: rows of pads come out otherwise than from the CPU.
    assert (plain - exact)[~real].abs().max() > 1e3 * bound


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral_right", "llama_unpadded", "bart"])
def test_installed_eager_is_transformers_eager(name, build, logits, verify):
    model, inputs = build(name)
    with mpsdiag.apply(model, "eager"):
        theirs = logits(model, inputs)
    with mpsdiag.install("eager"):
        assert torch.equal(logits(model, inputs), theirs)
        assert verify(model, inputs).sdpa_calls == 0
