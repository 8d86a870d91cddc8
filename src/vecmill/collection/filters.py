"""Filters by columns: `stars >= 4 and lang = 'en'`."""

from __future__ import annotations


class Filter:
    """A condition on the columns of a row."""
