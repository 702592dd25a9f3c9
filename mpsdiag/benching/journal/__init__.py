"""What a run writes down, line by line, and how older lines are read."""
