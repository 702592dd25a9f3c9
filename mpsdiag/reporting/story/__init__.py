"""What the records of a run say: verdicts, costs, comparison."""
