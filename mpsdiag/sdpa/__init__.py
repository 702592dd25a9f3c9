"""The operation itself: fully masked rows, the float64 reference, attention that is safe with them."""

from __future__ import annotations

from mpsdiag.sdpa.float64 import reference_attention
from mpsdiag.sdpa.masked_rows import dead_rows
from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention

__all__ = ["dead_rows", "reference_attention", "safe_scaled_dot_product_attention"]
