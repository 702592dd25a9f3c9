"""Evaluation time of a model with `safe_sdpa` over the stock model's, on left-padded batches; wanted: at most 1.02.

Applied to the model, and installed for the process. Both run in the same process on the same batch, in rounds that
take turns in going first; the ratio is the median over rounds, in processor time, with the interval between its
quartiles. Run: `python benchmarks/safe_attention.py [--rounds N]`. Exit code 1 if a median is above the limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from itertools import product

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import mpsdiag

LIMIT = 1.02
WORDS = 2000
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def models() -> dict[str, PreTrainedModel]:
    """Small models from configs, random weights."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(n_layer=6, n_embd=256, n_head=8, vocab_size=WORDS, **SPECIAL)
    llama = LlamaConfig(
        num_hidden_layers=6,
        hidden_size=256,
        intermediate_size=688,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=WORDS,
        **SPECIAL,
    )
    return {"gpt2": GPT2LMHeadModel(gpt2).eval(), "llama": LlamaForCausalLM(llama).eval()}


def left_padded(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids and an attention mask with more padding from row to row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : row * length // (2 * batch)] = 0
    return {"input_ids": torch.randint(0, WORDS, (batch, length)), "attention_mask": mask}


def seconds(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """Processor time of one evaluation forward, after a small one: switching the attention leaves cold caches."""
    with torch.no_grad():
        model(**{name: x[:, -8:] for name, x in batch.items()})
        start = time.process_time()
        model(**batch)
    return time.process_time() - start


def one_round(model: PreTrainedModel, batch: dict[str, torch.Tensor], way: str, *, safe_first: bool) -> float:
    """Safe over stock, once each."""
    took = {}
    for safe in (safe_first, not safe_first):
        if safe:
            with mpsdiag.install("safe_sdpa") if way == "install" else mpsdiag.apply(model, "safe_sdpa"):
                took[safe] = seconds(model, batch)
        else:
            took[safe] = seconds(model, batch)
    return took[True] / took[False]


def main() -> int:
    """Measure each model at two lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    worst = 0.0
    for name, model in models().items():
        for way, batch in product(("apply", "install"), (left_padded(8, 128), left_padded(16, 48))):
            for _ in range(3):
                one_round(model, batch, way, safe_first=True)
            ratios = [one_round(model, batch, way, safe_first=bool(n % 2)) for n in range(rounds)]
            low, median, high = statistics.quantiles(ratios, n=4)
            worst = max(worst, median)
            shape = tuple(batch["input_ids"].shape)
            spread = f"(quartiles {low:.3f} to {high:.3f})"
            print(f"{name:6} {way:8} {shape!s:10} safe / stock = {median:.3f}  {spread}", flush=True)
    print(f"worst {worst:.3f}, limit {LIMIT}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
