"""What defects outside the kernels do: what the graph keeps, misplaces or corrupts, and `baddbmm` (SDPA026).

What lies in memory that nobody wrote depends on what else the process did. Here it comes from the machine's seeded
generator: a run repeats, two calls in it differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mpsdiag.emulation.generations.rounding import scale_or_default

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mpsdiag.emulation.call import AttentionCall
    from mpsdiag.emulation.machine import Machine

SCORES_TO_CORRUPTION = 1 << 32
"""Scores from which on float32 heads were seen corrupt."""
SCORES_TO_CORRUPTION_HALF = 3 << 31
"""The same for half types, where 5.8e9 scores were seen right and 7.2e9 corrupt; between the two."""


def laid_out_for_another_width(output: Tensor, width: int, garbage: torch.Generator) -> Tensor:
    """The result written into an output allocated with the query's head dimension (SDPA009)."""
    if output.size(3) == width:
        return output
    shape = (*output.shape[:3], width)
    memory = torch.randn(shape, generator=garbage).to(output.dtype).flatten()
    written = output.flatten()[: memory.numel()]
    memory[: written.numel()] = written
    return memory.view(shape)


def corrupt_far_heads(output: Tensor, keys: int, garbage: torch.Generator) -> Tensor:
    """The result where heads whose scores begin beyond 2**32 come out wrong (SDPA018)."""
    for at in _far_heads(output, keys):
        size = 60.0 * float(output[at].abs().max())
        output[at] = (torch.rand(output[at].shape, generator=garbage) * 2 - 1) * size
    return output


def _far_heads(output: Tensor, keys: int) -> Iterator[tuple[int, int]]:
    batch, heads, rows, _ = output.shape
    limit = SCORES_TO_CORRUPTION if output.dtype == torch.float32 else SCORES_TO_CORRUPTION_HALF
    each = max(1, rows * keys)
    for number in range(-(-limit // each), batch * heads):
        yield divmod(number, heads)


def as_the_cached_graph_runs_it(call: AttentionCall, machine: Machine) -> AttentionCall:
    """The call with what the graph in the machine's cache keeps in place of its own; fills the cache."""
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


def _through_placeholder(mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype, garbage: torch.Generator) -> Tensor:
    """The memory of a mask, taken for another shape and dtype; garbage behind its end."""
    wanted = torch.Size(shape).numel() * dtype.itemsize
    memory = mask.contiguous().flatten().view(torch.uint8)
    missing = wanted - memory.numel()
    if missing > 0:
        # As whole numbers of the dtype: the bytes of some float that is neither huge nor NaN.
        behind = torch.randn(missing // dtype.itemsize + 1, generator=garbage).to(dtype).view(torch.uint8)
        memory = torch.cat([memory, behind])
    return memory[:wanted].clone().view(dtype).view(shape)


BADDBMM: tuple[Callable[..., Any], ...] = (torch.baddbmm, torch.Tensor.baddbmm, torch.Tensor.baddbmm_)


def baddbmm_reading_its_input(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `baddbmm`; with beta=0, NaN and infinities of the input reach the result as NaN."""
    if kwargs.get("beta", 1) != 0:
        return func(*args, **kwargs)
    before = args[0] if args else kwargs["input"]
    spoilt = before.clone() if func is torch.Tensor.baddbmm_ else before
    result = func(*args, **kwargs)
    zeros = spoilt.detach().to(result.dtype) * 0
    return result.add_(zeros) if func is torch.Tensor.baddbmm_ or "out" in kwargs else result + zeros
