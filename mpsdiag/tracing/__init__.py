"""Trace: which operation gives the first non-finite value of a run, and why. `mpsdiag.trace` is in `trace_batch`."""
