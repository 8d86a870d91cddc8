"""Every route of the server: the one place that says what is answered where, and to whom."""

from __future__ import annotations

from vecmill.server.access import Right
from vecmill.server.routes.embeddings import embeddings
from vecmill.server.routing import Route

_OPENAI = ("/v1", "/v3", "/openai/v1", "")

ROUTES: tuple[Route, ...] = (
    *(
        Route("POST", f"{base}/embeddings", embeddings, Right.EMBED, "embeddings", "Embed texts.")
        for base in _OPENAI
    ),
)
