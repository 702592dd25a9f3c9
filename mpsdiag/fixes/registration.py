"""Attention modes as attention functions of transformers, always registered together with a mask function.

Registered alone, an attention function runs with no mask at all: wrong numbers, no NaN, no warning. So the
only function here that registers does both.
"""

import contextlib
from types import BuiltinFunctionType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsdiag.errors import BadInput
from mpsdiag.fixes.repairs import REPAIRS, Function, MaskArgument, Repair, query_of
from mpsdiag.sdpa.safe import zero_rows
from mpsdiag.sdpa.watch import overriding

OWN: Final = "transformers.integrations.sdpa_attention"
"""The module of transformers' attention function "sdpa"."""

MASK: Final = MaskArgument("attention_mask", 4)
"""Where attention functions of transformers take the mask: (module, query, key, value, attention_mask, ...)."""


def repaired_attention(
    stock: Function, repair: Repair, args: tuple[Any, ...], options: dict[str, Any], where: MaskArgument = MASK
) -> Any:
    """Run an attention function of transformers with a repaired mask; its output is (B, L, H, E), and weights."""
    mask = where.find(args, options)
    if mask is None or overriding(args[1:], options) or _is_written_finite(mask, options):
        return stock(*args, **options)
    # What transformers computes from torch's own output belongs to nobody else.
    by_torch = getattr(stock, "__module__", None) == OWN and isinstance(
        F.scaled_dot_product_attention, BuiltinFunctionType
    )
    repaired = repair(mask, query_of(args, options, mask).dtype, by_torch)
    output, weights = where.call(stock, repaired.mask, args, options)
    if repaired.zero is None:
        return output, weights
    zero = repaired.zero
    if zero.dim() < 4:
        zero = zero[(None,) * (4 - zero.dim())]
    # Rows of (B, H, L, E) are rows of (B, L, H, E).
    return zero_rows(output, zero.transpose(1, 2), fresh=by_torch), weights


def _is_written_finite(mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether transformers writes the mask with finfo.min, as with a position bias: no row is then fully masked."""
    return mask.dtype == torch.bool and options.get("position_bias") is not None


def register(name: str, repair: Repair) -> None:
    """Make a mode known to transformers: its attention function and, under the same name, its mask function.

    The names stay registered for the life of the process: copies of a model still work after a handle is removed.
    Raises BadInput before transformers 4.53, which has no registry of mask functions.
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
    def attention(*args: Any, **options: Any) -> Any:
        return repaired_attention(ALL_ATTENTION_FUNCTIONS["sdpa"], repair, args, options)

    def attention_mask(*args: Any, **options: Any) -> Tensor | None:
        mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **options)
        return mask

    AttentionMaskInterface.register(name, attention_mask)
    AttentionInterface.register(name, attention)


def register_all() -> None:
    """Register every mode that repairs masks, so that `from_pretrained(attn_implementation="safe_sdpa")` works.

    If transformers has no registry of mask functions, its own error names the unknown mode.
    """
    for name, repair in REPAIRS.items():
        with contextlib.suppress(BadInput):
            register(name, repair)
