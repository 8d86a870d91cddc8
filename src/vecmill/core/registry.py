"""Names to classes: a built-in table merged with entry points, loaded on first use.

A provider or index is one file and one line here. Other packages add theirs through the entry points
`vecmill.providers` and `vecmill.indexes`; a name of the built-in table cannot be taken over.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from vecmill.core.errors import unknown_name

BUILTIN: dict[str, dict[str, str]] = {
    "providers": {
        "local": "vecmill.models.local.provider:load",
        "openai": "vecmill.models.hosted.openai:load",
        "azure": "vecmill.models.hosted.azure:load",
        "github": "vecmill.models.hosted.github:load",
    },
    "indexes": {
        "exact": "vecmill.index.exact:ExactIndex",
        "flat": "vecmill.index.codes:Codes",
        "hnsw": "vecmill.index.hnsw:HnswGraph",
        "ivf": "vecmill.index.ivf:IvfLists",
    },
}


@cache
def names(kind: str) -> dict[str, str]:
    """Return name -> "module:attribute" of a kind ("providers" or "indexes")."""
    found = {point.name: point.value for point in entry_points(group=f"vecmill.{kind}")}
    return {**found, **BUILTIN[kind]}


def load(kind: str, name: str) -> Any:
    """Import what a name stands for.

    Raises:
        UnknownNameError: The name is not in the table.
        MissingExtraError: It needs an extra that is not installed.
    """
    table = names(kind)
    if name not in table:
        raise unknown_name(kind.removesuffix("s"), name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
