"""Padding invariance: the number that is right is the one that a sequence has alone."""

from __future__ import annotations

from mpsdiag.invariance.measure import assert_padding_invariant, padding_invariance

__all__ = ["assert_padding_invariant", "padding_invariance"]
