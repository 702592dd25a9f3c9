"""Fully masked rows: the defect for which this project was started, and related ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Skip, shows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mpsdiag.probes.lab import Lab
    from mpsdiag.sdpa.float64 import Yardstick

DTYPES: Final = ("float32", "bfloat16", "float16")
SHORT, LONG, PADS, HEAD_DIM = 4, 16, 2, 64
"""Query lengths on either side of the vector kernels' limit of 8, left padding, a head dim that every kernel takes."""

MINIMUM: Final = "finfo.min mask"
COLD: Final = "finfo.min mask on scores near -20"


def left_padded(length: int, pads: int) -> Tensor:
    """Make a left-padded causal mask (1, 1, length, length), True = may attend; `pads` rows are fully masked."""
    import torch

    lower = torch.ones(length, length, dtype=torch.bool).tril()
    return (lower & (torch.arange(length) >= pads))[None, None]


def additive(mask: Tensor, dtype: torch.dtype, fill: float) -> Tensor:
    """Convert a boolean mask to an additive one: 0 where True, `fill` where False."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, fill)


def dead_row_note(checks: Sequence[Check]) -> str:
    """One sentence about the values of fully masked rows, by mask kind; any finite value under finfo.min is allowed.

    A finfo.min mask only shifts all scores of such a row by a constant, so the result is not prescribed: float32 and
    bfloat16 round it to the mean of V, float16 keeps the softmax of the raw scores, some kernels give zeros.
    """
    groups: dict[str, dict[str, None]] = {}
    for check in checks:
        kind = check.name.partition(",")[0]
        groups.setdefault(kind, {}).setdefault(check.seen)
    return "rows without a key: " + "; ".join(f"{kind}: {', '.join(seen)}" for kind, seen in groups.items())


@shows("SDPA001", explains=lambda at: at["mask"] in {"bool", "-inf"}, note=dead_row_note)
def _fully_masked_rows(lab: Lab) -> Iterator[Check]:
    import torch

    from mpsdiag.device import supports_dtype, torch_dtype

    refusals = {name: supports_dtype(lab.device, name) for name in DTYPES}
    if all(refusals.values()):
        raise Skip(str(refusals["float32"]))
    for length in (SHORT, LONG):
        mask = left_padded(length, PADS)
        live = mask.any(-1)
        on_device = mask.to(lab.device)
        for dtype in (name for name in DTYPES if refusals[name] is None):
            number = torch_dtype(dtype)
            lowest = torch.finfo(number).min
            q, k, v = lab.qkv((1, 2, length, HEAD_DIM), dtype=dtype)
            yardstick = lab.yardstick(q, k, v, mask)
            masks = {
                "bool mask": on_device,
                "-inf mask": additive(on_device, number, -torch.inf),
                MINIMUM: additive(on_device, number, lowest),
            }
            for kind, given in masks.items():
                output = lab.attend(q, k, v, given)
                name = f"{kind}, {dtype}, {length} queries"
                yield _judge(lab, name, (q, k, v), output, yardstick, live, lenient=kind == MINIMUM)
            if dtype == "float16":
                q, k = torch.full_like(q, 1.0).detach(), torch.full_like(k, -2.5).detach()
                yardstick = lab.yardstick(q, k, v, mask)
                output = lab.attend(q, k, v, masks[MINIMUM])
                name = f"{COLD}, {dtype}, {length} queries"
                yield _judge(lab, name, (q, k, v), output, yardstick, live, lenient=True)


def _judge(
    lab: Lab,
    name: str,
    inputs: tuple[Tensor, Tensor, Tensor],
    output: Tensor,
    yardstick: Yardstick,
    live: Tensor,
    *,
    lenient: bool,
) -> Check:
    """Judge real rows by the bound; fully masked rows must be zeros under bool and -inf, and finite under finfo.min."""
    import torch

    made = lab.judged(name, output, yardstick, live if lenient else None)
    with lab.control():
        dead = output.masked_select(~live.unsqueeze(-1)).reshape(-1, output.shape[-1])
        if not bool(torch.isfinite(dead).all()):
            return replace(made, ok=False, seen="NaN" if bool(dead.isnan().any()) else "inf")
        if made.ok:
            made = replace(made, seen=_dead_row_value(output, live, inputs))
    return lab.with_gradients(made, *inputs)


def _dead_row_value(output: Tensor, live: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> str:
    """Name the values of fully masked rows: zeros, the mean of V, or the softmax of the scores without any mask."""
    import torch

    from mpsdiag.sdpa.float64 import reference_attention

    q, k, v = (tensor.detach().cpu() for tensor in inputs)
    candidates = {
        "zeros": torch.zeros_like(output, dtype=torch.float64),
        "mean of V": v.double().mean(-2, keepdim=True).expand_as(output),
        "unmasked softmax": reference_attention(q, k, v),
    }
    dead = ~live.unsqueeze(-1)
    distances = {name: float(((output.double() - value) * dead).abs().max()) for name, value in candidates.items()}
    return min(distances, key=lambda name: distances[name])


@shows("SDPA024")
def _multihead(lab: Lab) -> Iterator[Check]:
    lab.require_real_mps(
        "nn.MultiheadAttention's own softmax gives NaN for such rows on every device when weights are asked for; "
        "only a real Apple GPU can show the MPS half of it"
    )
    import torch

    torch.manual_seed(lab.seed)
    module = torch.nn.MultiheadAttention(64, 1, dropout=0.1, batch_first=True).train(lab.training)
    x = lab.randn(2, 8, 64).cpu()
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
    on_device = module.to(lab.device)
    with torch.set_grad_enabled(lab.training):
        output, _ = on_device(x.to(lab.device) + 0, x.to(lab.device), x.to(lab.device), attn_mask=mask.to(lab.device))
    finite = bool(torch.isfinite(output).all())
    yield Check("causal mask, dropout 0.1", finite, "right" if finite else "NaN", lab.mode)
