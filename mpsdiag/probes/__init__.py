"""The probes room: the catalogue of known defects, and how to run it. Nothing here loads torch until a probe is run."""
