"""Each cause, planted in a random layer of each built-in model in each dtype: named, with its layer and operation."""

import random
from pathlib import Path

import pytest
import torch

from mpsdiag import emulate_mps, trace
from mpsdiag.tracing import origin as origin_module
from mpsdiag.tracing.origin import CAUSES, REMEDIES
from mpsdiag.words import BUILTIN_DECODERS

HALVES = ("bfloat16", "float16")
NEWER = [pytest.mark.needs(transformers="4.56")]
WITH_BOOLEAN_MASKS = pytest.mark.parametrize(  # Older ones write finite masks for GPT-2.
    "name", [pytest.param(name, marks=NEWER if name == "tiny-gpt2" else []) for name in BUILTIN_DECODERS]
)


@pytest.fixture
def layer(name, dtype, request):
    """A layer that depends on the case, and is the same in every run."""
    return random.Random(f"{request.node.name}").randrange(4)


def located(origin):
    return origin.cause, origin.layer, origin.module, origin.operation


@WITH_BOOLEAN_MASKS
def test_dead_rows(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)
    module, operation = plants.dead_rows_from(model, layer)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of((3, 0, 2)))
    assert located(origin) == ("dead_rows", layer, module, operation)
    assert origin.evidence["dead_rows"] == 5
    assert origin.evidence["where"] == {"padding before the first real token": 5}
    assert origin.evidence["sequences"] == "0, 2"
    assert origin.also == []
    spread = [step["sequences"] for step in origin.evidence["spread"]]
    assert spread == [0] * layer + [2] * (4 - layer)


def test_overflow(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)
    module, operation = plants.overflow(model, layer)
    origin = trace(model, batch_of())
    assert located(origin) == ("overflow", layer, module, operation)
    assert origin.evidence["dtype"] == dtype
    assert origin.evidence["largest_input"] == torch.finfo(getattr(torch, dtype)).max
    assert f"overflows {dtype}" in origin.summary
    assert origin.also == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_weights(build, batch_of, plants, name, dtype, layer, value):
    model = build(name, dtype)
    module, operation = plants.bad_weight(model, layer, value)
    origin = trace(model, batch_of())
    assert located(origin) == ("bad_weights", layer, module, operation)
    assert origin.evidence["weight"] == f"{module}.weight"
    assert origin.evidence["bad_tensors"] == 1
    assert origin.also == []


@WITH_BOOLEAN_MASKS
def test_a_doubled_mask(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)
    module, operation = plants.doubled_mask(model, layer, getattr(torch, dtype))
    with emulate_mps("2.8"):
        origin = trace(model, batch_of())
    assert located(origin) == ("bad_mask", layer, module, operation)
    assert origin.evidence["masks_at_lowest"] == 2
    assert origin.also == []


@WITH_BOOLEAN_MASKS
def test_plus_infinity_in_an_additive_mask(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)

    def additive(mask):
        made = torch.zeros(mask.shape, dtype=getattr(torch, dtype)).masked_fill(~mask, float("-inf"))
        made[1, 0, 7, 2] = float("inf")
        return made

    plants.on_mask(model, layer, additive)
    origin = trace(model, batch_of())
    module = plants.path(model, plants.attention(model, layer))
    assert located(origin) == ("bad_mask", layer, module, "scaled_dot_product_attention")
    assert origin.evidence["plus_infinities"] == origin.evidence["mask"]["inf"] == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plus_infinity_in_a_given_mask(build, batch_of, choose, name, attention):
    model = build(name)
    choose(model, attention)
    batch = batch_of()
    length = batch["input_ids"].shape[1]
    mask = torch.zeros(3, 1, length, length).masked_fill(
        ~torch.ones(length, length, dtype=torch.bool).tril(), float("-inf")
    )
    mask[2, 0, 5, 1] = float("inf")
    origin = trace(model, {**batch, "attention_mask": mask})
    assert (origin.cause, origin.layer) == ("bad_mask", 0)
    assert "plus infinity" in origin.summary


@WITH_BOOLEAN_MASKS
def test_a_mask_of_other_sequences(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)
    module, operation = plants.swapped_mask(model, layer)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of((4, 0, 0)))
    assert located(origin) == ("bad_mask", layer, module, operation)
    assert origin.evidence["where"] == {"real tokens": 4}
    assert "contradicts the attention_mask" in origin.summary


@WITH_BOOLEAN_MASKS
def test_a_sequence_of_padding_only(build, batch_of, name, dtype):
    model = build(name, dtype)
    with emulate_mps("2.8"):
        origin = trace(model, batch_of((0, 11, 0)))
    assert (origin.cause, origin.layer, origin.operation) == ("bad_mask", 0, "scaled_dot_product_attention")
    assert "padding only" in origin.summary


def test_no_labels(build, batch_of, name, dtype):
    batch = batch_of()
    batch["labels"][:, 1:] = -100  # The first label is never predicted.
    origin = trace(build(name, dtype), batch)
    assert located(origin) == ("no_labels", None, "", "cross_entropy")
    assert origin.also == []


def test_bad_inputs(build, batch_of, name, dtype):
    model, batch = build(name, dtype), batch_of()
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings()(ids).detach()
    embeds[1, 4, 7] = float("nan")
    origin = trace(model, {"inputs_embeds": embeds, **batch})
    assert origin.cause == "bad_inputs"
    assert origin.evidence["input"] == "inputs_embeds"
    assert origin.also == []


def test_token_ids_out_of_range(build, batch_of, name):
    batch = batch_of()
    batch["input_ids"][2, 7] = 259
    origin = trace(build(name), batch)
    assert (origin.cause, origin.layer, origin.operation) == ("bad_inputs", None, "embedding")
    assert origin.evidence["range"][1] == 259
    assert origin.evidence["sequences"] == "2"


def test_labels_out_of_range(build, batch_of, name):
    batch = batch_of()
    batch["labels"][0, 9] = 300
    origin = trace(build(name), batch)
    assert (origin.cause, origin.operation) == ("bad_inputs", "cross_entropy")


def test_positions_out_of_range(build, batch_of):
    origin = trace(build("tiny-gpt2"), batch_of((0, 0), length=80))
    assert located(origin) == ("bad_inputs", None, "transformer.wpe", "embedding")


def test_something_unknown(build, batch_of, plants, name, dtype, layer):
    model = build(name, dtype)
    module, operation = plants.root_of_negative(model, layer)
    origin = trace(model, batch_of())
    assert located(origin) == ("unknown", layer, module, operation)
    assert "root of a negative number" in origin.summary


def test_the_sliding_window_is_named_with_right_padding(build, batch_of):
    model = build("tiny-mistral")
    with emulate_mps("2.8"):
        origin = trace(model, batch_of((8, 0), length=16, side="right"))
    assert located(origin) == ("dead_rows", 0, "model.layers.0.self_attn", "scaled_dot_product_attention")
    assert "sliding window" in origin.summary
    # The last real token is at 7; windows of 5 see it up to position 11.
    assert origin.evidence["positions"] == "12-15"
    assert origin.evidence["where"] == {"padding after the last real token": 4}


@pytest.mark.parametrize("release", ["2.4", "2.8"])
def test_an_attention_with_scores_beyond_half_precision(build, batch_of, release):
    model = build("tiny-qwen2", "float16")
    for layer in model.model.layers:
        with torch.no_grad():
            layer.self_attn.q_proj.bias.fill_(200.0)
            layer.self_attn.k_proj.bias.fill_(200.0)
    with emulate_mps(release):
        origin = trace(model, batch_of((0, 0)))
    assert (origin.cause, origin.layer, origin.operation) == ("overflow", 0, "scaled_dot_product_attention")
    assert "score of query and key" in origin.summary


def test_the_causes_are_those_of_the_contract():
    assert set(CAUSES) == {
        "dead_rows",
        "overflow",
        "no_labels",
        "bad_weights",
        "bad_inputs",
        "bad_mask",
        "wrong_device",
        "divergence",
        "hidden_by_filter",
        "division_by_zero",
        "derivative",
        "unknown",
    }


def test_every_remedy_belongs_to_a_rule():
    room = Path(origin_module.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in room.rglob("*.py"))
    unused = {name for name in REMEDIES if f'"{name}"' not in code}
    assert unused == {"overflow_float16", "overflow_bfloat16", "overflow_float32"}  # named after the dtype
    assert all(remedy.text.strip() == remedy.text for remedy in REMEDIES.values())
