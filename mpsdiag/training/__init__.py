"""The training pipeline: arguments, data, checkpoints and the summary."""
