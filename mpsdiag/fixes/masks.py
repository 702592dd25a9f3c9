"""What a mode does to the mask before SDPA, and to the output after it.

Pure; no synchronization with the device, no branch on data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor

# The layers of a model share the work on one mask, here as in `safe_scaled_dot_product_attention` itself.
from mpsdiag.sdpa.safe import open_dead_rows, zero_rows


class Repaired(NamedTuple):
    """A mask that leaves no query without a key, and what the output still owes.

    Attributes:
        mask: What SDPA gets, broadcastable to (..., L, S), boolean or additive.
        zero: True where the output row is to be zero, shape (..., L, 1); None if it stays as computed.
    """

    mask: Tensor
    zero: Tensor | None


Repair = Callable[[Tensor, torch.dtype], Repaired]


def is_mask(mask: Tensor | None) -> bool:
    """Whether there is a mask of a dtype SDPA takes; SDPA refuses any other, in its own words."""
    return mask is not None and (mask.dtype == torch.bool or mask.is_floating_point())


def safe(mask: Tensor, dtype: torch.dtype) -> Repaired:
    """Let dead rows see every key, then zero their output: bit for bit what SDPA gives on the CPU.

    Args:
        mask: Attention mask as SDPA takes it, (..., L, S): boolean (True = attend) or additive.
        dtype: The dtype of the query, in which the layers share an additive mask.
    """
    return Repaired(*open_dead_rows(mask, dtype))


def unmask(mask: Tensor, dtype: torch.dtype) -> Repaired:
    """Let dead rows see every key, later ones too, and keep what comes of it, as transformers did up to 4.52.

    Args:
        mask: Attention mask as SDPA takes it, (..., L, S).
        dtype: Unused; every repair has this signature.
    """
    del dtype
    return Repaired(open_dead_rows(mask)[0], None)


def finite_minimum(mask: Tensor, dtype: torch.dtype) -> Repaired:
    """Write "may not attend" as the smallest finite number instead of minus infinity.

    Args:
        mask: Attention mask as SDPA takes it, (..., L, S).
        dtype: The dtype of the query, whose smallest number is taken for a boolean mask.
    """
    if mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=dtype, device=mask.device)
        return Repaired(torch.where(mask, zeros, torch.finfo(dtype).min), None)
    return Repaired(mask.clamp(min=torch.finfo(mask.dtype).min), None)


REPAIRS: Final[Mapping[str, Repair]] = MappingProxyType(
    {"safe_sdpa": safe, "unmask_sdpa": unmask, "min_mask_sdpa": finite_minimum}
)
"""What each mode that repairs masks does, by its name."""


def zeroed(output: Tensor, zero: Tensor | None) -> Tensor:
    """Zero the rows of an output that a repair marked; their gradient is zero too.

    Args:
        output: Fresh from attention: written in place where no gradient is recorded.
        zero: Broadcastable to `output`, or None for nothing.
    """
    return output if zero is None else zero_rows(output, zero)
