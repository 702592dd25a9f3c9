"""A few training steps and an evaluation through stock transformers, judged by a float64 reference."""
