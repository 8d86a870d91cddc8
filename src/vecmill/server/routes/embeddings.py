"""Vectors for texts: OpenAI's embeddings on every base, and Azure's deployments."""

from __future__ import annotations

from time import perf_counter

from vecmill.core.space import short
from vecmill.embedder.embedder import is_hardly_known
from vecmill.server.call import Answer, Call
from vecmill.server.errors import Header, Refusal
from vecmill.server.inputs import encode, long_text_of, role_of
from vecmill.server.parsing import read, whole
from vecmill.server.reading import Asked, Work, vocabulary_of
from vecmill.server.replies import header_value, json_reply, raw_reply, wants_raw
from vecmill.server.schemas import DeploymentRequest, EmbeddingsRequest
from vecmill.server.served import Served
from vecmill.server.vectors import check_dimensions, embed, sized, unless_left


async def embeddings(call: Call) -> Answer:
    """Answer `POST /v1/embeddings`."""
    started = perf_counter()
    request = await read(call, EmbeddingsRequest)
    return await _answer(call, request, request.model, started)


async def deployment_embeddings(call: Call) -> Answer:
    """Answer `POST /openai/deployments/{deployment}/embeddings?api-version=…`: the path names the model.

    Any api-version is taken, none is Azure's 404.
    """
    started = perf_counter()
    if not call.query.get("api-version"):
        raise Refusal(404, "Resource not found", code="404")
    request = await read(call, DeploymentRequest)
    try:
        return await _answer(call, request, call.parts["deployment"], started)
    except Refusal as refusal:
        if refusal.code != "model_not_found":
            raise
        raise Refusal(
            404,
            "The API deployment for this resource does not exist. If you created the deployment within the "
            "last 5 minutes, please wait a moment and try again.",
            code="DeploymentNotFound",
        ) from None


async def _answer(
    call: Call, request: EmbeddingsRequest | DeploymentRequest, model: str, started: float
) -> Answer:
    options = call.server.options
    dimensions = whole(request.dimensions, "dimensions")
    role = role_of(request.input_type)
    async with call.server.models.lease(model) as served:
        size = check_dimensions(dimensions, served.info, allow=options.allow_truncated_dimensions)
        asked = Asked(role, long_text_of(request.truncate, served.long_text), options.token_ids)
        work = await unless_left(call, encode(served.provider, request.input, asked, options.limits))
        rates = call.ticket.take(work.tokens)
        vectors = await sized(await embed(call, served, work), size)
        said = (*_headers(served, len(work.cut), started), *rates, *_language(call, served, work))
    encoding = request.encoding_format or "float"
    if wants_raw(call.headers.get("accept", "")):
        return raw_reply(vectors, encoding, tokens=work.tokens, headers=said)
    return json_reply(vectors, encoding, model=served.name, tokens=work.tokens, cut=work.cut, headers=said)


def _headers(served: Served, cut: int, started: float) -> tuple[Header, ...]:
    said = (
        ("openai-model", header_value(served.name)),
        ("openai-version", "2020-10-01"),
        ("openai-processing-ms", str(round((perf_counter() - started) * 1000))),
        ("x-vecmill-space", short(served.info.space)),
        ("x-vecmill-model-version", served.version),
    )
    return (*said, ("x-vecmill-truncated", str(cut))) if cut else said


def _language(call: Call, served: Served, work: Work) -> tuple[Header, ...]:
    """Return the warning that a local model hardly knows the language of the texts, and note it."""
    own = vocabulary_of(served.provider)
    if own is None:
        return ()
    encoded = work.encoded
    content = max(work.tokens - len(encoded) * sum(own.specials), 1)
    unknown = int(encoded.unknown.sum())
    if not is_hardly_known(unknown, content, sum(map(len, encoded.texts))):
        return ()
    call.noted.warning = "language_unknown"
    return (("x-vecmill-warning", "language_unknown"),)
