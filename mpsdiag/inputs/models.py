"""Models: four small ones made from a config with seeded weights, a local folder, or a hub name."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, cast

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.hub import offline_if_unreachable
from mpsdiag.inputs.missing_weights import keep_missing
from mpsdiag.inputs.model_config import load_config
from mpsdiag.inputs.sources import classify, explain_missing, is_builtin_model
from mpsdiag.inputs.tokenizer import BOS_ID, BYTE_VOCABULARY, EOS_ID, PAD_ID
from mpsdiag.quiet import held_back
from mpsdiag.words import ATTENTION_MODES, DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN: Final = 64
LAYERS: Final = 2
HEADS: Final = 4
SLIDING_WINDOW: Final = 16
MAX_POSITIONS: Final = 4096

_STOCK_ATTENTION: Final = ("sdpa", "eager", "flash_attention_2")


def builtin_config(name: str, *, vocab_size: int | None = None, max_positions: int = MAX_POSITIONS) -> Any:
    """The config of a built-in model: 2 layers, hidden size 64, 4 heads, no dropout, byte vocabulary.

    Args:
        name: One of `words.BUILTIN_MODELS`.
        vocab_size: Number of tokens; that of the byte-level tokenizer if None.
        max_positions: Longest sequence, in tokens.

    Raises:
        BadInput: Unknown name.
    """
    one_of("built-in model", name, BUILTIN_CONFIGS)
    shared = {
        "vocab_size": vocab_size or BYTE_VOCABULARY,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    return BUILTIN_CONFIGS[name](shared, max_positions)


def _gpt2(shared: dict[str, Any], positions: int) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        **shared,
        n_positions=positions,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        # With dropout, training would depend on which attention ran, and the SDPA fast path would not be taken.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _llama_like(shared: dict[str, Any], positions: int) -> dict[str, Any]:
    return {
        **shared,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": positions,
    }


def _llama(shared: dict[str, Any], positions: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_llama_like(shared, positions))


def _mistral(shared: dict[str, Any], positions: int) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_llama_like(shared, positions), sliding_window=SLIDING_WINDOW)


def _qwen2(shared: dict[str, Any], positions: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_llama_like(shared, positions))


BUILTIN_CONFIGS: Final = {
    "tiny-gpt2": _gpt2,
    "tiny-llama": _llama,
    "tiny-mistral": _mistral,
    "tiny-qwen2": _qwen2,
}


def build_model(
    name: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    attention: str = "sdpa",
    vocab_size: int | None = None,
    from_config: bool = True,
    max_positions: int = MAX_POSITIONS,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a causal language model, on the CPU, in evaluation mode.

    Args:
        name: A built-in model (always random weights), a local folder, or a hub name.
        seed: Seed of random weights. The state of the global generators is the same before and after.
        dtype: `float32`, `bfloat16`, `float16` or `float64`.
        attention: An attention mode; one of ours is applied after building and verified.
        vocab_size: Overrides the vocabulary size where weights are random.
        from_config: Random weights from the config (pretrain) instead of those of the checkpoint.
        max_positions: Longest sequence of a built-in model, in tokens.
        trust_remote_code: Let code that comes with the model run. Off unless the user asks for it.

    Raises:
        BadInput: Unknown dtype or attention mode; the model cannot be found or loaded.
    """
    import torch

    one_of("dtype", dtype, DTYPES)
    one_of("attention mode", attention, ATTENTION_MODES)
    torch_dtype = getattr(torch, dtype)
    model: Any
    at_load = attention if attention in _STOCK_ATTENTION else "sdpa"
    if is_builtin_model(name):
        config = builtin_config(name, vocab_size=vocab_size, max_positions=max_positions)
        model = _with_random_weights(config, seed, torch_dtype, at_load)
    else:
        on_hub = classify("model", name) == "hub"
        with offline_if_unreachable() if on_hub else contextlib.nullcontext():
            model = _load(name, seed, torch_dtype, at_load, vocab_size, from_config, trust_remote_code)
    if getattr(model, "loss_type", "") is None:
        # Of some class names (GPT-2's among them) transformers cannot read the loss; it warns, and takes this one.
        model.loss_type = "ForCausalLM"
    if attention not in _STOCK_ATTENTION:
        from mpsdiag.fixes import apply

        apply(model, attention)
    return cast("PreTrainedModel", model)


def _with_random_weights(
    config: Any, seed: int, dtype: Any, attention: str, **options: Any
) -> PreTrainedModel:
    """Initialize in float32 and then convert, so that every dtype has the same (rounded) weights."""
    import torch
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM  # untyped
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make.from_config(config, attn_implementation=attention, **options)
    return model.to(dtype).eval()  # type: ignore[no-any-return]  # AutoModel is untyped


def _load(
    name: str,
    seed: int,
    dtype: Any,
    attention: str,
    vocab_size: int | None,
    from_config: bool,
    remote_code: bool,
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = load_config(name, trust_remote_code=remote_code)
    try:
        # On success what transformers has to say is said; a failure is one sentence.
        with held_back("transformers"):
            if from_config:
                if vocab_size is not None:
                    config.vocab_size = vocab_size
                return _with_random_weights(config, seed, dtype, attention, trust_remote_code=remote_code)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=remote_code,
                output_loading_info=True,
            )
    except Exception as problem:  # a damaged model fails in as many ways as there are libraries below
        raise BadInput(explain_missing("model", name, problem)) from problem
    model, info = loaded
    keep_missing(model, info["missing_keys"])
    return model.to(dtype).eval()  # type: ignore[no-any-return]  # AutoModel is untyped
