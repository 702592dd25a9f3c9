"""The sdpa room."""
