"""Results misplaced, or made from memory that nobody wrote (SDPA009, SDPA018).

What the real thing leaves there depends on what else the process did. Here it comes from the machine's seeded
generator: a run repeats, two calls in it differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SCORES_TO_CORRUPTION = 1 << 32
"""Scores from which on float32 heads were seen corrupt."""
SCORES_TO_CORRUPTION_HALF = 3 << 31
"""The same for half types, where 5.8e9 scores were seen right and 7.2e9 corrupt; between the two."""


def laid_out_for_another_width(output: Tensor, width: int, garbage: torch.Generator) -> Tensor:
    """The result written into an output allocated with the query's head dimension (SDPA009).

    Args:
        output: `(B, H, L, Dv)`, what the graph writes, row after row.
        width: Head dimension of the query, which the output gets.
        garbage: What lies behind the last value written.

    Returns:
        `(B, H, L, width)`; equal to `output` if the widths are.
    """
    if output.size(3) == width:
        return output
    shape = (*output.shape[:3], width)
    memory = torch.randn(shape, generator=garbage).to(output.dtype).flatten()
    written = output.flatten()[: memory.numel()]
    memory[: written.numel()] = written
    return memory.view(shape)


def corrupt_far_heads(output: Tensor, keys: int, garbage: torch.Generator) -> Tensor:
    """The result where heads whose scores begin beyond 2**32 come out wrong (SDPA018).

    Args:
        output: `(B, H, L, Dv)`; changed in place.
        keys: Number of keys.
        garbage: Source of the wrong values, some tens of times the largest right one, as was seen.

    Returns:
        `output`.
    """
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
