"""The causes, one family of rules in each file."""
