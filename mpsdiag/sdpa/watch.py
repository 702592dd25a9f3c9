"""See every call of `F.scaled_dot_product_attention`, and count the fully masked rows that reach it.

The one count of such rows: (sequence, query) pairs that may attend to nothing in some head, each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from torch.overrides import TorchFunctionMode

from mpsdiag.sdpa.masked_rows import dead_rows

SDPA: Final = "scaled_dot_product_attention"


@dataclass(frozen=True)
class SdpaCall:
    """The arguments of one call: query `(..., Hq, L, D)`, key, value, the mask, and the probability of dropout."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0

    @property
    def contiguous(self) -> bool:
        """Query, key and value are contiguous."""
        return all(tensor.is_contiguous() for tensor in (self.query, self.key, self.value))

    def masked_rows(self) -> Tensor | None:
        """Fully masked rows, bool `(sequences, queries)` on the device of the mask; None without a mask."""
        if self.attn_mask is None:
            return None
        rows = per_query(dead_rows(self.attn_mask))
        return rows.expand(self.query.shape[0], self.query.shape[-2])


def per_query(rows: Tensor) -> Tensor:
    """Rows of (sequences, heads, queries) as (sequences, queries): True where some head has it; others as they are."""
    return rows.any(1) if rows.dim() == 3 else rows


class SdpaWatch(TorchFunctionMode):
    """Hands every call under it to `saw_sdpa`. Enter it inside an emulation, not around it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # By name: a patched F.scaled_dot_product_attention makes a test of identity fail.
        if getattr(func, "__name__", "") == SDPA:
            known = {name: kwargs[name] for name in SdpaCall.__dataclass_fields__ if name in kwargs}
            self.saw_sdpa(SdpaCall(*args[:5], **known), result)
        return result

    def saw_sdpa(self, call: SdpaCall, result: Tensor) -> None:
        """Called after each call, with its result."""
        raise NotImplementedError
