"""G0': composite attention with the safe softmax. torch 2.5 and later, wherever the MPS operator is not taken.

That is: with gradients on, with dropout (to 2.11), with tensors that are not contiguous (2.5, and below macOS
15 up to 2.11). A row whose scores are all -inf gives zeros, and finite gradients.
"""

from __future__ import annotations

from functools import partial

from mpsdiag.emulation.g0_composite import composite_attention

# Same arguments and results as `composite_attention`.
safe_composite_attention = partial(composite_attention, zero_dead_rows=True, wide_scores=True)
