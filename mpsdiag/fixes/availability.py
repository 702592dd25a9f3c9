"""Whether flex_attention can run here: asked of torch itself, not of its version."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

_COMPILERS = ("c++", "g++", "clang++", "cl")


def flex_attention(device: str, dtype: str, training: bool) -> str | None:
    """Say why flex_attention cannot run, or None if it can.

    Args:
        device: Device type, such as `cpu`.
        dtype: Such as `float32`.
        training: Whether gradients are wanted.
    """
    if device != "cuda" and dtype == "float64":
        return f"flex_attention does not compute in float64 on {device}"
    try:
        from torch.nn.attention import flex_attention as flex
    except ImportError:
        return "flex_attention needs torch 2.5 or later"
    validate = getattr(flex, "_validate_device", None)
    if validate is None and device != "cuda":
        return f"flex_attention of this torch runs on CUDA only, not on {device}"
    if validate is not None:
        # torch's own check reads the device and whether a gradient is wanted, no more: no device is touched.
        tensor = SimpleNamespace(device=SimpleNamespace(type=device), requires_grad=training)
        try:
            validate(tensor, tensor, tensor)
        except (NotImplementedError, ValueError) as refusal:
            return f"flex_attention cannot {'train' if training else 'run'} on {device}: {refusal}"
    if device == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        return "flex_attention is compiled on the CPU, and no C++ compiler was found (install g++ or clang++)"
    return None
