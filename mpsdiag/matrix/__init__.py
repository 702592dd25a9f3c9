"""The cells of a benchmark: their spec, one process each, the journal, rounds, statistics, gates, a cluster."""
