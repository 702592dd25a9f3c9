"""Task by command: what `check` finds in the scenario of each built-in model, with the emulated defect and without."""

import os
import random

import pytest
import transformers

from mpsdiag import install
from mpsdiag.fixes.process import installed
from mpsdiag.inputs.builtin import byte_tokenizer
from mpsdiag.scenario.run import run_scenario
from mpsdiag.scenario.scenario import Scenario
from mpsdiag.words import BUILTIN_MODELS

STRUCK = {
    "tiny-bert": False,  # An encoder sees both ways: no row is fully masked.
    "tiny-bart": False,
    "tiny-t5": False,
    "tiny-embedder": True,
    "tiny-vlm": True,
}
SMALL = {"max_length": 200, "batch_size": 4, "max_steps": 1, "eval_max_batches": 1, "device": "cpu"}


def run(model, **options):
    return run_scenario(Scenario(**{**SMALL, "model": model, **options}))


@pytest.mark.parametrize("model", STRUCK)
def test_on_the_plain_cpu_every_task_is_right(model):
    found = run(model)
    assert (found.status, found.nonfinite_batches) == ("ok", 0)
    assert found.max_abs_logit_diff <= found.bound
    assert found.eval_loss == pytest.approx(found.reference_eval_loss, rel=1e-5)
    assert found.pad_tokens > 0


@pytest.mark.parametrize("model", STRUCK)
def test_under_2_8_a_left_padded_decoder_is_struck_and_an_encoder_is_not(model):
    found = run(model, emulate="2.8", emulate_macos=15)
    assert (found.status == "nan") is STRUCK[model]
    assert (found.exposure.rows > 0) is STRUCK[model]
    assert (found.dead_rows > 0) is STRUCK[model]


@pytest.mark.parametrize("fix", [{"attn_implementation": "safe_sdpa"}, {"trainer": "mps_safe"}])
@pytest.mark.parametrize("model", [model for model, struck in STRUCK.items() if struck])
def test_the_fixes_resolve_it(model, fix):
    found = run(model, emulate="2.8", emulate_macos=15, **fix)
    if "trainer" in fix:
        assert found.nonfinite_batches == 0
        assert found.eval_loss == pytest.approx(found.reference_eval_loss, rel=1e-5)
    else:
        assert (found.status, found.exact) == ("ok", True)


def test_in_float64_a_left_padded_model_is_compared_all_the_same():
    """Eager attention of transformers takes the softmax in float32, where the mask of float64 is minus infinity."""
    found = run("tiny-llama", dtype="float64")
    assert found.status == "ok"
    assert found.bound > 0


def test_in_float64_eager_attention_is_right_for_its_softmax_is_in_float32():
    found = run("tiny-llama", dtype="float64", attn_implementation="eager", padding_side="right")
    assert (found.status, found.exact) == ("ok", True)
    assert found.bound < 1e-6
    stock = run("tiny-llama", dtype="float64", padding_side="right")
    assert stock.bound < 1e-14  # Nothing but that softmax makes it wider.


def test_a_key_of_a_journal_does_not_change_with_the_default_task():
    versions = {"torch": "2.8", "transformers": "5.0"}
    plain = Scenario(model="tiny-llama")
    assert plain.key(versions) == "d21c0ae3133f4d6b"
    assert Scenario(model="tiny-llama", task="feature-extraction").key(versions) != plain.key(versions)


def test_a_model_without_sdpa_is_right_and_said_to_have_none(tmp_path):
    config = transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=259, pad_token_id=0)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    found = run(str(tmp_path), emulate="2.8", emulate_macos=15)
    assert found.status == "ok"
    assert found.exposure.reach_sdpa is False
    assert any("has only eager attention" in note for note in found.exposure.notes)


@pytest.fixture(scope="module")
def falcon(tmp_path_factory):
    """A class that chooses its attention when it is made: no mode can be put on one model of it."""
    folder = tmp_path_factory.mktemp("falcon")
    config = transformers.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=259)
    transformers.FalconForCausalLM(config).save_pretrained(folder)
    byte_tokenizer("left").save_pretrained(folder)
    return str(folder)


@pytest.mark.needs(transformers="5.1")  # Older ones write finite masks for Falcon.
@pytest.mark.parametrize("mode", ["sdpa", "safe_sdpa", "eager"])
def test_the_fixes_reach_a_model_without_a_switch(falcon, mode):
    found = run(falcon, emulate="2.8", emulate_macos=15, attn_implementation=mode)
    assert (found.status, found.exact) == {"sdpa": ("nan", False), "safe_sdpa": ("ok", True), "eager": ("ok", False)}[
        mode
    ]
    assert found.bound < 1e-5
    assert installed() == ()


def test_the_reference_is_stock_attention_whatever_is_installed():
    with install("unmask_sdpa"):
        found = run("tiny-llama", attn_implementation="safe_sdpa")
    assert found.exact


def clean_scenario(dice):
    """A scenario in which nothing is wrong: on the plain CPU, or emulated with a fix that is exact."""
    mode = dice.choice(("sdpa", "eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa"))
    dtype = dice.choice(("float32", "bfloat16", "float16", "float64"))
    # Eager attention really is NaN in float64 where a row is fully masked.
    side = "right" if (mode, dtype) == ("eager", "float64") else dice.choice(("left", "right"))
    emulates = mode == "safe_sdpa" and dtype != "float64" and dice.random() < 0.5
    return Scenario(
        model=dice.choice(BUILTIN_MODELS),
        attn_implementation=mode,
        dtype=dtype,
        padding_side=side,
        trainer=dice.choice(("standard", "mps_safe", "cpu_loss")),
        emulate=dice.choice(("2.8", "2.9", "2.14", "2.15")) if emulates else None,
        pad_to_multiple_of=dice.choice((None, 16)) if side == "right" else None,
        max_length=dice.choice((24, 60)),
        batch_size=dice.randint(1, 4),
        max_steps=dice.randint(0, 1),
        eval_max_batches=1,
        seed=dice.randrange(99),
        device="cpu",
    )


@pytest.mark.parametrize("number", range(int(os.environ.get("MPSDIAG_CLEAN_RUNS", "8"))))
def test_no_false_alarm_in_a_clean_scenario(number):
    scenario = clean_scenario(random.Random(number))
    found = run_scenario(scenario)
    assert (found.status, found.nonfinite_batches) == ("ok", 0), (scenario, found.reason)
    assert found.first_nonfinite is None


T5 = {"vocab_size": 259, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "pad_token_id": 0}
LLAMA = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 0}
MOE = {"head_dim": 8, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BART = {"vocab_size": 259, "d_model": 32, **{f"{side}_layers": 1 for side in ("encoder", "decoder")}}
BROUGHT = {
    "T5EncoderModel": lambda: transformers.T5Config(**T5, decoder_start_token_id=0),
    "T5Model": lambda: transformers.T5Config(**T5, decoder_start_token_id=0),
    "Qwen3MoeForCausalLM": lambda: transformers.Qwen3MoeConfig(**LLAMA, **MOE),
    "BartModel": lambda: transformers.BartConfig(**BART, encoder_attention_heads=4, decoder_attention_heads=4),
}


@pytest.mark.parametrize("name", BROUGHT)
def test_a_model_that_people_bring_is_right_on_the_plain_cpu(tmp_path, name):
    """The encoder of T5 alone, which AutoModel does not load; experts, whose grouped product has no float64."""
    getattr(transformers, name)(BROUGHT[name]()).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    scenario = Scenario(**SMALL, model=str(tmp_path))
    found = run_scenario(scenario, invariance=True, causes=False)
    assert (found.status, found.invariance is None) == ("ok", False)
