"""The kernels' arithmetic, one file for each generation (G0 to G7), and shared parts: rounding, blocks, running maxima.

Every generation takes query (B, Hq, L, D), key (B, Hkv, S, D) and value (B, Hkv, S, Dv) of one dtype. `mask` is None,
bool (True = may attend) or floating (added), broadcastable to (B, Hq, L, S); `scale` multiplies the scores. The output
is (B, Hq, L, Dv) in the dtype of the query; the weights, if requested, are (B, Hq, L, S).
"""
