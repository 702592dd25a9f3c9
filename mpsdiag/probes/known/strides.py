"""Kernels that read the wrong memory because they assume how a tensor is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Skip, shows

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

HEADS, HEAD_DIM = 3, 64
VECTOR_HEAD_DIMS: Final = frozenset({64, 96, 128})
"""Head dims of the vector kernels up to torch 2.12 (table 1 of the facts)."""


def in_vector_kernel(at: Mapping[str, Any]) -> bool:
    """Whether a combination of the sweep reaches the vector kernels up to torch 2.12."""
    return bool(at["queries"] <= 8 and at["mask"] == "none" and at["head_dim"] in VECTOR_HEAD_DIMS)


def _explains_batch_strides(at: Mapping[str, Any]) -> bool:
    return in_vector_kernel(at) and at["layout"] == "transposed"


def _transposed(lab: Lab, batch: int, length: int, keys: int) -> tuple[Any, Any, Any]:
    """Make query, key and value as models do: projected to (B, L, H, D), then viewed as (B, H, L, D)."""
    q, k, v = lab.qkv((batch, length, HEADS, HEAD_DIM), (batch, keys, HEADS, HEAD_DIM))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


@shows("SDPA002", explains=lambda at: _explains_batch_strides(at) and at["queries"] > 1)
def _query_strides(lab: Lab) -> Iterator[Check]:
    for length in (2, 8):
        yield lab.check(f"transposed, {length} queries", *_transposed(lab, 1, length, 16))


@shows("SDPA003", explains=_explains_batch_strides)
def _batch_strides(lab: Lab) -> Iterator[Check]:
    yield lab.check("permuted, batch of 4, 3 queries", *_transposed(lab, 4, 3, 3))


@shows("SDPA032")
def _batch_and_alone(lab: Lab) -> Iterator[Check]:
    """Each sequence gives the same alone and in a batch; both may be off by the bound."""
    import torch

    from mpsdiag.sdpa.float64 import Yardstick

    for dtype in lab.each_dtype("float32", "bfloat16"):
        for length in (7, 12):
            q, k, v = (x.to(dtype=getattr(torch, dtype)) for x in _transposed(lab, 3, length, length))
            with lab.control():
                one_by_one = [[x[i : i + 1].detach().clone() for x in (q, k, v)] for i in range(3)]
            together = lab.attend(q, k, v)
            alone = [lab.attend(*one) for one in one_by_one]
            bound = 2 * lab.yardstick(q, k, v).bound
            with lab.control():
                yardstick = Yardstick(torch.cat(alone).double(), bound)
            yield lab.judged(f"3 sequences of {length} tokens, {dtype}", together, yardstick)


def _require_operator(lab: Lab) -> None:
    """Skip if the MPS operation itself cannot be called: on other devices, and with gradients."""
    lab.require_mps("the operation exists only on MPS")
    if lab.training:
        raise Skip("the operation that takes such a mask has no gradient")


@shows("SDPA005")
def _mask_strides(lab: Lab) -> Iterator[Check]:
    import torch

    _require_operator(lab)
    q, k, v = lab.qkv((1, 1, 8, HEAD_DIM), (1, 1, 512, HEAD_DIM))
    ones = torch.ones(8, 512, dtype=torch.bool, device=lab.device)
    striped = ones & (torch.arange(512, device=lab.device) % 3 > 0)
    yield lab.check("mask of ones (8, 512)", q, k, v, ones, call=lab.direct)
    yield lab.check("mask that hides every third key (8, 512)", q, k, v, striped, call=lab.direct)


@shows("SDPA006")
def _mask_batch_offset(lab: Lab) -> Iterator[Check]:
    import torch

    _require_operator(lab)
    q, k, v = lab.qkv((2, 4, 8, HEAD_DIM))
    lower = torch.ones(8, 8, dtype=torch.bool, device=lab.device).tril()
    mask = torch.stack([lower, lower.flip(1).flip(0)])[:, None]
    yield lab.check("mask (2, 1, 8, 8) that differs within the batch", q, k, v, mask, call=lab.direct)


@shows("SDPA029")
def _dead_boolean_rows(lab: Lab) -> Iterator[Check]:
    """Every row is fully masked, and the mask is square, so that no other misreading of it makes a difference."""
    import torch

    _require_operator(lab)
    if lab.release < (2, 8):
        raise Skip("torch below 2.8 has no vector kernels")
    q, k, v = lab.qkv((1, 2, 8, HEAD_DIM))
    mask = torch.zeros(8, 8, dtype=torch.bool, device=lab.device)
    yield lab.check("mask of zeros (8, 8)", q, k, v, mask, call=lab.direct)
