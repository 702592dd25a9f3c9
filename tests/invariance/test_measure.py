"""Known models: invariant ones, ones that count positions from the edge, and layers with planted faults."""

import math
import warnings

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, MixtralConfig, MixtralForCausalLM, RobertaConfig, RobertaForCausalLM

from mpsdiag import apply, assert_padding_invariant, emulate_mps, padding_invariance
from mpsdiag.emulation.mode import in_effect
from mpsdiag.errors import BadInput
from mpsdiag.inputs.batches import picture_token
from mpsdiag.inputs.models import build_model
from mpsdiag.invariance.arrangements import examples_of, joined
from mpsdiag.scenario.preparation import prepare
from mpsdiag.scenario.scenario import Scenario

LENGTHS = (5, 9, 14, 20)


@pytest.fixture(scope="module")
def models():
    return {name: build_model(name) for name in ("tiny-llama", "tiny-gpt2", "tiny-mistral", "tiny-qwen2")}


def by_name(found):
    return {result.name: result for result in found.arrangements}


def fixes(found):
    return {fix.name: fix.restores for fix in found.fixes}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-qwen2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_models_with_relative_positions_are_invariant(models, batch_of, name, side):
    found = padding_invariance(models[name], batch_of(*LENGTHS, side=side))
    assert (found.verdict, found.cause, found.fixes) == ("invariant", None, [])
    results = by_name(found)
    names = {"alone", "left", "right", "scrambled_pads", "neighbour", "twins"}
    assert set(results) == names | ({"generate"} if side == "left" else set())
    assert all(result.holds and result.max_abs_diff <= result.allowed for result in results.values())
    assert all(0 < result.allowed < 1e-5 for result in results.values())
    assert (results["left"].counts, results["right"].counts) == (side == "left", side == "right")


def test_gpt2_counts_positions_from_the_left_edge_and_position_ids_restore_it(models, batch_of):
    model, batch = models["tiny-gpt2"], batch_of(*LENGTHS)
    found = padding_invariance(model, batch)
    assert (found.verdict, found.cause, found.every_device) == ("varies", "positions", True)
    assert fixes(found) == {"positions": True}
    assert found.reason.startswith("the model numbers positions from the left edge")
    results = by_name(found)
    assert [name for name, result in results.items() if not result.holds] == ["left", "scrambled_pads", "neighbour"]
    # The difference by hand, in float64: the first sequence padded, against itself alone.
    wide = build_model("tiny-gpt2").double()
    padded = wide(**batch).logits[0, -5:].detach()
    alone = wide(batch["input_ids"][:1, -5:]).logits[0].detach()
    assert float((padded - alone).abs().max()) > 1e3 * results["left"].allowed
    assert results["left"].max_abs_diff >= float((padded - alone).abs().max()) * 0.99
    assert set(found.by_position) == set(results) - {"generate"}
    for name, errors in found.by_position.items():
        assert len(errors) == (5 if name == "neighbour" else 20)
        assert max(errors) == pytest.approx(results[name].max_abs_diff, rel=5e-3)
    # The longest sequence has no padding on the left, and the others end before it does.
    assert max(found.by_position["left"][14:]) <= results["left"].allowed
    wrong = found.by_position["left"][:14]
    assert min(wrong) > 1e3 * results["left"].allowed


def test_gpt2_is_invariant_where_padding_is_on_the_right(models, batch_of):
    found = padding_invariance(models["tiny-gpt2"], batch_of(*LENGTHS, side="right"))
    assert (found.verdict, found.padding_side) == ("invariant", "right")
    assert not by_name(found)["left"].holds  # shown, and does not count


@pytest.mark.parametrize("release", ["2.8", "2.4"])
@pytest.mark.parametrize(
    ("name", "side", "restored_by"),
    [
        ("tiny-llama", "left", {"eager", "safe_sdpa"}),
        ("tiny-mistral", "left", {"eager", "safe_sdpa"}),
        ("tiny-mistral", "right", {"eager", "safe_sdpa"}),
        pytest.param(
            *("tiny-gpt2", "left", {"eager + positions", "safe_sdpa + positions"}),
            marks=pytest.mark.needs(transformers="4.56"),  # Older ones write finite masks for GPT-2.
        ),
    ],
)
def test_attention_of_broken_releases_is_named(models, batch_of, release, name, side, restored_by):
    lengths = LENGTHS if side == "left" else (3, 40)
    with emulate_mps(release):
        found = padding_invariance(models[name], batch_of(*lengths, side=side))
    assert (found.verdict, found.cause) == ("varies", "attention")
    assert math.isinf(by_name(found)[side].max_abs_diff)
    assert {name for name, restores in fixes(found).items() if restores} == restored_by
    assert found.every_device == (name == "tiny-gpt2")  # that of GPT-2 is its positions, on the CPU too


def test_generation_gives_token_0_in_the_padded_batch_and_safe_sdpa_restores_it(models, batch_of):
    """The report of transformers#40242."""
    model, batch = models["tiny-llama"], batch_of(4, 12)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with emulate_mps("2.8"):
        together = model.generate(**batch, **options)[:, -3:]
        alone = model.generate(batch["input_ids"][:1, -4:], **options)[:, -3:]
        found = padding_invariance(model, batch)
        with apply(model, "safe_sdpa"):
            safe = model.generate(**batch, **options)[:, -3:]
            assert padding_invariance(model, batch).verdict == "invariant"
    assert together[0].tolist() == [0, 0, 0]
    assert torch.equal(safe[:1], alone)
    assert not by_name(found)["generate"].holds


def test_generation_from_images_gives_token_0_too_and_safe_sdpa_restores_it():
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with prepare(Scenario(model="tiny-vlm")) as prepared, emulate_mps("2.8"):
        model = prepared.model
        batch = {name: tensor for name, tensor in prepared.eval_batches[0].items() if name != "labels"}
        (row, _), *_ = rows = sorted(
            enumerate(examples_of(batch, picture=picture_token(model))), key=lambda pair: len(pair[1]["input_ids"])
        )
        single = joined([rows[0][1]])
        assert ["pixel_values" in one for _, one in rows] == [False, False, True, True]
        alone = model.generate(**single, **options)[0, -3:]
        assert model.generate(**batch, **options)[row, -3:].tolist() == [0, 0, 0]
        found = padding_invariance(model, batch, sequences=2)
        with apply(model, "safe_sdpa"):
            assert torch.equal(model.generate(**batch, **options)[row, -3:], alone)
    assert not by_name(found)["generate"].holds
    assert fixes(found)["safe_sdpa"]


class Planted(nn.Module):
    """Adds to the embeddings of a Llama what `leak` makes of them."""

    def __init__(self, embed, leak):
        super().__init__()
        self.embed, self.leak = embed, leak

    def forward(self, ids):
        hidden = self.embed(ids)
        return hidden + self.leak(hidden)

    @property
    def weight(self):
        return self.embed.weight


def planted(leak):
    model = build_model("tiny-llama")
    model.model.embed_tokens = Planted(model.model.embed_tokens, leak)
    return model.eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_layer_that_averages_over_padding_is_a_mask_leak(batch_of, side):
    found = padding_invariance(planted(lambda hidden: hidden.mean(1, keepdim=True)), batch_of(*LENGTHS, side=side))
    assert (found.verdict, found.cause, found.every_device) == ("varies", "mask_leak", True)
    assert not any(fixes(found).values())


def test_statistics_over_the_batch_are_the_models_own(batch_of):
    def normalized(hidden):
        return (hidden - hidden.mean(0)) / (hidden.std(0, unbiased=False) + 1e-3)

    found = padding_invariance(planted(normalized), batch_of(*LENGTHS), generates=False)
    assert (found.verdict, found.cause, found.every_device) == ("varies", "model", True)


class Capped(nn.Module):
    """The router of a Mixtral with a capacity: what comes late finds an expert full."""

    def __init__(self, router, capacity, experts):
        super().__init__()
        self.router, self.capacity, self.experts = router, capacity, experts

    def forward(self, hidden):
        logits, weights, chosen = self.router(hidden)
        place = nn.functional.one_hot(chosen, self.experts).sum(1).cumsum(0).gather(1, chosen)
        return logits, weights * (place <= self.capacity), chosen


def mixture(capacity=None):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.1, "pad_token_id": 0}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, **experts, vocab_size=256, num_key_value_heads=2)).eval()
    for layer in model.model.layers:
        if capacity is not None:
            layer.mlp.gate = Capped(layer.mlp.gate, capacity, 4)
    return model


@pytest.mark.needs(transformers="5.1")  # In older ones the router is another module.
def test_routing_that_depends_on_the_batch_is_the_models_own_and_is_named(batch_of):
    assert padding_invariance(mixture(), batch_of(*LENGTHS), generates=False).verdict == "invariant"
    found = padding_invariance(mixture(capacity=6), batch_of(*LENGTHS), generates=False)
    assert (found.verdict, found.cause, found.every_device) == ("varies", "model", True)
    assert found.reason.startswith("the routing to experts depends on what else is in the batch, on every device")


def test_a_mixture_of_experts_with_another_fault_is_not_blamed_for_its_routing(batch_of):
    model = mixture()
    embed = model.model.embed_tokens
    model.model.embed_tokens = Planted(embed, lambda hidden: hidden.mean(0, keepdim=True))
    found = padding_invariance(model, batch_of(*LENGTHS), generates=False)
    assert found.cause == "model"
    assert "routing" not in found.reason


def test_reference_and_bound_are_computed_outside_the_emulation(batch_of):
    seen = set()

    def look(hidden):
        seen.add((hidden.dtype, len(hidden) == 1, in_effect(hidden.device)))
        return 0 * hidden

    with emulate_mps("2.8"):
        padding_invariance(planted(look), batch_of(*LENGTHS), generates=False, causes=False)
    single = {(dtype, emulated) for dtype, alone, emulated in seen if alone}
    assert single == {(torch.float64, False), (torch.float32, False), (torch.float32, True)}
    assert {emulated for _, alone, emulated in seen if not alone} == {True}


def test_a_device_that_is_wrong_beside_others_is_named(models, batch_of, monkeypatch):
    """A stand-in for a kernel that misreads batches: on the emulated device only."""
    forward = nn.Linear.forward

    def misread(self, hidden):
        out = forward(self, hidden)
        return out * (1.01 if in_effect("cpu") and len(hidden) > 1 else 1.0)

    monkeypatch.setattr(nn.Linear, "forward", misread)
    with emulate_mps("2.9", defects=()):
        found = padding_invariance(models["tiny-llama"], batch_of(*LENGTHS), generates=False)
    assert (found.verdict, found.cause, found.every_device) == ("varies", "device", False)


def test_an_encoder_with_absolute_positions_is_invariant_on_the_right(batch_of):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(**sizes, vocab_size=256, pad_token_id=0)).eval()
    assert padding_invariance(model, batch_of(*LENGTHS, side="right")).verdict == "invariant"
    # On the left the pooled embedding is that of a pad, which position ids do not change.
    assert padding_invariance(model, batch_of(*LENGTHS)).cause == "mask_leak"
    model.pooler = None
    left = padding_invariance(model, batch_of(*LENGTHS))
    assert (left.verdict, left.cause, fixes(left)) == ("varies", "positions", {"positions": True})


def test_position_ids_are_not_offered_to_a_model_that_they_break(batch_of):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(**sizes, vocab_size=256, pad_token_id=1, is_decoder=True, max_position_embeddings=64)
    model = RobertaForCausalLM(config).eval()
    batch = batch_of(*LENGTHS)
    batch["input_ids"][batch["attention_mask"] == 0] = 1
    found = padding_invariance(model, batch, generates=False)
    assert not fixes(found).get("positions")
    assert by_name(found)["left"].holds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", range(6))
def test_no_false_alarm_on_random_models(alarms, seed, dtype):
    """A share of what `benchmarks/invariance_alarms.py` runs over 200 models."""
    found = alarms.examined(seed, dtype)
    assert found.verdict == "invariant", found


def test_the_model_and_the_batch_are_left_as_they_were(models, batch_of):
    model, batch = models["tiny-llama"].train(), batch_of(3, 6)
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    padding_invariance(model, batch)
    assert model.training
    assert all(torch.equal(batch[name], kept[name]) for name in kept)
    model.eval()


def test_weights_that_are_not_finite_leave_it_undecided(batch_of):
    model = build_model("tiny-llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    found = padding_invariance(model, batch_of(3, 6))
    assert found.verdict == "undecided"
    assert "non-finite" in found.reason


def test_the_assertion_lists_what_differs(models, batch_of):
    assert_padding_invariant(models["tiny-llama"], batch_of(3, 8))
    with pytest.raises(AssertionError) as caught:
        assert_padding_invariant(models["tiny-gpt2"], batch_of(3, 8))
    lines = str(caught.value).splitlines()
    assert lines[1] == "Not equal with and without padding"
    assert "Cause: positions" in lines
    assert "Restored by: positions" in lines
    (left,) = (line for line in lines if line.startswith(" left"))
    assert left.endswith("differs")
    with emulate_mps("2.8"), pytest.raises(AssertionError, match="attention"):
        assert_padding_invariant(models["tiny-llama"], batch_of(3, 8))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({}, "needs input_ids"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, "needs input_ids"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.zeros(1, 3)}, "padding only"),
    ],
)
def test_bad_batches_get_one_sentence(models, batch, sentence):
    with pytest.raises(BadInput, match=sentence):
        padding_invariance(models["tiny-llama"], batch)


def test_nothing_is_warned_about(models, batch_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        padding_invariance(models["tiny-llama"], batch_of(3, 8))
