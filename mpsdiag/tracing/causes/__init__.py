"""The causes, one family of rules a file."""
