"""What is traced: a model with a batch, from Python, a recording or a data set."""
