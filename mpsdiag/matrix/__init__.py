"""The matrix room."""
