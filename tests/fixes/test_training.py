"""Training steps: which of them meet the bug, and that `safe_sdpa` gives the losses and gradients of the CPU."""

from __future__ import annotations

import pytest
import torch

import mpsdiag

# transformers 5 renames these, for version 6; peft and the versions before know the old names only.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning"),
]


def _full(model):
    return model


def _checkpointing(*, reentrant):
    def prepare(model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        return model

    return prepare


def _only_head(model):
    model.requires_grad_(False)
    # The output layer may be tied to the embedding: a copy keeps what runs before the head frozen.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _lora(*targets):
    def prepare(model):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), lora_dropout=0.0))

    return prepare


# Name, how the model is prepared, whether stock SDPA meets the bug in training on MPS of torch 2.8.
STEPS = {
    "full": (_full, False),
    "checkpointing_reentrant": (_checkpointing(reentrant=True), True),
    "checkpointing_nonreentrant": (_checkpointing(reentrant=False), False),
    "only_head": (_only_head, True),
    "lora_q_v": (_lora("q_proj", "v_proj"), False),
    "lora_mlp": (_lora("up_proj"), True),
}


def _step(model, inputs):
    """One training step: the loss and every gradient."""
    model.zero_grad()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _equal(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _finite(values):
    return all(value.isfinite().all() for value in values)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("family", ["llama", "mistral_right"])
def test_a_training_step_is_that_of_the_cpu(name, family, build):
    prepare, exposed = STEPS[name]
    model, inputs = build(family)
    model = prepare(model).train()
    stock = _step(model, inputs)
    with mpsdiag.apply(model, "safe_sdpa"):
        assert _equal(_step(model, inputs), stock)
    with mpsdiag.install("safe_sdpa"):
        assert _equal(_step(model, inputs), stock)
    with mpsdiag.emulate_mps("2.8"):
        assert _finite(_step(model, inputs)) == (not exposed)
    with mpsdiag.emulate_mps("2.8", defects=()):
        healthy = _step(model, inputs)
    with mpsdiag.emulate_mps("2.8"), mpsdiag.apply(model, "safe_sdpa"):
        safe = _step(model, inputs)
    assert _finite(safe)
    assert _equal(safe, healthy)


def test_falcon_trains_as_on_the_cpu(build):
    model, inputs = build("falcon")
    model.train()
    model.config.attention_dropout = model.config.hidden_dropout = 0.0
    stock = _step(model, inputs)
    with mpsdiag.install("safe_sdpa"):
        assert _equal(_step(model, inputs), stock)


def test_a_model_wrapped_by_peft_is_reached_and_restored(build):
    model = _lora("q_proj")(build("llama")[0])
    with mpsdiag.apply(model, "safe_sdpa"):
        assert model.get_base_model().config._attn_implementation == "safe_sdpa"
    assert model.get_base_model().config._attn_implementation == "sdpa"
