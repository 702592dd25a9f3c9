"""The reference for every attention: float64 on the CPU, straight from the definition, and the only tolerance.

The tolerance is twice the error of plain attention in the same dtype against that reference. That error has a floor,
half a unit in the last place of the largest reference value: storing the correct result may cost that much. Only real
positions count, unless all of them are requested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
    (True = may attend) or added. Masked keys have no influence: a NaN or an infinity in one of them does not reach
    the result; in a visible value it gives NaN.
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
    mask twice, which float64 does not hold either. With `rounded`, a softmax that requests float32 uses it, which the
    error of that eager attention needs.
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
    """The largest absolute difference, in float64; NaN if one holds a NaN, or both the same infinity.

    The output, on any device, has the shape (..., L, D) of the reference, on the CPU. `rows`, bool and broadcastable to
    (..., L), are those that count; all if None.
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
    """How far a correct result in a dtype may be from the reference, which is float64 and of any shape.

    `errors` are `largest_error` of eager attention in this dtype, in each of its ways.
    """
    return 2 * max([*errors, storage_error(reference, dtype)])


Scaling = Literal["scores", "inputs"]


def composite_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    scaled: Scaling = "scores",
) -> Tensor:
    """Compute attention step by step in the inputs' own dtype, rounding after every step, as eager attention does.

    The softmax is taken in float32 at least and rounded, as in transformers' eager attention. Keys and values with
    fewer heads are repeated. Rows that may attend to nothing give zeros, with finite gradients.
    """
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if query.dim() >= 3 and key.shape[-3] not in {1, query.shape[-3]}:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if scaled == "scores":
        scores = _product(query, key.transpose(-2, -1)) * factor
    else:
        root = math.sqrt(abs(factor))
        scores = _product(query * math.copysign(root, factor), (key * root).transpose(-2, -1))
    if is_causal:
        lower = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~lower, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask.to(scores.dtype)
    dead = (scores == -math.inf).all(-1, keepdim=True)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.masked_fill(dead, 0.0).to(wide), dim=-1).to(query.dtype)
    return _product(weights.masked_fill(dead, 0.0), value)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in float32 at least and round once, as half-precision products do, only faster on a CPU."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) @ right.to(wide)).to(left.dtype)


def plain_errors(
    reference: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> list[float]:
    """Measure the finite errors of plain attention in the inputs' dtype, in several ways.

    There are several ways because a single one is sometimes right by chance: scaled before or after the product
    (float16 may overflow in one and not in the other), and in float32 with contiguous or transposed heads, for which
    the CPU sums in blocks or one by one, as GPUs do.
    """
    layouts = [tuple(tensor.contiguous() for tensor in (query, key, value))]
    if query.dtype == torch.float32 and query.dim() == 4:
        layouts.append(tuple(transposed(tensor) for tensor in (query, key, value)))
    errors = []
    for (q, k, v), way in itertools.product(layouts, get_args(Scaling)):
        output = composite_attention(q, k, v, attn_mask, is_causal=is_causal, scale=scale, scaled=way)
        errors.append(largest_error(output, reference, rows))
    return [error for error in errors if math.isfinite(error)]


def transposed(tensor: Tensor) -> Tensor:
    """The same (B, H, L, D) values, laid out in memory as (B, L, H, D), as models pass them."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@dataclass(frozen=True)
class Yardstick:
    """A float64 reference (..., L, Dv) on the CPU and the error allowed against it, see `sdpa/float64.py`."""

    reference: Tensor
    bound: float

    @classmethod
    def of(cls, reference: Tensor, dtype: torch.dtype, errors: Sequence[float]) -> Yardstick:
        """Make the rule for one output."""
        return cls(reference, allowed_error(reference, dtype, errors))

    def judge(self, output: Tensor, rows: Tensor | None = None) -> tuple[bool, str, float]:
        """Whether `output` is correct, a word or two about it, and its error."""
        if output.shape != self.reference.shape:
            return False, f"shape {tuple(output.shape)} instead of {tuple(self.reference.shape)}", math.nan
        error = largest_error(output, self.reference, rows)
        if math.isnan(error):
            return False, "NaN" if bool(output.isnan().any()) else "inf", error
        if error > self.bound:
            return False, "wrong values", error
        return True, "right", error
