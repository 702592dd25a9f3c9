import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsdiag.inputs.modules import first_tensor, numbered_layers
from mpsdiag.scenario.run import Observer
from mpsdiag.sdpa.watch import SdpaCall


class Block(nn.Module):
    def __init__(self, poison=False):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.poison = poison

    def forward(self, hidden, mask):
        heads = self.norm(hidden)[:, None]
        out = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return (hidden + out[:, 0] * (float("nan") if self.poison else 1.0),)


class Stack(nn.Module):
    def __init__(self, poisoned=None, layers=3):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block(poison=index == poisoned) for index in range(layers))

    def forward(self, tokens, mask):
        hidden = self.embed(tokens)
        for block in self.blocks:
            (hidden,) = block(hidden, mask)
        return hidden


TOKENS = torch.arange(10).reshape(2, 5)


def left_padded(*pads, length=5):
    keep = torch.stack([torch.arange(length) >= pad for pad in pads])
    return torch.tril(torch.ones(length, length, dtype=torch.bool)) & keep[:, None, None, :]


def watch(model, mask):
    observer = Observer(model)
    with observer.watching(), torch.no_grad():
        model(TOKENS, mask)
    return observer.collect()


def test_dead_rows_are_counted_at_every_call():
    seen = watch(Stack(), left_padded(3, 0))
    assert [int(rows) for rows in seen.dead] == [3, 3, 3]
    assert seen.masked == [True, True, True]


@pytest.mark.parametrize("mask", [left_padded(0, 0), None])
def test_there_are_none_without_padding(mask):
    seen = watch(Stack(), mask)
    assert sum(int(rows) for rows in seen.dead) == 0


def test_a_mask_shared_by_the_batch_counts_for_every_sequence():
    seen = watch(Stack(layers=2), left_padded(2)[0, 0])
    assert [int(rows) for rows in seen.dead] == [4, 4]


def test_a_row_that_is_masked_in_several_heads_counts_once():
    heads = torch.zeros(2, 4, 5, 8)
    mask = left_padded(3, 0).expand(2, 4, 5, 5).clone()
    mask[1, 2, 4] = False  # in one head only
    call = SdpaCall(heads, heads, heads, mask)
    assert call.masked_rows().sum(-1).tolist() == [3, 1]
    assert SdpaCall(heads, heads, heads).masked_rows() is None


def test_bad_rows_of_attention_are_counted_once_over_the_heads():
    model = Stack(layers=1)
    with torch.no_grad():
        model.blocks[0].norm.weight.fill_(float("nan"))
    seen = watch(model, left_padded(0, 0))
    assert {event.operation: int(event.bad_rows) for event in seen.events}["scaled_dot_product_attention"] == 10


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_first_bad_operation_and_its_layer_are_named(layer):
    seen = watch(Stack(poisoned=layer), left_padded(0, 0))
    first = next(event for event in seen.events if int(event.bad_rows))
    assert (first.layer, first.module, first.operation) == (layer, f"blocks.{layer}", "Block")
    assert [bool(rows.any()) for rows in seen.layer_rows] == [index >= layer for index in range(3)]


def test_the_attention_call_is_named_when_it_gives_the_nan():
    model = Stack()
    with torch.no_grad():
        model.blocks[1].norm.weight.fill_(float("inf"))
    seen = watch(model, None)
    first = next(event for event in seen.events if int(event.bad_rows))
    assert (first.module, first.operation) == ("blocks.1.norm", "LayerNorm")
    later = [event.operation for event in seen.events if int(event.bad_rows) and event.layer == 1]
    assert later[1] == "scaled_dot_product_attention"


def test_calls_of_other_models_are_not_counted():
    watched, other = Stack(), Stack()
    observer = Observer(watched)
    with observer.watching(), torch.no_grad():
        other(TOKENS, left_padded(3, 0))
    assert observer.collect().dead == []


def test_hooks_are_removed_even_after_an_error():
    model = Stack()
    observer = Observer(model)
    with pytest.raises(IndexError), observer.watching():
        model(TOKENS + 100, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_sighting_is_handed_over_once():
    model = Stack()
    observer = Observer(model)
    with observer.watching(), torch.no_grad():
        model(TOKENS, None)
        first = observer.collect()
    assert first.events
    assert observer.collect().events == []


def test_the_layers_are_the_longest_list_of_one_kind():
    model = nn.Module()
    model.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.layers = nn.ModuleList(Block() for _ in range(3))
    model.mixed = nn.ModuleList([nn.Linear(2, 2), nn.Tanh(), nn.Tanh(), nn.Tanh()])
    assert numbered_layers(model) == {layer: number for number, layer in enumerate(model.layers)}
    assert numbered_layers(nn.Linear(2, 2)) == {}


def test_an_encoder_and_a_decoder_number_their_layers_apart():
    model = nn.Module()
    model.encoder, model.decoder = nn.Module(), nn.Module()
    model.encoder.layers = nn.ModuleList(Block() for _ in range(3))
    model.decoder.layers = nn.ModuleList(Block() for _ in range(2))
    model.decoder.layers[0].experts = nn.ModuleList(Block() for _ in range(4))
    assert list(numbered_layers(model).values()) == [0, 1, 2, 0, 1]


def test_the_hidden_state_is_found_in_every_shape_of_output():
    hidden = torch.zeros(1, 2)
    assert first_tensor(hidden) is hidden
    assert first_tensor((hidden, None)) is hidden
    assert first_tensor({"a": 1}) is None
    assert first_tensor({"loss": torch.zeros(()), "logits": hidden}) is hidden
    assert first_tensor({"loss": torch.zeros(()), "state": hidden}) is hidden


def test_a_copy_that_is_made_meanwhile_is_another_model():
    model = Stack()
    observer = Observer(model)
    with observer.watching(), torch.no_grad():
        copy.deepcopy(model)(TOKENS, None)
        assert observer.collect().events == []
        model(TOKENS, None)
        assert observer.collect().events
