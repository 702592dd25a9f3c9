"""Which release of torch or transformers broke it, or fixed it."""
