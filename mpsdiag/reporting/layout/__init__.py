"""A report as a list of blocks, and the tables in it."""
