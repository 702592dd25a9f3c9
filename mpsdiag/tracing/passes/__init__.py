"""The passes over a model: forward, in detail, backward, evaluation, training."""
