"""The kernels' arithmetic, one file a generation (G0 to G7), and what they share: rounding, blocks, running maxima."""
