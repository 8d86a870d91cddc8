"""Embedder, index and items together: what a search by text needs."""
