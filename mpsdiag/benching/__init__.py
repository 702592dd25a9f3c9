"""The matrix: its plan, its journal, one process for each cell, gates, and a fleet of machines."""
