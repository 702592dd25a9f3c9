"""The parts of a case: models, tokenizers, data and outputs."""
