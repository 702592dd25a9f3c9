"""Watches operations and records what they give."""
