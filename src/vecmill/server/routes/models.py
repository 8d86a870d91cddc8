"""Which models are served."""

from __future__ import annotations

import asyncio

import msgspec

from vecmill.core.space import short
from vecmill.server.call import Answer, Call
from vecmill.server.errors import unknown_model
from vecmill.server.names import spellings
from vecmill.server.schemas import Model, ModelList
from vecmill.server.served import Listed


async def models(call: Call) -> Answer:
    """Answer `GET /v1/models`."""
    most = call.server.options.limits.max_inputs
    found = [_shown(listed, most) for listed in call.server.models.listed()]
    return Answer(200, msgspec.json.encode(ModelList(object="list", data=found)))


async def model(call: Call) -> Answer:
    """Answer `GET /v1/models/{id}` for every spelling; an id may hold slashes, also as %2F."""
    asked, server = call.parts["id"], call.server
    known = {listed.id: listed for listed in server.models.listed()}
    found = known.get(asked)
    if found is None:  # looking spellings up reads settings and folders
        spelt = await asyncio.to_thread(spellings, server.options.models, server.settings)
        found = known.get(spelt.get(asked, ""))
    if found is None:
        raise unknown_model(asked)
    return Answer(200, msgspec.json.encode(_shown(found, server.options.limits.max_inputs)))


def _shown(listed: Listed, max_inputs: int) -> Model:
    info = listed.info
    return Model(
        id=listed.id,
        object="model",
        created=listed.created,
        owned_by=listed.owned_by,
        dimensions=info.dimensions,
        max_tokens=info.max_tokens,
        max_inputs=max_inputs,
        space=short(info.space),
        normalized=info.normalized,
        precision=info.precision,
        languages=list(info.languages),
        provider=info.provider,
    )
