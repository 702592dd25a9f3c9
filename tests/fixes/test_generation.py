"""Prefill into a cache, generation, and batches that a tokenizer pads to a multiple."""

from __future__ import annotations

import pytest
import torch

import mpsdiag


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "mistral",
        pytest.param("gpt2", marks=pytest.mark.needs(transformers="4.56")),  # Older ones write finite masks for these.
        pytest.param("falcon", marks=pytest.mark.needs(transformers="5.1")),
    ],
)
def test_generated_tokens_are_those_of_the_cpu(name, build, in_place):
    model, inputs = build(name)
    # Random weights repeat themselves; a rougher set does not.
    for weight in model.parameters():
        weight.data.mul_(8)

    def generated():
        return model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)

    stock = generated()
    with in_place(model):
        assert torch.equal(generated(), stock)
        with mpsdiag.emulate_mps("2.8"):
            assert torch.equal(generated(), stock)
    with mpsdiag.emulate_mps("2.8"):
        assert not torch.equal(generated(), stock)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_prefill_of_a_static_cache(name, build, in_place, cache_name):
    from transformers import StaticCache

    model, inputs = build(name)

    def prefilled():
        cache = StaticCache(config=model.config, max_cache_len=20, max_batch_size=len(inputs["input_ids"]))
        with torch.no_grad():
            return model(**inputs, **{cache_name: cache}, use_cache=True).logits

    stock = prefilled()
    with in_place(model):
        assert torch.equal(prefilled(), stock)
    with mpsdiag.emulate_mps("2.8", defects=()):
        healthy = prefilled()
    with mpsdiag.emulate_mps("2.8"):
        assert prefilled().isnan().any()
        with in_place(model):
            assert torch.equal(prefilled(), healthy)


def test_padding_to_a_multiple_kills_rows_even_of_equal_lengths(build, logits, in_place):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, 60)}
    backend = Tokenizer(WordLevel(words, unk_token=next(iter(words))))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=next(iter(words)), padding_side="left")
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=8)
    model, _ = build("llama")
    inputs = dict(collate([tokenizer("w5 w7 w9 w11 w13") for _ in range(2)]))
    assert inputs["input_ids"].shape == (2, 8)

    stock = model(**inputs).loss
    assert stock.isfinite()
    with in_place(model), torch.no_grad():
        assert model(**inputs).loss == stock
    with torch.no_grad(), mpsdiag.emulate_mps("2.8", defects=()):
        healthy = model(**inputs).loss
    with torch.no_grad(), mpsdiag.emulate_mps("2.8"):
        assert model(**inputs).loss.isnan()
        with in_place(model):
            assert model(**inputs).loss == healthy
    # One sequence, and no padding but that to the multiple, is enough.
    alone = dict(collate([tokenizer("w5 w7 w9")]))
    with mpsdiag.emulate_mps("2.8"):
        assert logits(model, alone).isnan().any()
        with in_place(model):
            assert logits(model, alone).isfinite().all()
