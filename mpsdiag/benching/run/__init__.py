"""Runs cells, each in its own process."""
