"""The journal of a run, line by line, and how older lines are read."""
