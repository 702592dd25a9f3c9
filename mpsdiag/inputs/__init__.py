"""What a case is made of: models, tokenizers, data and outputs."""
