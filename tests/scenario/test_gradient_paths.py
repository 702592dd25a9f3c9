"""In which layers training is exposed: against what training under emulation really gives."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag import emulate_mps
from mpsdiag.inputs.models import build_model
from mpsdiag.scenario.exposure import training_exposure, training_notes


@pytest.fixture(scope="module")
def original():
    return build_model("tiny-llama")


def everything(model):
    return model


def only_head(model):
    model.requires_grad_(requires_grad=False)
    model.lm_head.requires_grad_(requires_grad=True)
    return model


def embeddings_and_first_layer_frozen(model):
    model.model.embed_tokens.requires_grad_(requires_grad=False)
    model.model.layers[0].requires_grad_(requires_grad=False)
    return model


def reentrant(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def not_reentrant(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def lora(*targets):
    def wrap(model):
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(target_modules=list(targets), task_type="CAUSAL_LM"))

    return wrap


# peft and the tests use names that every supported transformers has; 5.23 has newer ones.
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize(
    ("change", "exposed", "says"),
    [
        (everything, [], None),
        (only_head, [0, 1], "no weight in front of them is trained"),
        (embeddings_and_first_layer_frozen, [0], "no weight in front of them is trained"),
        (reentrant, [0, 1], "reentrant gradient checkpointing"),
        (not_reentrant, [], None),
        (lora("q_proj", "v_proj"), [], None),
        (lora("up_proj"), [0], "adapters behind the attention only"),
    ],
)
def test_the_prediction_is_what_training_gives(original, change, exposed, says):
    model = change(copy.deepcopy(original))
    assert [i for i, why in enumerate(training_exposure(model)) if why] == exposed
    notes = training_notes(model)
    assert bool(notes) == bool(exposed)
    if says:
        assert says in notes[0]
    # Two sequences, one padded on the left, on the release whose evaluation path is bad.
    ids = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model.train()
    with emulate_mps("2.8"):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    assert math.isfinite(loss.detach()) == (not exposed)


def test_the_model_and_the_random_numbers_are_left_as_they_were(original):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    training_exposure(original)
    assert not original.training
    assert torch.equal(torch.rand(2), expected)


class WithDropout(nn.Module):
    """One attention call whose inputs want no gradient, with dropout."""

    def __init__(self, dropout):
        super().__init__()
        self.embed = nn.Embedding(4, 8).requires_grad_(requires_grad=False)
        self.dropout = dropout

    def forward(self, input_ids, use_cache):
        heads = self.embed(input_ids)[:, None]
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=self.dropout)


@pytest.mark.parametrize(("dropout", "exposed"), [(0.0, True), (0.5, False)])
def test_dropout_keeps_a_call_off_the_fast_kernel(dropout, exposed):
    assert [bool(why) for why in training_exposure(WithDropout(dropout))] == [exposed]
