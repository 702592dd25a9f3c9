"""The catalogue of known defects, and how to run it. Torch is not loaded until a probe is run."""
