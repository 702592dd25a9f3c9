"""Padding invariance: the number that is right is the one that a sequence has alone."""
