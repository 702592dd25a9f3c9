"""G2: the MPSGraph of torch 2.9. G1 with the repair of dead rows: where every score is -inf, weights are 0."""

from __future__ import annotations

from functools import partial

from mpsdiag.emulation.g1_graph import graph_attention

# Same arguments and results as `graph_attention`. The rule looks at exact -inf: a float16 row of finfo.min
# whose scores overflow to -inf falls under it too, a row of large finite values does not.
graph_attention_zero_rows = partial(graph_attention, zero_dead_rows=True)
