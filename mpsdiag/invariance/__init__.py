"""Padding invariance: the correct result of a sequence is the one it has alone."""
