"""Arguments of the call that were ignored or misread: dropout, and a value as wide as it likes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, Probe, Remedy, span

if TYPE_CHECKING:
    from mpsdiag.probes.lab import Lab


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


def _value_width(lab: Lab) -> Iterator[Check]:
    q, k, _ = lab.qkv((1, 2, 16, 32))
    yield lab.check("query and key 32 wide, value 24", q, k, lab.randn(1, 2, 16, 24, stream=3))


PROBES: Final = (
    Probe(
        id="SDPA008",
        title="dropout_p is silently ignored without gradients",
        symptom="Monte-Carlo dropout and other sampling under no_grad give the same output every time.",
        upstream=("https://github.com/pytorch/pytorch/issues/184126",),
        releases=span(12, 12),
        fixed="2.13.0, which refuses dropout there",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch, or apply dropout by hand: eager attention does.",
            ("pip install --upgrade 'torch>=2.13'",),
        ),
        trigger=_dropout,
        bad="the output without dropout",
        good="dropout or a refusal",
    ),
    Probe(
        id="SDPA009",
        title="The output is as wide as the query, not as the value",
        symptom="A shape error after attention, or wrong data, where value heads are narrower (DeepSeek's MLA).",
        upstream=(
            "https://github.com/pytorch/pytorch/issues/176767",
            "https://github.com/pytorch/pytorch/pull/176843",
        ),
        releases=span(5, 11),
        fixed="2.12.0",
        hits="evaluation",
        remedy=Remedy(
            "Upgrade torch, use eager attention, or pad the value to the query's width and cut the output.",
            ("pip install --upgrade 'torch>=2.12'",),
        ),
        trigger=_value_width,
        bad="an output of the query's width",
        good="an output of the value's width",
    ),
)
