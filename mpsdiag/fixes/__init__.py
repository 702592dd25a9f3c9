"""The attention modes: each installs itself, for a model or a process, and removes itself."""
