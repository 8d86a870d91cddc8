"""Lets half of what schemathesis makes up ask for a model that is served, or hardly any vector were made."""

from __future__ import annotations

from typing import Any

import schemathesis

SERVED = "minilm"


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Put the served name where another text stood, by the body's own length: repeatable."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(str(body)) % 2:
        return {**body, "model": SERVED}
    return body
