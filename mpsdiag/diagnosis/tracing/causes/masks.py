"""Mask arithmetic that gives infinities or NaN: finfo.min added twice, 0 times minus infinity, NaN in a given mask."""

from __future__ import annotations

import torch
from torch import Tensor

from mpsdiag.diagnosis.diagnosis import Advice
from mpsdiag.diagnosis.tracing.causes.birth import Birth, Explanation

REMEDY = Advice(
    text="Hand attention a bool mask (True: may attend): it cannot overflow. For a float mask, combine masks "
    "by torch.minimum or by logic, not by adding them.",
    commands=["mask = causal & padding[:, None, None, :].bool()"],
)


def mask_arithmetic(birth: Birth) -> Explanation | None:
    """The first bad value comes from computing a mask."""
    return _given_nan(birth) or _doubled(birth) or _zero_times_infinity(birth)


def _given_nan(birth: Birth) -> Explanation | None:
    operand = birth.terminal.operand
    if birth.terminal.kind != "batch" or operand is None or "mask" not in operand.source.name:
        return None
    return Explanation(
        "bad_mask", f"'{operand.source.name}' of the batch holds NaN", REMEDY, {"input": operand.source.name}
    )


def _doubled(birth: Birth) -> Explanation | None:
    """Minus infinity from adding to (about) the lowest finite number of the dtype."""
    if (
        birth.terminal.kind != "inf"
        or birth.event.operation not in ("add", "sub")
        or birth.event.impurity.positive
    ):
        return None
    lows = [_depth(tensor) for _, tensor in birth.inputs if tensor.is_floating_point()]
    deep = [low for low in lows if low >= 0.5]
    if not deep:
        return None
    what = (
        "two masks of the lowest finite number are added, which is minus infinity: rows meant to be merely "
        "discouraged are fully masked"
        if len(deep) > 1
        else "a negative score added to a mask of the lowest finite number is minus infinity"
    )
    return Explanation("bad_mask", what, REMEDY, {"masks_at_lowest": len(deep), "device": birth.device})


def _depth(tensor: Tensor) -> float:
    """The least value of a tensor as a fraction of the lowest finite number of its dtype."""
    return float(tensor.detach().min()) / torch.finfo(tensor.dtype).min if tensor.numel() else 0.0


def _zero_times_infinity(birth: Birth) -> Explanation | None:
    if birth.terminal.kind != "nan" or birth.event.operation != "mul":
        return None
    flags = [tensor for _, tensor in birth.inputs if bool(((tensor == 0) | (tensor == 1)).all())]
    if not birth.event.infinite_scalar or not flags:
        return None
    return Explanation(
        "bad_mask",
        "0 times infinity is NaN: a mask is made by multiplying a 0/1 mask with minus infinity",
        Advice(text=REMEDY.text, commands=['mask = torch.where(allowed, 0.0, float("-inf"))']),
        {"device": birth.device},
    )
