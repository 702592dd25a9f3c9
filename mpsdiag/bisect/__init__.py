"""Which release of torch or transformers broke it, and which one cured it."""
