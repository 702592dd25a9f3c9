"""What a compiled graph keeps of the first call that later calls of the same key then get (SDPA015, SDPA016).

The graph is looked up by the shapes and dtypes of query, key and value, by `is_causal`, and by whether there
is a mask. The scale is a constant in the graph, and the mask's shape and dtype are those of its placeholder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpsdiag.emulation.generations.rounding import scale_or_default

if TYPE_CHECKING:
    from torch import Tensor

    from mpsdiag.emulation.call import Call
    from mpsdiag.emulation.machine import Machine


def as_the_cached_graph_runs_it(call: Call, machine: Machine) -> Call:
    """The call with what the graph in the machine's cache keeps in place of its own; fills the cache.

    Args:
        call: A call on the general path, 4D, heads repeated.
        machine: Its cache is read and written.
    """
    scale = scale_or_default(call.scale, call.query)
    signature = tuple((tuple(x.shape), x.dtype) for x in call.tensors)
    # Where the scale is no longer baked in (2.13), it is part of the key.
    key = (signature, call.is_causal, call.mask is not None, None if machine.has("SDPA015") else scale)
    placeholder = None if call.mask is None else (tuple(call.mask.shape), call.mask.dtype)
    first_scale, first_placeholder = machine.graphs.setdefault(key, (scale, placeholder))
    if machine.has("SDPA015"):
        call = replace(call, scale=first_scale)
    if machine.has("SDPA016") and call.mask is not None and first_placeholder != placeholder:
        shape, dtype = first_placeholder
        call = replace(call, mask=_through_placeholder(call.mask, shape, dtype, machine.garbage))
    return call


def _through_placeholder(
    mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype, garbage: torch.Generator
) -> Tensor:
    """The memory of a mask, taken for another shape and dtype; garbage behind its end."""
    wanted = torch.Size(shape).numel() * dtype.itemsize
    memory = mask.contiguous().flatten().view(torch.uint8)
    missing = wanted - memory.numel()
    if missing > 0:
        # As whole numbers of the dtype: the bytes of some float that is neither huge nor NaN.
        behind = torch.randn(missing // dtype.itemsize + 1, generator=garbage).to(dtype).view(torch.uint8)
        memory = torch.cat([memory, behind])
    return memory[:wanted].clone().view(dtype).view(shape)
