"""What transformers does when nobody asks: asked of transformers itself, not assumed."""

from __future__ import annotations

from typing import Any


def default_attention() -> str:
    """The attention that transformers gives a model whose config names none, such as `sdpa`."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model: Any = AutoModelForCausalLM
    return str(model.from_config(config).config._attn_implementation)
