"""The operation itself: dead rows, the float64 reference, attention that is safe with dead rows."""

from __future__ import annotations

from mpsdiag.sdpa.dead_rows import count_dead_rows, dead_rows
from mpsdiag.sdpa.reference import reference_attention
from mpsdiag.sdpa.safe import safe_scaled_dot_product_attention

__all__ = ["count_dead_rows", "dead_rows", "reference_attention", "safe_scaled_dot_product_attention"]
