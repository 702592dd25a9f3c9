"""The only tolerance there is: twice the error of eager attention in the same dtype, against float64 on the CPU.

That error has a floor, half a unit in the last place of the largest reference value: storing the right result in the
dtype may cost that much. Only real positions count, unless all of them are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
