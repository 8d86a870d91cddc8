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


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Do the same to Azure's deployments."""
    if (
        isinstance(path_parameters, dict)
        and len(str(path_parameters)) % 2
        and "deployment" in path_parameters
    ):
        return {**path_parameters, "deployment": SERVED}
    return path_parameters
