"""What a mode does in a call of attention: change the mask before it, the output after it, or replace it.

Pure: no synchronization with the device, no branch on data except on the CPU, no state. All other arguments are passed
on unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from mpsdiag.sdpa.safe import open_dead_rows, zero_rows


class Repaired(NamedTuple):
    """A mask without rows that the kernel cannot handle, broadcastable to (..., L, S), boolean or additive.

    `zero` is True where the output row must be zero, shape (..., L, 1); None if the output stays as computed.
    """

    mask: Tensor
    zero: Tensor | None


Function = Callable[..., Any]
Repair = Callable[[Tensor, torch.dtype, bool], Repaired]
"""Takes the mask, the dtype of the query, and whether torch's own function is to take the mask."""


def safe(mask: Tensor, dtype: torch.dtype, by_torch: bool = False) -> Repaired:
    """Let fully masked rows see every key, then zero their output: the result of SDPA on the CPU, bit for bit."""
    del dtype
    return Repaired(*open_dead_rows(mask, by_torch=by_torch))


def unmask(mask: Tensor, dtype: torch.dtype, by_torch: bool = False) -> Repaired:
    """Let fully masked rows see every key, even later ones, and keep the result, as in transformers up to 4.52."""
    del dtype, by_torch
    return Repaired(open_dead_rows(mask)[0], None)


def finite_minimum(mask: Tensor, dtype: torch.dtype, by_torch: bool = False) -> Repaired:
    """Write "may not attend" as the smallest finite number of a dtype, the query's for a boolean mask."""
    del by_torch
    if mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=dtype, device=mask.device)
        return Repaired(torch.where(mask, zeros, torch.finfo(dtype).min), None)
    return Repaired(mask.clamp(min=torch.finfo(mask.dtype).min), None)


REPAIRS: Final[Mapping[str, Repair]] = {"safe_sdpa": safe, "unmask_sdpa": unmask, "min_mask_sdpa": finite_minimum}
"""The repair of each mode that repairs masks, by name: a plain dict, which the compiler of torch 2.5 can follow."""


class MaskArgument(NamedTuple):
    """Where a function takes its mask: as this keyword, and at this position (None: never by position)."""

    name: str
    position: int | None

    @classmethod
    def of(cls, function: Function, name: str, position: int) -> MaskArgument:
        """Read it from a signature; `position` is used if there is none to read, and behind `*args`."""
        try:
            parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
        except (TypeError, ValueError):
            return cls(name, position)
        places = [p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
        if name in places:
            return cls(name, places.index(name))
        open_end = len(places) <= position and any(p.kind == p.VAR_POSITIONAL for p in parameters)
        return cls(name, position if open_end else None)

    def find(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor | None:
        """The mask of a call, if its dtype is one that SDPA takes; torch refuses any other."""
        mask = options.get(self.name)
        if mask is None and self.position is not None and len(args) > self.position:
            mask = args[self.position]
        if isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point()):
            return mask
        return None

    def call(self, function: Function, mask: Tensor, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a function with its mask replaced."""
        if options.get(self.name) is not None or self.position is None:
            return function(*args, **{**options, self.name: mask})  # torch.compile of 2.7 knows no | of dicts
        return function(*args[: self.position], mask, *args[self.position + 1 :], **options)


def query_of(args: tuple[Any, ...], options: Mapping[str, Any], mask: Tensor) -> Tensor:
    """The query of a call: the first tensor, or the argument of that name; only its dtype counts."""
    for found in (*args, options.get("query"), *options.values()):  # torch.compile of 2.7 has no next()
        if isinstance(found, Tensor) and found is not mask:
            return found
    return mask


def repaired_sdpa(
    sdpa: Function, where: MaskArgument, repair: Repair, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Call SDPA once, with a repaired mask, and zero the rows that the repair names."""
    mask = where.find(args, options)
    if mask is None:
        return sdpa(*args, **options)
    by_torch = isinstance(sdpa, BuiltinFunctionType)
    repaired = repair(mask, query_of(args, options, mask).dtype, by_torch)
    output = where.call(sdpa, repaired.mask, args, options)
    if repaired.zero is None:
        return output
    return zero_rows(output, repaired.zero, fresh=by_torch)


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention with plain operations, as transformers' eager attention does, instead of SDPA.

    The scores of the whole (L, S) square are in memory. Masked scores get the smallest finite number, so a
    query with no key averages all values. The arguments are those of `F.scaled_dot_product_attention`.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~square, torch.finfo(scores.dtype).min)
    if attn_mask is not None:
        scores = scores + finite_minimum(attn_mask, scores.dtype).mask
    # Half types are summed in float32; float64 stays, because its smallest number is minus infinity in float32.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return torch.matmul(weights, value)
