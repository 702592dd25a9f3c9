"""Attention modes as attention functions of transformers, always registered together with a mask function.

Registered alone, an attention function runs with no mask at all: wrong numbers, no NaN, no warning. So the
only function here that registers does both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpsdiag.errors import BadInput
from mpsdiag.fixes.masks import Repair, is_mask, zeroed

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def repaired_attention(
    stock: AttentionFunction,
    repair: Repair,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *rest: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run an attention function of transformers with a repaired mask.

    Args:
        stock: The function to run, with the signature of `sdpa_attention_forward`.
        repair: One of `mpsdiag.fixes.masks`.
        module: The attention module of the model.
        query: (B, H, L, D).
        key: (B, G, S, D).
        value: (B, G, S, E).
        attention_mask: (B|1, H|1, L, S), boolean or additive, or None.
        rest: Passed on.
        options: Passed on.

    Returns:
        The output (B, L, H, E), and the weights if `stock` returns any.
    """
    if attention_mask is None or not is_mask(attention_mask) or _is_written_finite(attention_mask, options):
        return stock(module, query, key, value, attention_mask, *rest, **options)
    mask, zero = repair(attention_mask, query.dtype)
    output, weights = stock(module, query, key, value, mask, *rest, **options)
    if zero is not None:
        zero = zero[(None,) * (4 - zero.dim())].transpose(
            1, 2
        )  # rows of (B, H, L, E) are rows of (B, L, H, E)
    return zeroed(output, zero), weights


def _is_written_finite(attention_mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether transformers writes the mask with finfo.min, as beside a position bias: no row is dead."""
    return attention_mask.dtype == torch.bool and options.get("position_bias") is not None


def register(name: str, repair: Repair) -> None:
    """Make a mode known to transformers: its attention function and, under the same name, its mask function.

    The names stay known for the life of the process: copies of a model work on after a handle is removed.

    Args:
        name: The name, for `attn_implementation`.
        repair: What the mode does to the mask.

    Raises:
        BadInput: This transformers has no registry of mask functions (before 4.53).
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as problem:
        raise BadInput(
            f"Attention mode '{name}' needs transformers 4.53 or later, which has registries of attention "
            "and mask functions. Upgrade it with: pip install -U transformers"
        ) from problem
    if name in ALL_ATTENTION_FUNCTIONS and name in ALL_MASK_ATTENTION_FUNCTIONS:
        return

    # Both look "sdpa" up at each call: what another library has put there stays in force.
    def attention(module: nn.Module, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        return repaired_attention(ALL_ATTENTION_FUNCTIONS["sdpa"], repair, module, *inputs, **options)

    def attention_mask(*inputs: Any, **options: Any) -> Tensor | None:
        mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*inputs, **options)
        return mask

    AttentionMaskInterface.register(name, attention_mask)
    AttentionInterface.register(name, attention)
