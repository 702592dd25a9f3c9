"""A process that is watched as it is: forwards, backwards and optimizer steps of whatever code runs in it."""
