"""False alarms: random models that do not depend on padding, with random batches, in each dtype; on the CPU.

Architecture, sizes, weights, number and lengths of the sequences, padding side and extra padding are drawn by seed, the
same in every dtype. Attention is stock SDPA; the causes are not looked for.
Run: python benchmarks/invariance_alarms.py [--models 200]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
)

from mpsdiag import padding_invariance
from mpsdiag.findings import Invariance

CONFIGS = (LlamaConfig, MistralConfig, Phi3Config, GPTNeoXConfig, GemmaConfig, Qwen2Config, MixtralConfig)
DTYPES = ("float32", "bfloat16", "float16")


def drawn(seed: int) -> tuple[Any, dict[str, torch.Tensor], str]:
    """A model with random weights, a padded batch for it, and its padding side."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    hidden, heads = one_of(32, 64, 96), one_of(2, 4)
    config = one_of(*CONFIGS)(
        vocab_size=256,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=one_of(1, heads),
        head_dim=hidden // heads,
        intermediate_size=2 * hidden,
        num_hidden_layers=one_of(1, 2, 3),
        initializer_range=one_of(0.02, 0.1, 0.3),
        sliding_window=one_of(4, 16),
        num_local_experts=4,
        num_experts_per_tok=4,  # With a choice, a tie within rounding may fall either way.
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    lengths = torch.randint(2, 40, (one_of(1, 2, 4),), generator=generator).tolist()
    side, longest = one_of("left", "right"), max(lengths) + one_of(0, 1, 7)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if side == "left" else slice(length)
        ids[row, place] = torch.randint(3, 256, (length,), generator=generator)
        mask[row, place] = 1
    return model, {"input_ids": ids, "attention_mask": mask}, side


def examined(seed: int, dtype: str) -> Invariance:
    """The result of `padding_invariance` for the model of a seed in a dtype."""
    model, batch, side = drawn(seed)
    return padding_invariance(model.to(getattr(torch, dtype)), batch, padding_side=side, causes=False)


def main() -> None:
    """Examine all of them and count those not reported as invariant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    models = parser.parse_args().models
    torch.set_num_threads(1)
    for dtype in DTYPES:
        start, alarms, closest = time.monotonic(), [], 0.0
        for seed in range(models):
            found = examined(seed, dtype)
            closest = max([closest, *(r.max_abs_diff / r.allowed for r in found.arrangements if r.counts)])
            if found.verdict != "invariant":
                alarms.append(f"seed {seed}: {found.verdict}, {found.reason}")
        print(
            f"{dtype:9} {len(alarms)} false alarms in {models} models; largest difference {closest:.2f} bounds "
            f"({time.monotonic() - start:.0f} s)"
        )
        print("".join(f"  {alarm}\n" for alarm in alarms), end="")


if __name__ == "__main__":
    main()
