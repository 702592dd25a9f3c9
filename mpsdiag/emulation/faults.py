"""Defects outside the kernels: misread strides, what the graph keeps or misplaces, `baddbmm` (SDPA026).

The content of memory that was never written depends on what else the process did. Here it comes from the machine's
seeded generator: a run is repeatable, but two calls in it differ.

The vector kernels of 2.8 to 2.11 number the heads through all sequences and know no batch stride: head n begins
at n times the head stride. The host copies tensors that cannot be read in this way, but it tests `is_contiguous`, which
ignores the stride of a dimension of size 1, and it accepts one more layout of the query (SDPA002, SDPA003). For a mask
it passes the strides of key, row and head, with 0 for a dimension of size 1 (SDPA005, SDPA006). Later kernels take
every stride; those of the prefill path of 2.13 take them in 32 bits (SDPA030).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mpsdiag.emulation.call import AttentionCall
from mpsdiag.emulation.generations.rounding import scale_or_default
from mpsdiag.emulation.selection import Machine

SCORES_TO_CORRUPTION = 1 << 32
"""Number of scores from which float32 heads were seen to be corrupt."""
SCORES_TO_CORRUPTION_HALF = 3 << 31
"""The same for half types: a value between 5.8e9 scores, seen to be correct, and 7.2e9, seen to be corrupt."""


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
    """The call with the values that the cached graph uses instead of its own; fills the cache."""
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
    """The memory of a mask, read as another shape and dtype; garbage behind its end."""
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


Strides = tuple[int, int, int, int]
OFFSETS = 1 << 31  # what a signed 32-bit offset reaches


def as_vector_kernel_reads(call: AttentionCall, machine: Machine, *, two_pass: bool) -> AttentionCall:
    """The call with query, key, value and mask as a vector kernel of the machine's release reads them.

    The mask comes expanded to `(B, H, L, S)`.
    """
    query, key, value = call.tensors
    if machine.has("SDPA003") or machine.has("SDPA002"):
        query = query if _handed_over(query) else query.contiguous()
        query = _read(query, _dense(query) if machine.has("SDPA002") else _by_heads(query), machine.garbage)
    if machine.has("SDPA003"):
        key, value = (_read(x, _by_heads(x), machine.garbage) for x in (key.contiguous(), value.contiguous()))
    mask = expanded_mask(call)
    permuted, lost = machine.has("SDPA005") and not two_pass, machine.has("SDPA006")
    if mask is not None and mask.dtype == torch.bool and (permuted or lost):
        mask = _read(mask, _of_mask(mask, permuted=permuted, lost=lost), machine.garbage)
    return replace(call, query=query, key=key, value=value, mask=mask)


def as_prefill_kernel_reads(call: AttentionCall, machine: Machine) -> AttentionCall:
    """The call with its tensors as a prefill kernel reads them, the mask expanded to `(B, H, L, S)`."""
    call = replace(call, mask=expanded_mask(call))
    if not machine.has("SDPA030"):
        return call
    query, key, value = (_within_32_bits(x, machine.garbage) for x in call.tensors)
    mask = None if call.mask is None else _within_32_bits(call.mask, machine.garbage)
    return replace(call, query=query, key=key, value=value, mask=mask)


def expanded_mask(call: AttentionCall) -> Tensor | None:
    """The mask in the shape of the scores; dimensions that were broadcast have stride 0."""
    return None if call.mask is None else call.mask.expand(*call.query.shape[:3], call.key.size(2))


def _handed_over(query: Tensor) -> bool:
    """Whether the query is not copied: contiguous, or heads and rows swapped, every stride compared."""
    _, heads, rows, width = query.shape
    return query.is_contiguous() or query.stride() == (rows * heads * width, width, heads * width, 1)


def _dense(tensor: Tensor) -> Strides:
    """The strides of a contiguous tensor of this shape."""
    _, heads, rows, width = tensor.shape
    return heads * rows * width, rows * width, width, 1


def _by_heads(tensor: Tensor) -> Strides:
    """The tensor's strides, the batch's assumed: heads are numbered through all sequences."""
    _, head, row, column = tensor.stride()
    return tensor.size(1) * head, head, row, column


def _of_mask(mask: Tensor, *, permuted: bool, lost: bool) -> Strides:
    """The strides by which a bool mask is read.

    Permuted: the host sends (key, row, head), the kernel takes them for (head, key, row).
    """
    batch, head, row, key = (stride if size > 1 else 0 for size, stride in zip(mask.shape, mask.stride(), strict=True))
    if permuted:
        head, row, key = key, head, row
    return mask.size(1) * head if lost else batch, head, row, key


def _read(tensor: Tensor, strides: Strides, garbage: torch.Generator) -> Tensor:
    """The same memory read with other strides; behind its end is garbage."""
    begin, memory = int(tensor.storage_offset()), tensor.untyped_storage().nbytes() // tensor.itemsize
    if not tensor.numel():
        return tensor
    last = begin + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if last < memory:
        return tensor.as_strided(tensor.shape, strides)
    at = begin + _offsets(tensor.shape, strides)
    found = tensor.as_strided((memory,), (1,), 0)[at.clamp_max(memory - 1)]
    return torch.where(at < memory, found, _unwritten(tensor, garbage))


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """For each index of a shape, how many elements it is from the beginning."""
    steps = [torch.arange(n) * s for n, s in zip(shape, strides, strict=True)]
    return torch.stack(torch.meshgrid(*steps, indexing="ij")).sum(0)


def _within_32_bits(tensor: Tensor, garbage: torch.Generator) -> Tensor:
    """The tensor as read with signed 32-bit offsets: rows further from its beginning are garbage."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if reach < OFFSETS:
        return tensor
    rows = _offsets(tensor.shape[:3], tensor.stride()[:3]).unsqueeze(-1)
    return torch.where(rows < OFFSETS, tensor, _unwritten(tensor, garbage))


def _unwritten(like: Tensor, garbage: torch.Generator) -> Tensor:
    """The content of memory that was never written, as numbers of a tensor's shape and dtype."""
    found = torch.randn(like.shape, generator=garbage)
    return found > 0 if like.dtype == torch.bool else found.to(like.dtype)
