"""The probes room."""
