from __future__ import annotations

import mpsdiag
from mpsdiag.fixes.verify import Verification, verify


def test_it_tells_stock_from_fixed(build):
    model, inputs = build("llama")
    dead = int((inputs["attention_mask"] == 0).sum())
    found = verify(model.train(), inputs)
    assert model.training
    assert found == Verification(
        attention={"LlamaForCausalLM": "sdpa"},
        sdpa_calls=2,
        masked_calls=2,
        dead_rows=2 * dead,
        nonfinite=0,
        values=inputs["input_ids"].numel() * 60,
    )
    assert not found.ok
    with mpsdiag.apply(model, "safe_sdpa"):
        fixed = verify(model, inputs)
    assert fixed.ok
    assert fixed.attention == {"LlamaForCausalLM": "safe_sdpa"}


def test_it_counts_what_is_not_finite(build):
    model, inputs = build("llama")
    with mpsdiag.emulate_mps("2.8"):
        found = verify(model, inputs)
        assert found.nonfinite == 2 * inputs["input_ids"].shape[1] * 60
        with mpsdiag.apply(model, "safe_sdpa"):
            assert verify(model, inputs).ok


def test_it_reads_models_without_logits(build):
    model, inputs = build("llama")
    found = verify(model.model, inputs)
    assert found.values == inputs["input_ids"].numel() * 32
    tuples = verify(model.model, inputs | {"return_dict": False})
    assert tuples.values == found.values


def test_with_eager_nothing_reaches_sdpa(build):
    model, inputs = build("llama")
    with mpsdiag.apply(model, "eager"):
        found = verify(model, inputs)
    assert (found.sdpa_calls, found.dead_rows) == (0, 0)
    assert found.ok
