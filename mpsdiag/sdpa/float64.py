"""The reference every other attention is judged by: float64, on the CPU, straight from the definition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
