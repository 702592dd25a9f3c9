"""Kernels that read the wrong memory because they assume how a tensor is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, Probe, Remedy, Skip, span

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

HEADS, HEAD_DIM = 3, 64
CONTIGUOUS: Final = Remedy(
    "Upgrade torch, or call .contiguous() on query, key and value before the attention.",
    ("pip install --upgrade 'torch>=2.12'",),
)
VECTOR_HEAD_DIMS: Final = frozenset({64, 96, 128})
"""Head dims of the vector kernels up to torch 2.12 (table 1 of the facts)."""


def _transposed(lab: Lab, batch: int, length: int, keys: int) -> tuple[Any, Any, Any]:
    """Make query, key and value as models do: projected to (B, L, H, D), then seen as (B, H, L, D)."""
    q, k, v = lab.qkv((batch, length, HEADS, HEAD_DIM), (batch, keys, HEADS, HEAD_DIM))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _query_strides(lab: Lab) -> Iterator[Check]:
    for length in (2, 8):
        yield lab.check(f"transposed, {length} queries", *_transposed(lab, 1, length, 16))


def _batch_strides(lab: Lab) -> Iterator[Check]:
    yield lab.check("permuted, batch of 4, 3 queries", *_transposed(lab, 4, 3, 3))


def _batch_and_alone(lab: Lab) -> Iterator[Check]:
    """Each sequence gives the same alone and in a batch; both may be off by the bound."""
    import torch

    from mpsdiag.probes.judge import Yardstick

    for dtype in ("float32", "bfloat16"):
        lab.require_dtype(dtype)
        for length in (7, 12):
            q, k, v = (x.to(dtype=getattr(torch, dtype)) for x in _transposed(lab, 3, length, length))
            with lab.control():
                one_by_one = [[x[i : i + 1].detach().clone() for x in (q, k, v)] for i in range(3)]
            together = lab.attend(q, k, v)
            alone = [lab.attend(*one) for one in one_by_one]
            bound = 2 * lab.yardstick(q, k, v).bound
            with lab.control():
                ok, seen, error = Yardstick(torch.cat(alone).double(), bound).judge(together)
            yield Check(f"3 sequences of {length} tokens, {dtype}", ok, seen, lab.mode, error, bound)


def _require_operator(lab: Lab) -> None:
    """Go on only where the MPS operation itself can be called.

    Raises:
        Skip: Not on MPS, or with gradients.
    """
    lab.require_mps("the operation exists on MPS only")
    if lab.training:
        raise Skip("the operation that takes such a mask has no gradient")


def _mask_strides(lab: Lab) -> Iterator[Check]:
    import torch

    _require_operator(lab)
    q, k, v = lab.qkv((1, 1, 8, HEAD_DIM), (1, 1, 512, HEAD_DIM))
    ones = torch.ones(8, 512, dtype=torch.bool, device=lab.device)
    striped = ones & (torch.arange(512, device=lab.device) % 3 > 0)
    yield lab.check("mask of ones (8, 512)", q, k, v, ones, call=lab.direct)
    yield lab.check("mask that hides every third key (8, 512)", q, k, v, striped, call=lab.direct)


def _mask_batch_offset(lab: Lab) -> Iterator[Check]:
    import torch

    _require_operator(lab)
    q, k, v = lab.qkv((2, 4, 8, HEAD_DIM))
    lower = torch.ones(8, 8, dtype=torch.bool, device=lab.device).tril()
    mask = torch.stack([lower, lower.flip(1).flip(0)])[:, None]
    yield lab.check("mask (2, 1, 8, 8) that differs within the batch", q, k, v, mask, call=lab.direct)


def _dead_boolean_rows(lab: Lab) -> Iterator[Check]:
    """Every row of the mask is dead, and it is square, so that no other misreading of it makes a difference."""
    import torch

    _require_operator(lab)
    if lab.release < (2, 8):
        raise Skip("torch below 2.8 has no vector kernels")
    q, k, v = lab.qkv((1, 2, 8, HEAD_DIM))
    mask = torch.zeros(8, 8, dtype=torch.bool, device=lab.device)
    yield lab.check("mask of zeros (8, 8)", q, k, v, mask, call=lab.direct)


def _explains_query_strides(at: Mapping[str, Any]) -> bool:
    return _vector(at) and at["layout"] == "transposed" and at["queries"] > 1


def _explains_batch_strides(at: Mapping[str, Any]) -> bool:
    return _vector(at) and at["layout"] == "transposed"


def _vector(at: Mapping[str, Any]) -> bool:
    return bool(at["queries"] <= 8 and at["mask"] == "none" and at["head_dim"] in VECTOR_HEAD_DIMS)


PROBES: Final = (
    Probe(
        id="SDPA002",
        title="Strides of the query are ignored for 2 to 8 queries",
        symptom="Wrong values, no error, in short prefills and speculative decoding with transposed queries.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/163597",
            "https://github.com/pytorch/pytorch/pull/163598",
        ),
        releases=span(8, 8),
        fixed="2.9.0",
        hits="evaluation",
        remedy=CONTIGUOUS,
        trigger=_query_strides,
        bad="wrong values",
        good="right values",
        first_macos=15,
        explains=_explains_query_strides,
    ),
    Probe(
        id="SDPA003",
        title="Batch stride is assumed: permuted inputs go wrong in a batch",
        symptom="A batch gives other values than its samples one by one; accuracy drops without any error.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/181133",
            "https://github.com/pytorch/pytorch/pull/181151",
            "https://github.com/PriorLabs/TabPFN/issues/888",
        ),
        releases=span(8, 11),
        fixed="2.12.0",
        hits="evaluation",
        remedy=CONTIGUOUS,
        trigger=_batch_strides,
        bad="wrong values",
        good="right values",
        first_macos=15,
        explains=_explains_batch_strides,
    ),
    Probe(
        id="SDPA005",
        title="The vector kernel walks a boolean mask with permuted strides",
        symptom="Only callers of the MPS operation itself: keys are shown or hidden at random.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/182285",
            "https://github.com/pytorch/pytorch/pull/182311",
        ),
        releases=span(8, 11),
        fixed="2.12.0",
        hits="evaluation",
        remedy=Remedy("Call F.scaled_dot_product_attention, which turns boolean masks into additive ones."),
        trigger=_mask_strides,
        bad="wrong values",
        good="right values",
    ),
    Probe(
        id="SDPA006",
        title="The vector kernel takes the first sample's mask for the whole batch",
        symptom="Only callers of the MPS operation itself, with a mask (B, 1, L, S): later samples see other keys.",
        upstream=("https://github.com/pytorch/pytorch/issues/184180",),
        releases=span(8, 12),
        fixed="2.13.0",
        hits="evaluation",
        remedy=Remedy(
            "Call F.scaled_dot_product_attention, or expand the mask to a contiguous (B, H, L, S)."
        ),
        trigger=_mask_batch_offset,
        bad="wrong values",
        good="right values",
    ),
    Probe(
        id="SDPA032",
        title="A batch gives other values than its sequences alone",
        symptom="Scores of BERT and RoBERTa change with the batch size, although nothing is padded.",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/170837",
            "https://github.com/pytorch/pytorch/pull/170874",
            "https://github.com/pytorch/pytorch/issues/196886",
        ),
        releases=span(9, 11),
        fixed="2.12.0 on MPS, where it is SDPA003 (in 2.8 a sequence alone is wrong too); rounding is not judged",
        hits="evaluation",
        remedy=CONTIGUOUS,
        trigger=_batch_and_alone,
        bad="wrong values",
        good="right values",
        first_macos=15,
    ),
    Probe(
        id="SDPA029",
        title="The vector kernel gives NaN where a boolean mask hides every key",
        symptom="Only callers of the MPS operation itself, with up to 8 queries and 1023 keys: NaN in such rows.",
        upstream=(),
        releases=span(8, 12),
        fixed="2.13.0; seen in the shipped kernel, not confirmed on a Mac",
        hits="evaluation",
        remedy=Remedy("Call F.scaled_dot_product_attention, which turns boolean masks into additive ones."),
        trigger=_dead_boolean_rows,
        bad="NaN",
        good="zeros",
    ),
)
