"""`apply`: sets, reads back, restores exactly, and says which way works for a class that refuses."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import mpsdiag
from mpsdiag.errors import BadInput


def test_it_sets_and_restores(build):
    model, _ = build("llama")
    handle = mpsdiag.apply(model, "safe_sdpa")
    assert model.config._attn_implementation == "safe_sdpa"
    handle.remove()
    handle.remove()
    assert model.config._attn_implementation == "sdpa"


def test_a_block_restores_what_was_there_also_after_an_error(build, choose):
    model, _ = build("llama")
    choose(model, "eager")
    with pytest.raises(ZeroDivisionError), mpsdiag.apply(model, "safe_sdpa"):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"


def test_modes_come_off_in_any_order(build):
    model, _ = build("llama")
    first, second, third = (mpsdiag.apply(model, name) for name in ("safe_sdpa", "eager", "unmask_sdpa"))
    second.remove()
    assert model.config._attn_implementation == "unmask_sdpa"
    first.remove()
    assert model.config._attn_implementation == "unmask_sdpa"
    third.remove()
    assert model.config._attn_implementation == "sdpa"


def test_a_choice_made_since_by_the_user_is_left_alone(build, choose):
    model, _ = build("llama")
    with mpsdiag.apply(model, "safe_sdpa"):
        choose(model, "eager")
    assert model.config._attn_implementation == "eager"


def test_a_copy_goes_on_after_the_handle_is_removed(build, logits):
    model, inputs = build("llama")
    stock = logits(model, inputs)
    with mpsdiag.apply(model, "safe_sdpa"):
        twin = copy.deepcopy(model)
    assert twin.config._attn_implementation == "safe_sdpa"
    assert torch.equal(logits(twin, inputs), stock)


def test_a_handle_does_not_keep_its_model_alive(build):
    model, _ = build("llama_one_layer")
    handle = mpsdiag.apply(model, "safe_sdpa")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    handle.remove()


@pytest.mark.needs(transformers="5.1")  # where Gemma 2 has no SDPA
def test_sub_models_follow_except_those_that_cannot_use_sdpa(build, attention_of):
    model, _ = build("llava_gemma2")
    before = attention_of(model)
    assert before == {"LlavaForConditionalGeneration": "sdpa", "CLIPVisionModel": "sdpa", "Gemma2Model": "eager"}
    with mpsdiag.apply(model, "safe_sdpa"):
        assert attention_of(model) == before | dict.fromkeys(list(before)[:2], "safe_sdpa")
    assert attention_of(model) == before
    with mpsdiag.apply(model, "eager"):
        assert set(attention_of(model).values()) == {"eager"}
    assert attention_of(model) == before


def test_models_inside_another_module_are_found(build, attention_of):
    wrapped = nn.ModuleDict({"one": build("llama")[0], "two": build("gpt2")[0]})
    with mpsdiag.apply(wrapped, "safe_sdpa"):
        assert attention_of(wrapped) == {"LlamaForCausalLM": "safe_sdpa", "GPT2LMHeadModel": "safe_sdpa"}
    assert set(attention_of(wrapped).values()) == {"sdpa"}


def test_nothing_stays_changed_when_one_of_several_refuses(build, attention_of):
    wrapped = nn.ModuleDict({"one": build("llama")[0], "two": build("falcon")[0]})
    with pytest.raises(BadInput):
        mpsdiag.apply(wrapped, "safe_sdpa")
    assert set(attention_of(wrapped).values()) == {"sdpa"}


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("falcon", "safe_sdpa", ['mpsdiag.install("safe_sdpa")', 'attn_implementation="eager"']),
        ("falcon", "eager", ['mpsdiag.install("eager")', 'attn_implementation="eager"']),
        pytest.param(
            *("falcon", "flex_attention", ['mpsdiag.install("safe_sdpa")']),
            marks=pytest.mark.needs(torch="2.7"),  # That of 2.5 runs on CUDA only.
        ),
        pytest.param(
            "gemma2",
            "safe_sdpa",
            ["cannot use SDPA", "does not affect it"],
            marks=pytest.mark.needs(transformers="5.1"),
        ),
        ("bloom", "safe_sdpa", ["cannot use SDPA", "does not affect it"]),
        ("bloom", "flex_attention", ["flex_attention"]),
        ("llama", "safe_spda", ["Did you mean 'safe_sdpa'?"]),
        ("llama", "flash_attention_2", ["needs a CUDA or XPU device"]),
    ],
)
def test_a_refusal_says_what_works(name, mode, words, build, caplog, attention_of):
    model, _ = build(name)
    before = attention_of(model)
    caplog.clear()
    with pytest.raises(BadInput) as refusal:
        mpsdiag.apply(model, mode)
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert attention_of(model) == before
    assert not caplog.records, "transformers' own warning is said better by the error"


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), "gpt2", None])
def test_what_holds_no_model_is_refused(thing):
    with pytest.raises(BadInput, match=r"No transformers model in .*mpsdiag\.install"):
        mpsdiag.apply(thing, "safe_sdpa")


@pytest.mark.needs(transformers="5.23")  # Gemma 4
def test_code_that_asks_for_the_exact_name_keeps_it(build, logits, attention_of, verify):
    """Gemma 4 guards causality where attention is named exactly "sdpa", and only there."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    entry = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model, inputs = build("gemma4")
    other, other_inputs = build("llama")
    stock, other_stock = logits(model, inputs), logits(other, other_inputs)
    with mpsdiag.emulate_mps("2.8"):
        assert logits(model, inputs).isnan().any()
    with mpsdiag.apply(model, "safe_sdpa"):
        assert model.config._attn_implementation == "sdpa"
        assert attention_of(model) == {"Gemma4ForCausalLM": "safe_sdpa"}
        assert torch.equal(logits(model, inputs), stock)
        assert verify(model, inputs).ok
        with mpsdiag.emulate_mps("2.8"):
            assert logits(model, inputs).isfinite().all()
        # It is this model's alone.
        assert verify(other, other_inputs).dead_rows > 0
        inner = mpsdiag.apply(model, "unmask_sdpa")
        assert not torch.equal(logits(model, inputs), stock)
        with mpsdiag.apply(model, "sdpa"):
            assert verify(model, inputs).dead_rows > 0
        assert attention_of(model) == {"Gemma4ForCausalLM": "unmask_sdpa"}
        inner.remove()
        assert torch.equal(logits(model, inputs), stock)
        assert verify(model, inputs).ok
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is entry
    assert verify(model, inputs).dead_rows > 0
    assert attention_of(model) == {"Gemma4ForCausalLM": "sdpa"}
    assert torch.equal(logits(other, other_inputs), other_stock)


@pytest.mark.needs(transformers="5.23")  # Gemma 4
def test_a_model_with_its_own_mode_under_an_installed_one(build, logits):
    model, inputs = build("gemma4")
    stock = logits(model, inputs)
    with mpsdiag.install("unmask_sdpa"):
        assert not torch.equal(logits(model, inputs), stock)
        with mpsdiag.apply(model, "safe_sdpa"):
            assert torch.equal(logits(model, inputs), stock)


def test_a_transformers_without_the_switch_has_its_configs_set(build, logits, monkeypatch):
    from transformers import PreTrainedModel

    monkeypatch.delattr(PreTrainedModel, "set_attn_implementation", raising=False)
    model, inputs = build("llama")
    stock = logits(model, inputs)
    with mpsdiag.apply(model, "safe_sdpa"), mpsdiag.emulate_mps("2.8"):
        assert model.config._attn_implementation == "safe_sdpa"
        assert logits(model, inputs).isfinite().all()
    assert torch.equal(logits(model, inputs), stock)
    falcon, _ = build("falcon")
    with pytest.raises(BadInput, match=r"mpsdiag\.install"):
        mpsdiag.apply(falcon, "safe_sdpa")
    assert falcon.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_flex_attention_where_it_may_infer(build, logits):
    from mpsdiag.fixes.modes import MODES

    reason = MODES["flex_attention"].unavailable("cpu", "float32", training=False)
    if reason is not None:
        pytest.skip(reason)
    model, inputs = build("llama_one_layer")
    stock = logits(model, inputs)
    # Its compilation takes a minute on a CPU; uncompiled it computes the same.
    with mpsdiag.apply(model, "flex_attention"), torch.compiler.set_stance("force_eager"):
        flexed = logits(model, inputs)
    assert model.config._attn_implementation == "sdpa"
    real = inputs["attention_mask"].bool()
    exact = logits(model.double(), inputs)
    assert (flexed - exact)[real].abs().max() <= 2 * (stock - exact)[real].abs().max()
