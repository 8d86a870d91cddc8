"""Vectors that were computed once: what they are called and where they are kept."""
