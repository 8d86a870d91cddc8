"""Vectors for texts."""

from __future__ import annotations

import orjson
import pybase64

from vecmill.core.types import InputType
from vecmill.server.call import Answer, Call
from vecmill.server.errors import invalid


async def embeddings(call: Call) -> Answer:
    """Answer `POST /v1/embeddings`."""
    body = orjson.loads(await call.body(call.server.options.limits.max_body_bytes))
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not texts:
        raise invalid("'$.input' is invalid", param="input")
    async with call.server.models.lease(body["model"]) as served:
        work = served.provider.encode(texts, input_type=InputType.DOCUMENT)
        found = await served.vectors(work, key=call.caller.id, deadline=call.deadline)
    data = [
        {"object": "embedding", "index": i, "embedding": pybase64.b64encode(v.tobytes()).decode()}
        if body.get("encoding_format") == "base64"
        else {"object": "embedding", "index": i, "embedding": v.tolist()}
        for i, v in enumerate(found.vectors)
    ]
    tokens = int(work.tokens.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Answer(200, orjson.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}))
