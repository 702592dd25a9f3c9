"""Models: a built-in one with seeded weights, a local folder, or a hub name; and what a model has room for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from mpsdiag.errors import BadInput, one_of
from mpsdiag.inputs.builtin import MAX_POSITIONS, builtin_config
from mpsdiag.inputs.load_problems import described
from mpsdiag.inputs.names import classify, explain_missing, is_builtin_model, offline_if_unreachable
from mpsdiag.quiet import held_back
from mpsdiag.words import ATTENTION_MODES, DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_KEPT_AS: Final = "mpsdiag_missing_weights"
_LISTED: Final = 5
_STOCK_ATTENTION: Final = ("sdpa", "eager", "flash_attention_2")


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


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Read the config of a local folder or of the hub.

    Raises:
        BadInput: There is none, or it holds values that no model can have.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as problem:
        raise BadInput(explain_missing("model", name, problem)) from problem
    except (
        Exception
    ) as problem:  # what a config class makes of a bad value: TypeError, ZeroDivisionError, ...
        raise BadInput(
            f"Cannot load the model from '{name}': its config.json cannot be used ({described(problem)}). "
            "Put back the config.json that save_pretrained wrote."
        ) from problem


# What a checkpoint lacks, and what the model has room for.


def keep_missing(model: Any, names: Iterable[str]) -> None:
    """Remember which weights of a model its checkpoint did not have."""
    setattr(model, _KEPT_AS, tuple(sorted(names)))


def missing_note(model: Any) -> str | None:
    """One sentence about the weights that are random, without a full stop; None if the checkpoint had them all."""
    missing: tuple[str, ...] = getattr(model, _KEPT_AS, ())
    if not missing:
        return None
    places = list(dict.fromkeys(_place(name) for name in missing))
    more = f" and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    tensors = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
    return (
        f"the checkpoint lacks weights of {', '.join(places[:_LISTED])}{more} ({tensors}): they are random, and so are "
        "the losses"
    )


def _place(name: str) -> str:
    """The layer that a weight belongs to, or its module outside of layers."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[:-1] or parts)


def fitting_length(model: Any, wanted: int) -> int:
    """The asked length, or the longest the model has positions for, which is said."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < wanted:
        logger.warning(
            "--max_length %d is more than the model's %d positions: using %d.", wanted, positions, positions
        )
        return positions
    return wanted


def require_known_tokens(model: Any, greatest: int, name: str) -> None:
    """Refuse data whose token ids the embedding does not have: on a device they may read garbage instead of failing.

    Raises:
        BadInput: The tokenizer gives ids that the model does not know.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    size = getattr(embedding, "num_embeddings", None)
    if isinstance(size, int) and greatest >= size:
        raise BadInput(
            f"The tokenizer of '{name}' gives the token id {greatest}, and the model has only 0 to {size - 1}. Give it "
            "the tokenizer it was trained with, or resize it: model.resize_token_embeddings(len(tokenizer))."
        )
