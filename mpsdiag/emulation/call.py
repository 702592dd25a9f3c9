"""One call of attention, as it reaches the dispatcher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mpsdiag.emulation.generations.rounding import additive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of `scaled_dot_product_attention` by name; shapes as in `generations`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def on_cpu(self) -> bool:
        """All tensors are plain CPU tensors, which is what is emulated."""
        mask = () if self.mask is None else (self.mask,)
        return all(x.device.type == "cpu" and not x.is_nested for x in (*self.tensors, *mask))

    @property
    def needs_grad(self) -> bool:
        """Grad mode is on and one of query, key and value asks for a gradient; the mask does not count."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors)

    @property
    def well_formed(self) -> bool:
        """Whether torch would get past its own checks; if not, it is left to torch to say what is wrong."""
        q = self.query
        same = all(x.dtype == q.dtype and x.dim() >= 2 for x in self.tensors)
        return same and (self.mask is None or self.mask.dtype in {torch.bool, torch.float32, q.dtype})

    def as_autocast(self, dtype: torch.dtype) -> AttentionCall:
        """The call with its tensors in the dtype of an autocast region, which this function is subject to."""

        def cast(tensor: Tensor) -> Tensor:
            narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
            return tensor.to(dtype) if narrow else tensor

        mask = None if self.mask is None else cast(self.mask)
        return replace(self, query=cast(self.query), key=cast(self.key), value=cast(self.value), mask=mask)

    def with_additive_mask(self) -> AttentionCall:
        """The call with a bool mask turned into 0 and -inf in the query's dtype, as the public function does first."""
        return self if self.mask is None else replace(self, mask=additive(self.mask, self.query.dtype))


def public_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of `F.scaled_dot_product_attention`."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return AttentionCall(mask=named.pop("attn_mask", None), **named)


def operator_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Read the arguments of `aten::_scaled_dot_product_attention_math_for_mps`; its dropout mask is not modelled."""
    return public_call(args[:6], {name: value for name, value in kwargs.items() if name != "dropout_mask"})
