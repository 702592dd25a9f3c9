"""Causal attention: keys of the future that leak in, and a mask given beside is_causal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mpsdiag.probes.declaration import Check, probe

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab


def _future_keys(lab: Lab) -> Iterator[Check]:
    """With equal scores and the key's index as its value, row i must be i / 2; random inputs follow."""
    import torch

    for dtype in ("bfloat16", "float16"):
        lab.require_dtype(dtype)
        for head_dim in (64, 48):
            q, k, v = lab.qkv((1, 4, 64, head_dim), dtype=dtype)
            yield lab.check(f"random, {dtype}, head dim {head_dim}", q, k, v, is_causal=True)
        _, _, v = lab.qkv((1, 1, 16, 64), dtype=dtype)
        flat = torch.zeros_like(v)
        with torch.no_grad():
            v.copy_(torch.arange(16, device=v.device).view(1, 1, 16, 1).expand_as(v))
        yield lab.check(f"value = key index, {dtype}", flat, flat.clone(), v, is_causal=True)


def _causal_with_mask(lab: Lab) -> Iterator[Check]:
    """Refusing is right, and so is combining the two; only taking the process down is not."""
    import torch

    from mpsdiag.emulation import EmulatedAbort

    q, k, v = lab.qkv((1, 2, 16, 64))
    mask = torch.zeros(1, 1, 16, 16, device=q.device)
    try:
        lab.attend(q, k, v, mask, is_causal=True)
    except EmulatedAbort:
        raise
    except (RuntimeError, ValueError):
        yield Check("mask and is_causal", ok=True, seen="refused", mode=lab.mode)
        return
    yield Check("mask and is_causal", ok=True, seen="accepted", mode=lab.mode)


def _explains_leak(at: Mapping[str, Any]) -> bool:
    return at["mask"] == "causal" and at["dtype"] in {"bfloat16", "float16"}


PROBES: Final = (
    probe("SDPA014", _future_keys, explains=_explains_leak),
    probe("SDPA017", _causal_with_mask),
)
