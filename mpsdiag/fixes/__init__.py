"""The catalogue of attention modes: each puts itself in place, for a model or a process, and removes itself."""
