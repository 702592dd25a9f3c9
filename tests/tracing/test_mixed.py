"""Two causes at once: the first in time is reported, the other is mentioned."""

import pytest
import torch

from mpsdiag import emulate_mps, trace


def causes(origin):
    return [origin.cause, *(other.cause for other in origin.also)]


def test_dead_rows_before_no_labels(build, batch_of):
    batch = batch_of()
    batch["labels"].fill_(-100)
    with emulate_mps("2.8"):
        origin = trace(build("tiny-llama"), batch)
    assert causes(origin) == ["dead_rows", "no_labels"]
    assert origin.also[0].operation == "cross_entropy"


def test_dead_rows_before_bad_weights(build, batch_of, plants):
    model = build("tiny-llama")
    module, _ = plants.bad_weight(model, 2)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of())
    assert causes(origin) == ["dead_rows", "bad_weights"]
    assert (origin.layer, origin.also[0].layer, origin.also[0].module) == (0, 2, module)


def test_bad_weights_before_dead_rows(build, batch_of, plants):
    model = build("tiny-llama")
    plants.bad_weight(model, 0)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of())
    assert causes(origin) == ["bad_weights", "dead_rows"]
    assert [origin.layer, origin.also[0].layer] == [0, 0]


def test_overflow_behind_dead_rows(build, batch_of, plants):
    model = build("tiny-llama", "float16")
    module, operation = plants.overflow(model, 3)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of((3, 2, 1)))
    assert causes(origin) == ["dead_rows", "overflow"]
    assert (origin.also[0].layer, origin.also[0].module, origin.also[0].operation) == (3, module, operation)


def test_overflow_before_dead_rows(build, batch_of, plants):
    model = build("tiny-qwen2", "float16")
    plants.overflow(model, 0)
    plants.dead_rows_from(model, 2)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of())
    assert causes(origin) == ["overflow", "dead_rows"]
    assert origin.also[0].layer == 2


def test_padding_on_the_left_and_a_sequence_of_padding_only(build, batch_of):
    with emulate_mps("2.8"):
        origin = trace(build("tiny-llama"), batch_of((3, 11, 0)))
    assert causes(origin) == ["dead_rows", "bad_mask"]
    assert "3 fully masked" in origin.summary
    assert "padding only" in origin.also[0].summary


def test_three_at_once(build, batch_of, plants):
    model, batch = build("tiny-mistral"), batch_of()
    plants.bad_weight(model, 3, float("inf"))
    batch["labels"].fill_(-100)
    with emulate_mps("2.8"):
        origin = trace(model, batch)
    assert causes(origin) == ["dead_rows", "bad_weights", "no_labels"]


@pytest.mark.parametrize("layer", [1, 3])
def test_a_harmless_infinity_is_not_blamed(build, batch_of, plants, layer):
    """An overflow inside a tanh gives 1: it happened, and nothing came of it."""
    model = build("tiny-gpt2", "float16")
    plants.layers(model)[1].mlp.c_fc.bias.data[0] = 200.0  # 200**3 is beyond float16; tanh of it is 1.
    module, operation = plants.bad_weight(model, layer) if layer == 3 else plants.overflow(model, layer)
    origin = trace(model, batch_of())
    assert (origin.layer, origin.module, origin.operation) == (layer, module, operation)
    assert origin.also == []


def test_a_harmless_infinity_alone_is_no_finding(build, batch_of, plants):
    model = build("tiny-gpt2", "float16")
    plants.layers(model)[1].mlp.c_fc.bias.data[0] = 200.0
    assert trace(model, batch_of()) is None


def test_minus_infinity_in_logits_is_no_finding(build, batch_of):
    model = build("tiny-gpt2")

    def rule_out(module, args, output):
        return output.masked_fill(torch.arange(output.shape[-1]) > 258, float("-inf"))

    model.lm_head.register_forward_hook(rule_out)
    assert trace(model, batch_of()) is None
