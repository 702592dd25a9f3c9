"""The meaning of a run's records: verdicts, costs, comparison."""
