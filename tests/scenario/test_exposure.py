"""The prediction against the masks that transformers really hands to attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsdiag.checking.advice import advise
from mpsdiag.checking.diagnosis import Judged, ProbeResult
from mpsdiag.inputs.batches import sees_both_ways
from mpsdiag.inputs.builtin import BYTE_VOCABULARY, builtin_config, byte_tokenizer
from mpsdiag.inputs.models import build_model
from mpsdiag.reporting.check import document
from mpsdiag.reporting.formats.markdown import issue_block
from mpsdiag.scenario.exposure import EMPTY, FIXED, GAPS, GIVEN, LEFT, WINDOW, Kind, dead_positions, predict
from mpsdiag.scenario.run import Observer
from mpsdiag.scenario.scenario import Measured, Scenario
from mpsdiag.words import BUILTIN_DECODERS


@pytest.fixture(scope="module")
def models():
    made = {name: build_model(name) for name in BUILTIN_DECODERS}
    # A mixed one: two sliding layers, one full.
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, Llama4TextConfig

    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    gemma = Gemma3TextConfig(
        **small,
        num_hidden_layers=3,
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    made["gemma3"] = AutoModelForCausalLM.from_config(gemma).eval()
    llama4 = Llama4TextConfig(
        **small,
        num_hidden_layers=2,
        intermediate_size_mlp=16,
        num_local_experts=1,
        num_experts_per_tok=1,
        attention_chunk_size=4,
        layer_types=["chunked_attention", "full_attention"],
    )
    made["llama4"] = AutoModelForCausalLM.from_config(llama4).eval()
    return made


def observed(model, batch):
    """Dead rows per call of F.sdpa, counted in the masks that arrive there."""
    observer = Observer(model)
    with observer.watching(), torch.no_grad():
        model(**batch)
    return [int(rows) for rows in observer.collect().dead]


def batch_of(mask):
    mask = torch.as_tensor(mask)
    return {"input_ids": torch.full(mask.shape, 5), "attention_mask": mask}


masks = st.integers(1, 3).flatmap(
    lambda rows: st.integers(2, 24).flatmap(
        lambda length: st.lists(
            st.tuples(st.integers(0, length), st.sampled_from(["left", "right"])), min_size=rows, max_size=rows
        ).map(
            lambda pads: [
                [0] * pad + [1] * (length - pad) if side == "left" else [1] * (length - pad) + [0] * pad
                for pad, side in pads
            ]
        )
    )
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.needs(transformers="4.56")] if name == "tiny-gpt2" else [])
        for name in (*BUILTIN_DECODERS, "gemma3", "llama4")  # Older ones write finite masks for GPT-2.
    ],
)
@settings(max_examples=25, deadline=None)
@given(mask=masks)
def test_the_prediction_is_what_reaches_attention(models, name, mask):
    model, batch = models[name], batch_of(mask)
    found = predict(model.config, [batch])
    seen = observed(model, batch)
    assert found.rows == max(seen, default=0)
    assert sum(found.reasons.values()) == found.rows
    per_kind = {layer.kind: layer.rows for layer in found.layers}
    assert sum(layer.rows * layer.layers for layer in found.layers) == sum(seen), per_kind


def dead_by_the_whole_mask(padding, kind):
    """The definition: a mask of every query and key."""
    kept = padding.bool()
    length = kept.shape[1]
    queries, keys = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = (keys <= queries) if kind.causal else torch.ones(length, length, dtype=torch.bool)
    seen = seen.expand(len(kept), length, length)
    if kind.name == "sliding":
        near = (keys > queries - kind.width) if kind.causal else ((keys - queries).abs() <= kind.width)
        seen = seen & near
    elif kind.name == "chunked":
        start = (kept.cumsum(-1) == 0).sum(-1)[:, None, None]
        seen = seen & ((keys - start) // kind.width == (queries - start) // kind.width)
    return ~(seen & kept[:, None, :]).any(-1)


kinds = st.builds(
    Kind, st.sampled_from(["full", "sliding", "chunked"]), st.integers(1, 9), st.sampled_from([True, False])
)
any_padding = st.integers(1, 20).flatmap(
    lambda length: st.lists(st.lists(st.sampled_from([0, 1]), min_size=length, max_size=length), min_size=1, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(padding=any_padding, kind=kinds)
def test_dead_rows_are_those_of_the_whole_mask(padding, kind):
    padding = torch.tensor(padding)
    assert torch.equal(dead_positions(padding, kind), dead_by_the_whole_mask(padding, kind))


@pytest.mark.parametrize("kind", [Kind("full"), Kind("sliding", 512), Kind("chunked", 8192)])
def test_a_long_sequence_takes_no_memory_of_its_square(kind):
    """A mask of every query and key would have 10^11 entries."""
    padding = torch.ones(2, 330_000, dtype=torch.long)
    padding[0, :1000] = 0
    assert int(dead_positions(padding, kind).sum()) == 1000


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        ("tiny-llama", [[0, 0, 1, 1], [1, 1, 1, 1]], {LEFT: 2}),
        ("tiny-llama", [[1, 1, 0, 0], [1, 1, 1, 1]], {}),
        ("tiny-llama", [[0, 0, 1, 1], [0, 1, 1, 1]], {FIXED: 2, LEFT: 1}),
        ("tiny-llama", [[0, 0, 0, 0], [0, 0, 1, 1]], {EMPTY: 4, FIXED: 2}),
        ("tiny-llama", [[1, 1, 1, 1]], {}),
        ("gemma3", [[1, 1, 0, 0, 0, 0]], {WINDOW: 2}),
        ("gemma3", [[1, 0, 0, 0, 0, 1]], {GAPS: 2}),
        ("gemma3", [[0, 1, 1, 0, 0, 0]], {FIXED: 1, WINDOW: 1}),
    ],
)
def test_the_reasons(models, name, mask, expected):
    assert predict(models[name].config, [batch_of(mask)]).reasons == expected


def test_pad_to_multiple_of_gives_dead_rows_even_to_a_batch_of_one():
    from transformers import DataCollatorForLanguageModeling

    from mpsdiag.inputs.builtin import byte_tokenizer

    collate = DataCollatorForLanguageModeling(byte_tokenizer("left"), mlm=False, pad_to_multiple_of=8)
    batch = collate([{"input_ids": [5] * 11, "attention_mask": [1] * 11}])
    found = predict(builtin_config("tiny-gpt2"), [batch])
    assert (found.rows, found.reasons) == (5, {FIXED: 5})


def test_a_mask_given_in_four_dimensions(models):
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    mask[1, 0, 2] = False
    batch = {"input_ids": torch.full((2, 4), 5), "attention_mask": mask}
    found = predict(models["tiny-llama"].config, [batch])
    assert (found.rows, found.reasons, found.sequences) == (1, {GIVEN: 1}, 1)
    assert max(observed(models["tiny-llama"], batch)) == 1
    low = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert predict(models["tiny-llama"].config, [{**batch, "attention_mask": low}]).rows == 0


def test_a_static_cache_meets_the_same_rows_in_its_prefill(models, cache_name):
    from transformers import StaticCache

    model, batch = models["tiny-llama"], batch_of([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    cache = StaticCache(config=model.config, max_cache_len=16, max_batch_size=2)
    assert max(observed(model, {**batch, cache_name: cache})) == 3
    assert predict(model.config, [batch]).rows == 3


def test_several_batches_add_up():
    config = builtin_config("tiny-qwen2")
    found = predict(config, [batch_of([[0, 1, 1], [1, 1, 1]]), batch_of([[0, 0, 1], [1, 1, 1]])])
    assert (found.rows, found.sequences, found.of_sequences) == (3, 2, 4)


@pytest.mark.parametrize("mode", ["eager", "safe_sdpa", "unmask_sdpa", "min_mask_sdpa"])
def test_a_fix_keeps_them_away_from_sdpa(models, mode):
    from mpsdiag import apply

    model, batch = models["tiny-gpt2"], batch_of([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = predict(model.config, [batch], attention=mode)
    assert (found.rows, found.reach_sdpa) == (2, False)
    with apply(model, mode):
        assert max(observed(model, batch), default=0) == 0


def small_bert(**options):
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(**sizes, vocab_size=BYTE_VOCABULARY, pad_token_id=0, **options)


@pytest.mark.parametrize(
    "decoder",
    [False, pytest.param(True, marks=pytest.mark.needs(transformers="5.1"))],  # finite masks up to 4.57
)
def test_an_encoder_sees_both_ways_until_it_is_made_a_decoder(decoder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(small_bert(is_decoder=decoder)).eval()
    batch = batch_of([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = predict(model.config, [batch])
    assert found.causal == decoder
    assert found.rows == max(observed(model, batch), default=0) == (2 if decoder else 0)
    assert not sees_both_ways(builtin_config("tiny-mistral"))


@pytest.mark.needs(transformers="5.1")  # up to 4.57 BERT looks no attention up by name
def test_the_report_of_an_encoder_does_not_contradict_itself(tmp_path):
    from transformers import AutoModelForCausalLM

    from mpsdiag import check

    AutoModelForCausalLM.from_config(small_bert()).save_pretrained(tmp_path)
    byte_tokenizer("left").save_pretrained(tmp_path)
    found = check(model=tmp_path, emulate="2.8")
    assert (found.scenario.dead_rows, found.scenario.exposure.rows) == (0, 0)
    assert "not a causal model" in found.advice[0].text
    assert not any("--padding" in command for advice in found.advice for command in advice.commands)
    assert "not a causal model" in issue_block(document(found))


def test_a_padding_side_that_is_set_is_not_suggested():
    outcome = Measured(exposure=predict(builtin_config("tiny-gpt2"), []))
    kernel = ProbeResult(id="SDPA001", title="", status="fail", detail="", training="pass", evaluation="fail")
    affected = Judged(verdict="affected", reason="")
    for side, commands in (("left", []), ("right", ["mpsdiag check --padding-side left"])):
        found = advise(affected, [kernel], outcome, Scenario(padding_side=side), [], None)
        assert found[0].commands == commands


def test_attention_both_ways_dies_only_in_empty_sequences_or_local_windows():
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert dead_positions(mask, Kind("full", causal=False)).sum(-1).tolist() == [0, 6]
    # ModernBERT's local attention: a pad query further than half a window from the last real token.
    assert dead_positions(mask, Kind("sliding", 2, causal=False)).sum(-1).tolist() == [2, 6]
