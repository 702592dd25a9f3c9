"""Watches a process: forwards, backwards and optimizer steps of any code that runs in it."""
