"""Arguments that are misread, ignored or forgotten: is_causal, scale, attn_mask, dropout_p, the value's width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, shows

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab

# Shapes used nowhere else: the cache lives as long as the process, and the first call of a shape is what counts.
# A head dim of 40 keeps every release on the graph path.
SCALE_SHAPE: Final = (1, 2, 19, 40)
MASK_SHAPE: Final = (1, 2, 21, 40)


@shows("SDPA014", explains=lambda at: at["mask"] == "causal" and at["dtype"] in {"bfloat16", "float16"})
def _future_keys(lab: Lab) -> Iterator[Check]:
    """With equal scores and the key's index as its value, row i must be i / 2; random inputs follow."""
    import torch

    for dtype in lab.each_dtype("bfloat16", "float16"):
        for head_dim in (64, 48):
            q, k, v = lab.qkv((1, 4, 64, head_dim), dtype=dtype)
            yield lab.check(f"random, {dtype}, head dim {head_dim}", q, k, v, is_causal=True)
        _, _, v = lab.qkv((1, 1, 16, 64), dtype=dtype)
        flat = torch.zeros_like(v)
        with torch.no_grad():
            v.copy_(torch.arange(16, device=v.device).view(1, 1, 16, 1).expand_as(v))
        yield lab.check(f"value = key index, {dtype}", flat, flat.clone(), v, is_causal=True)


@shows("SDPA017")
def _causal_with_mask(lab: Lab) -> Iterator[Check]:
    """Refusing is correct, and so is combining the two; only taking the process down is not."""
    import torch

    from mpsdiag.emulation.selection import EmulatedAbort

    q, k, v = lab.qkv((1, 2, 16, 64))
    mask = torch.zeros(1, 1, 16, 16, device=q.device)
    try:
        lab.attend(q, k, v, mask, is_causal=True)
        seen = "accepted"
    except EmulatedAbort:
        raise
    except (RuntimeError, ValueError):
        seen = "refused"
    yield Check("mask and is_causal", ok=True, seen=seen, mode=lab.mode)


@shows("SDPA015")
def _scale(lab: Lab) -> Iterator[Check]:
    q, k, v = lab.qkv(SCALE_SHAPE)
    yield lab.check("first call, scale 1.0", q, k, v, scale=1.0)
    yield lab.check("second call, scale 0.1", q, k, v, scale=0.1)


@shows("SDPA016")
def _mask_shape_and_dtype(lab: Lab) -> Iterator[Check]:
    length = MASK_SHAPE[2]
    q, k, v = lab.qkv(MASK_SHAPE)
    row = lab.randn(1, 1, 1, length, stream=4)
    yield lab.check("first call, mask of one row", q, k, v, row)
    yield lab.check("second call, mask of all rows", q, k, v, lab.randn(1, 1, length, length, stream=5))
    lab.require_dtype("float16")
    q, k, v = lab.qkv(MASK_SHAPE, dtype="float16")
    wide = lab.randn(1, 1, length, length, stream=6)
    yield lab.check("float16, first call, float32 mask", q, k, v, wide)
    narrow = lab.randn(1, 1, length, length, dtype="float16", stream=7)
    yield lab.check("float16, second call, float16 mask", q, k, v, narrow)


@shows("SDPA008")
def _dropout(lab: Lab) -> Iterator[Check]:
    """Dropout of 0.9 must change the output, or be refused as torch 2.13 and newer do."""
    import torch

    q, k, v = lab.qkv((1, 2, 4, 8))
    plain = lab.attend(q, k, v)
    try:
        torch.manual_seed(lab.seed)
        dropped = lab.attend(q, k, v, dropout_p=0.9)
    except NotImplementedError:
        yield Check("dropout_p=0.9", ok=True, seen="refused", mode=lab.mode)
        return
    with lab.control():
        same = bool(torch.equal(plain, dropped))
    yield Check("dropout_p=0.9", not same, "dropout ignored" if same else "dropout applied", lab.mode)


@shows("SDPA009")
def _value_width(lab: Lab) -> Iterator[Check]:
    q, k, _ = lab.qkv((1, 2, 16, 32))
    yield lab.check("query and key 32 wide, value 24", q, k, lab.randn(1, 2, 16, 24, stream=3))
