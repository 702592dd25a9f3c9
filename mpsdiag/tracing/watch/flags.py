"""The cheap pass: is anything non-finite at all? Scalars that stay on the device, and are read together, once a step.

`trace` and `run --trace` share it: one flag a forward, and nothing for the modules within.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpsdiag.tracing.watch.tensors import judged_in, unseen


def flag_of(output: Any) -> Tensor | None:
    """A float32 scalar on the device of an output: NaN or plus infinity if what has to be finite in it is not; or None.

    The greatest value passes NaN on, and leaves out the minus infinities that rule tokens out.
    """
    flag = None
    with torch.no_grad(), unseen():
        for _, tensor in judged_in(output):
            if _is_judged(tensor):
                values = tensor.detach()
                highest = (values.amax() if values.numel() > 1 else values.abs().reshape(())).float()
                flag = highest if flag is None else torch.maximum(flag, highest.to(flag.device))
    return flag


def is_up(flag: float) -> bool:
    """Whether a flag that was read says so."""
    return math.isnan(flag) or flag == math.inf


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, a scalar on the device of the first; that of finite ones may overflow."""
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    norms = torch._foreach_norm(dense)  # noqa: SLF001 - what clip_grad_norm_ calls
    total: Tensor = torch.linalg.vector_norm(_together([norm.float() for norm in norms]))
    return total


def numbers(*parts: Sequence[Tensor]) -> list[list[float]]:
    """Scalars on any device as numbers, part by part. Waits for the device, once."""
    every = [tensor for part in parts for tensor in part]
    with torch.no_grad(), unseen():
        if all(tensor.device.type == "cpu" for tensor in every):  # Nothing waits there, and nothing has to be stacked.
            read = iter([tensor.item() for tensor in every])
        else:
            read = iter(_together([tensor.detach().reshape(()).float() for tensor in every]).cpu().tolist())
    return [[float(next(read)) for _ in part] for part in parts]


def _is_judged(tensor: Tensor) -> bool:
    """Dense, with values, of a dtype that has a maximum: eight-bit floats have none."""
    plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    return plain and tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.numel() > 0


def _together(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.to(values[0].device) for value in values])
