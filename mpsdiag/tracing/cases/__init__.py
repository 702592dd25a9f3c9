"""The cases to trace: a model with a batch, from Python, a recording or a data set."""
