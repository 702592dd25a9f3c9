"""The emulation room."""
