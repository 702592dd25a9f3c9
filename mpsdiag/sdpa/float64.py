"""What every attention is judged by: float64 on the CPU, straight from the definition, and the only tolerance there is.

The tolerance is twice the error of eager attention in the same dtype against that reference. That error has a floor,
half a unit in the last place of the largest reference value: storing the right result in the dtype may cost that much.
Only real positions count, unless all of them are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch import Tensor


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `softmax(scale * Q K^T + mask) V` in float64 on the CPU; fully masked rows give zeros.

    Written from the definition and not by calling `scaled_dot_product_attention`, so that it can judge it.
    Query `(..., Hq, L, D)`, key `(..., Hkv, S, D)` and value `(..., Hkv, S, Dv)` give `(..., Hq, L, Dv)`,
    detached. Causal is aligned top left (query i sees keys 0..i) as in torch, and combines with a mask, bool
    (True = may attend) or added. Masked keys take no part: a NaN or an infinity in one of them does not reach
    the result; in a visible value they give NaN.
    """
    q, k, v = (x.detach().to("cpu", torch.float64) for x in (query, key, value))
    if enable_gqa:
        k = k.repeat_interleave(q.size(-3) // k.size(-3), dim=-3)
        v = v.repeat_interleave(q.size(-3) // v.size(-3), dim=-3)
    factor = 1.0 / math.sqrt(q.size(-1)) if scale is None else scale
    scores = (q @ k.mT) * factor
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None:
        mask = attn_mask.detach().cpu()
        if mask.dtype == torch.bool:
            visible = visible & mask
        else:
            mask = mask.to(torch.float64)
            visible = visible & (mask != float("-inf"))
            scores = scores + mask
    visible = visible.expand(scores.shape)
    scores = scores.masked_fill(~visible, float("-inf"))
    dead = ~visible.any(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
    finite = v.isfinite()
    output = weights @ torch.where(finite, v, 0.0)
    if not bool(finite.all()):
        # Weight times NaN only where the key is visible: 0 * NaN must not reach the rows it is hidden from.
        output[(visible.double() @ (~finite).double()) > 0] = float("nan")
    return output


class WideSoftmax(TorchFunctionMode):
    """Inside this block a softmax of float64 scores stays in float64; a row of minus infinities has equal weights.

    Eager attention of transformers takes the softmax in float32. There the mask's `finfo(float64).min` is minus
    infinity, and a fully masked row is NaN, so the reference of a left-padded batch would be. Some models add such a
    mask twice, which float64 does not hold either.

    Args:
        rounded: Let a softmax that asks for float32 have it, as the error of that eager attention needs it.
    """

    def __init__(self, *, rounded: bool = False) -> None:
        super().__init__()
        self._dtype = torch.float32 if rounded else torch.float64

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "softmax":
            scores = args[0] if args else kwargs.pop("input")
            if scores.dtype == torch.float64:
                scores = scores.clamp(min=torch.finfo(self._dtype).min)
                kwargs |= {"dtype": self._dtype} if kwargs.get("dtype") == torch.float32 else {}
            args = (scores, *args[1:])
        return func(*args, **kwargs)


def largest_error(output: Tensor, reference: Tensor, rows: Tensor | None = None) -> float:
    """Give the largest absolute difference, in float64; NaN if one holds a NaN, or both the same infinity.

    Args:
        output: (..., L, D), any dtype and device.
        reference: Same shape, on the CPU.
        rows: Boolean, broadcastable to (..., L): the rows that count; all if None.
    """
    difference = (output.detach().cpu().double() - reference.double()).abs()
    if not difference.numel():
        return 0.0
    worst = difference.amax(-1)
    return float((worst if rows is None else worst.masked_fill(~rows, 0.0)).max())


def storage_error(reference: Tensor, dtype: torch.dtype) -> float:
    """Half a unit in the last place of the largest finite reference value: what storing it in `dtype` may cost."""
    finite = reference.masked_fill(~torch.isfinite(reference), 0.0).abs()
    peak = float(finite.max()) if finite.numel() else 0.0
    return peak * torch.finfo(dtype).eps / 2


def allowed_error(reference: Tensor, dtype: torch.dtype, errors: Iterable[float]) -> float:
    """How far a right result may be from the reference.

    Args:
        reference: float64, any shape: the values that are compared.
        dtype: Of the result.
        errors: `largest_error` of eager attention in this dtype, in each of its ways.
    """
    return 2 * max([*errors, storage_error(reference, dtype)])
