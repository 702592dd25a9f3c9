"""The matrix: its plan, its journal, one process a cell, gates, and a fleet of machines."""
