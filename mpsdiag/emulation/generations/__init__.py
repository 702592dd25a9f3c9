"""The kernels' arithmetic, one file a generation (G0 to G7), and what they share: rounding, blocks, running maxima.

Every generation takes query (B, Hq, L, D), key (B, Hkv, S, D) and value (B, Hkv, S, Dv) of one dtype. `mask` is None,
bool (True = may attend) or floating (added), broadcastable to (B, Hq, L, S); `scale` multiplies the scores. The output
is (B, Hq, L, Dv) in the dtype of the query; the weights, where they are asked for, are (B, Hq, L, S).
"""
