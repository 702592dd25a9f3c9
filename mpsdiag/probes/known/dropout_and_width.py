"""Arguments of the call that were ignored or misread: dropout, and a value as wide as it likes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mpsdiag.probes.declaration import Check, probe

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
    probe("SDPA008", _dropout),
    probe("SDPA009", _value_width),
)
