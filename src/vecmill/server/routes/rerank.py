"""Documents in the order of their similarity to a query, in Cohere's shape."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import numpy.typing as npt

from vecmill.core.types import InputType, Vectors
from vecmill.server.call import Answer, Call
from vecmill.server.inputs import check_texts, encode_texts, long_text_of
from vecmill.server.parsing import read, refuse_tokens, whole, wrong_input
from vecmill.server.reading import Asked
from vecmill.server.replies import header_value
from vecmill.server.schemas import Document, Ranked, RerankReply, RerankRequest, Usage
from vecmill.server.vectors import embed_each, unless_left


async def rerank(call: Call) -> Answer:
    """Answer `POST /v1/rerank`: cosine of the query's vector and each document's, equal ones as they came."""
    request = await read(call, RerankRequest)
    options = call.server.options
    top = whole(request.top_n, "top_n")
    if not request.query:
        raise wrong_input("query is empty.", param="query")
    documents = [one.text if isinstance(one, Document) else one for one in request.documents]
    check_texts(documents, options.limits, "documents")
    async with call.server.models.lease(request.model) as served:
        long_text = long_text_of(request.truncate, served.long_text)
        asked = Asked(InputType.QUERY, long_text, param="query")
        query = await unless_left(call, encode_texts(served.provider, [request.query], asked, options.limits))
        asked = Asked(InputType.DOCUMENT, long_text, param="documents")
        work = await unless_left(call, encode_texts(served.provider, documents, asked, options.limits))
        total = query.tokens + work.tokens
        refuse_tokens(total, options.limits)
        rates = call.ticket.take(total)
        (asking, *_), vectors = await embed_each(call, served, [query, work])
        name = served.name
    scores = await asyncio.to_thread(cosines, asking, vectors)
    order = np.argsort(-scores, kind="stable")[: len(documents) if top is None else top].tolist()
    shown = bool(request.return_documents)
    results = [
        Ranked(
            index=at,
            relevance_score=float(scores[at]),
            document=Document(text=documents[at]) if shown else msgspec.UNSET,
        )
        for at in order
    ]
    reply = RerankReply(
        id=call.request_id,
        object="list",
        model=name,
        results=results,
        usage=Usage(prompt_tokens=total, total_tokens=total),
        meta={"api_version": {"version": "1"}, "billed_units": {"search_units": 0}},
    )
    return Answer(200, msgspec.json.encode(reply), headers=(("openai-model", header_value(name)), *rates))


def cosines(query: npt.NDArray[np.float32], vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return the cosine of a vector (d,) with each of (n, d): (n,) float64 in [-1, 1], 0 for zero vectors."""
    left, right = query.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(right, axis=1) * np.linalg.norm(left)  # (n,)
    products = right @ left
    found = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    clipped: npt.NDArray[np.float64] = np.clip(found, -1.0, 1.0)
    return clipped
