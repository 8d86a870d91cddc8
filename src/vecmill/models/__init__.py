"""Texts to vectors: `base` says what a provider is, the folders beside it hold them."""
