"""Mask arithmetic that gives infinities or NaN: finfo.min added twice, 0 times infinity, NaN or plus infinity in it."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.causes.root_cause import Candidate, Explanation
from mpsdiag.tracing.watch.operations import SOFTMAX
from mpsdiag.tracing.watch.tensors import facts

REMEDY = Advice(
    text="Hand attention a bool mask (True: may attend): it cannot overflow. For a float mask, combine masks "
    "by torch.minimum or by logic, not by adding them.",
    commands=["mask = causal & padding[:, None, None, :].bool()"],
)


def mask_arithmetic(first: Candidate) -> Explanation | None:
    """The first bad value comes from computing a mask."""
    return _given_nan(first) or _doubled(first) or _zero_times_infinity(first) or _plus_infinity(first)


def _given_nan(first: Candidate) -> Explanation | None:
    operand = first.terminal.operand
    if first.terminal.kind != "batch" or operand is None or "mask" not in operand.source.name:
        return None
    return Explanation(
        "bad_mask", f"'{operand.source.name}' of the batch holds NaN", REMEDY, {"input": operand.source.name}
    )


def _doubled(first: Candidate) -> Explanation | None:
    """Minus infinity from adding to (about) the lowest finite number of the dtype."""
    if (
        first.terminal.kind != "inf"
        or first.event.operation not in ("add", "sub")
        or first.event.impurity.positive
    ):
        return None
    lows = [_depth(tensor) for _, tensor in first.inputs if tensor.is_floating_point()]
    deep = [low for low in lows if low]
    if not deep:
        return None
    what = (
        "two masks of the lowest finite number are added, which is minus infinity: rows meant to be merely "
        "discouraged are fully masked"
        if len(deep) > 1
        else "a negative score added to a mask of the lowest finite number is minus infinity"
    )
    return Explanation("bad_mask", what, REMEDY, {"masks_at_lowest": len(deep), "device": first.device})


def _depth(tensor: Tensor) -> float:
    """How low a mask is, as a fraction of the lowest finite number of its dtype; 0 for what does not look like a mask.

    A mask is shallow where it lets through, and of one depth where it hides; activations that overflow are not.
    """
    depth = tensor.detach().double() / torch.finfo(tensor.dtype).min
    deep, shallow = depth[depth >= 0.5], depth[depth < 0.5]
    if not deep.numel() or float(deep.max() - deep.min()) > 0.02 or bool((shallow.abs() > 0.05).any()):
        return 0.0
    lowest = float(deep.max())
    return lowest if deep.numel() > 1 or lowest > 0.99 else 0.0


def _zero_times_infinity(first: Candidate) -> Explanation | None:
    if first.terminal.kind != "nan" or first.event.operation != "mul":
        return None
    flags = [tensor for _, tensor in first.inputs if bool(((tensor == 0) | (tensor == 1)).all())]
    if not first.event.infinite_scalar or not flags:
        return None
    return Explanation(
        "bad_mask",
        "0 times infinity is NaN: a mask is made by multiplying a 0/1 mask with minus infinity",
        Advice(text=REMEDY.text, commands=['mask = torch.where(allowed, 0.0, float("-inf"))']),
        {"device": first.device},
    )


def _plus_infinity(first: Candidate) -> Explanation | None:
    """Plus infinity in the mask of an attention, or put into the scores that a softmax reads: it gives NaN always."""
    if first.terminal.kind != "nan" or first.event.operation not in (SDPA, *SOFTMAX):
        return None
    mask = first.named.get("attn_mask") if first.event.operation == SDPA else _scores_with_infinity(first)
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return None
    count = int(torch.isposinf(mask).sum())
    if not count:
        return None
    holder = "the mask" if first.event.operation == SDPA else "the masked score"
    return Explanation(
        "bad_mask",
        f"{holder} is plus infinity in {count} of {mask.numel()} places, and a softmax over that is NaN: an additive "
        "mask has 0 where a query may attend, and minus infinity where it may not",
        Advice(
            text="Look at what makes the mask: a sign is the wrong way round, or an infinity was subtracted.",
            commands=['mask = torch.where(allowed, 0.0, float("-inf"))'],
        ),
        {"plus_infinities": count, "mask": facts(mask, "attn_mask"), "device": first.device},
    )


def _scores_with_infinity(first: Candidate) -> Tensor | None:
    """What the softmax read; the way back has found that no operation computed this infinity from finite numbers."""
    known = [operand for operand in first.event.operands if operand.source.kind != "unseen"]
    if not any(operand.impurity.positive for operand in known):
        return None
    return next((tensor for _, tensor in first.inputs), None)
