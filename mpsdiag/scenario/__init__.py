"""A few training steps and an evaluation through stock transformers, compared with a float64 reference."""
