"""Mask arithmetic that gives infinities or NaN: finfo.min added twice, 0 times infinity, plus infinity in a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.findings import Advice
from mpsdiag.sdpa.watch import SDPA
from mpsdiag.tracing.causes.root_cause import Candidate
from mpsdiag.tracing.origin import Origin
from mpsdiag.tracing.watch.operations import SOFTMAX
from mpsdiag.tracing.watch.tensors import facts

MASK_REMEDY = Advice(
    text="Hand attention a bool mask (True: may attend): it cannot overflow. For a float mask, combine masks "
    "by torch.minimum or by logic, not by adding them.",
    commands=["mask = causal & padding[:, None, None, :].bool()"],
)
_ADDITIVE = 'mask = torch.where(allowed, 0.0, float("-inf"))'


def mask_arithmetic(first: Candidate) -> Origin | None:
    """The first bad value comes from computing a mask."""
    return _doubled(first) or _zero_times_infinity(first) or _plus_infinity(first)


def _doubled(first: Candidate) -> Origin | None:
    """Minus infinity from adding to (about) the lowest finite number of the dtype."""
    adds = first.terminal.kind == "inf" and first.event.operation in ("add", "sub")
    if not adds or first.event.impurity.positive:
        return None
    deep = sum(_looks_masked(tensor) for _, tensor in first.inputs if tensor.is_floating_point())
    if not deep:
        return None
    what = (
        "two masks of the lowest finite number are added, which is minus infinity: rows meant to be merely "
        "discouraged are fully masked"
        if deep > 1
        else "a negative score added to a mask of the lowest finite number is minus infinity"
    )
    return first.origin("bad_mask", what, MASK_REMEDY, masks_at_lowest=deep)


def _looks_masked(tensor: Tensor) -> bool:
    """Whether a tensor looks like a mask that hides by about the lowest finite number of its dtype.

    A mask is near zero where it lets through, and of one depth where it hides; activations that overflow are not.
    """
    depth = tensor.detach().double() / torch.finfo(tensor.dtype).min
    deep, shallow = depth[depth >= 0.5], depth[depth < 0.5]
    if not deep.numel() or float(deep.max() - deep.min()) > 0.02 or bool((shallow.abs() > 0.05).any()):
        return False
    return deep.numel() > 1 or float(deep.max()) > 0.99


def _zero_times_infinity(first: Candidate) -> Origin | None:
    if first.terminal.kind != "nan" or first.event.operation != "mul":
        return None
    flags = [tensor for _, tensor in first.inputs if bool(((tensor == 0) | (tensor == 1)).all())]
    if not first.event.infinite_scalar or not flags:
        return None
    return first.origin(
        "bad_mask",
        "0 times infinity is NaN: a mask is made by multiplying a 0/1 mask with minus infinity",
        Advice(text=MASK_REMEDY.text, commands=[_ADDITIVE]),
    )


def _plus_infinity(first: Candidate) -> Origin | None:
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
    return first.origin(
        "bad_mask",
        f"{holder} is plus infinity in {count} of {mask.numel()} places, and a softmax over that is NaN: an additive "
        "mask has 0 where a query may attend, and minus infinity where it may not",
        Advice(
            text="Look at what makes the mask: a sign is the wrong way round, or an infinity was subtracted.",
            commands=[_ADDITIVE],
        ),
        plus_infinities=count,
        mask=facts(mask, "attn_mask"),
    )


def _scores_with_infinity(first: Candidate) -> Tensor | None:
    """What the softmax read; the way back has found that no operation computed this infinity from finite numbers."""
    known = [operand for operand in first.event.operands if operand.source.kind != "unseen"]
    if not any(operand.impurity.positive for operand in known):
        return None
    return next((tensor for _, tensor in first.inputs), None)
