"""Every route of the server: the one place that says what is answered where, and to whom."""

from __future__ import annotations

from vecmill.server.access import Right
from vecmill.server.routes.documents import docs, openapi_document
from vecmill.server.routes.embeddings import deployment_embeddings, embeddings
from vecmill.server.routes.metrics import metrics
from vecmill.server.routes.models import model, models
from vecmill.server.routes.rerank import rerank
from vecmill.server.routes.status import Health, config, live, model_ready, ready, reload
from vecmill.server.routes.tokenize import tokenize
from vecmill.server.routing import Route
from vecmill.server.schemas import (
    DeploymentRequest,
    EmbeddingsReply,
    EmbeddingsRequest,
    Model,
    ModelList,
    RerankReply,
    RerankRequest,
    TokenizeReply,
    TokenizeRequest,
)

_OPENAI = ("/v1", "/v3", "/openai/v1", "")
"""Where OpenAI's routes are: its own base, OpenVINO Model Server's, Azure's, and for those who give none."""


def _on_every_base() -> tuple[Route, ...]:
    found: list[Route] = []
    for base in _OPENAI:
        found += (
            Route(
                "POST",
                f"{base}/embeddings",
                embeddings,
                Right.EMBED,
                "embeddings",
                "Embed texts.",
                takes=EmbeddingsRequest,
                gives=EmbeddingsReply,
            ),
            Route(
                "GET",
                f"{base}/models",
                models,
                Right.READ,
                "models",
                "List the served models.",
                gives=ModelList,
            ),
            Route(
                "GET",
                f"{base}/models/{{id:path}}",
                model,
                Right.READ,
                "model",
                "Show a served model.",
                gives=Model,
            ),
        )
    return tuple(found)


def _on_both_bases() -> tuple[Route, ...]:
    found: list[Route] = []
    for base in ("/v1", "/v3"):
        found += (
            Route(
                "POST",
                f"{base}/tokenize",
                tokenize,
                Right.EMBED,
                "tokenize",
                "Show the tokens of texts.",
                takes=TokenizeRequest,
                gives=TokenizeReply,
            ),
            Route(
                "POST",
                f"{base}/rerank",
                rerank,
                Right.EMBED,
                "rerank",
                "Put documents into the order of their similarity to a query.",
                takes=RerankRequest,
                gives=RerankReply,
            ),
        )
    return tuple(found)


ROUTES: tuple[Route, ...] = (
    *_on_every_base(),
    Route(
        "POST",
        "/openai/deployments/{deployment:path}/embeddings",
        deployment_embeddings,
        Right.EMBED,
        "embeddings",
        "Embed texts, asked as Azure is.",
        takes=DeploymentRequest,
        gives=EmbeddingsReply,
        azure=True,
    ),
    *_on_both_bases(),
    Route("GET", "/v1/config", config, Right.READ, "config", "Show every model and its versions."),
    Route("POST", "/v1/config/reload", reload, Right.ADMIN, "reload", "Look for new versions now."),
    *(
        Route("GET", path, live, Right.OPEN, "live", "Say whether the process answers.", gives=Health)
        for path in ("/v2/health/live", "/healthz")
    ),
    *(
        Route("GET", path, ready, Right.READ, "ready", "Say whether requests may be sent.", gives=Health)
        for path in ("/v2/health/ready", "/readyz")
    ),
    Route(
        "GET",
        "/v2/models/{model:path}/ready",
        model_ready,
        Right.READ,
        "model_ready",
        "Say whether a model answers.",
        gives=Health,
    ),
    Route("GET", "/openapi.json", openapi_document, Right.READ, "openapi", "Show this as OpenAPI 3.1."),
    Route("GET", "/docs", docs, Right.READ, "docs", "Show this as a page."),
    Route("GET", "/metrics", metrics, Right.METRICS, "metrics", "What Prometheus collects."),
)
