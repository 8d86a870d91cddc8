"""What people do with the official client, written so that majors 1, 2 and 3 run it unchanged.

Reads {"origin", "model", "texts", "key"} from stdin and prints what came.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import openai


def main() -> None:
    asked = json.loads(sys.stdin.read())
    report = {"version": openai.__version__, **sync_calls(asked), **azure_calls(asked)}
    report["async"] = asyncio.run(async_calls(asked))
    report["errors"] = errors(asked)
    print(json.dumps(report))


def sync_calls(asked: dict[str, Any]) -> dict[str, Any]:
    texts, model = asked["texts"], asked["model"]
    found: dict[str, Any] = {}
    for base in ("/v1", "/v3", "/openai/v1"):
        with openai.OpenAI(base_url=asked["origin"] + base, api_key=asked["key"], max_retries=0) as client:
            reply = client.embeddings.create(model=model, input=texts)
            found[base] = [item.embedding for item in reply.data]
    with openai.OpenAI(base_url=asked["origin"] + "/v1", api_key=asked["key"], max_retries=0) as client:
        floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
        found["float"] = [item.embedding for item in floats.data]
        coded = client.embeddings.create(model=model, input=texts, encoding_format="base64")
        found["base64"] = [item.embedding for item in coded.data]
        one = client.embeddings.create(model=model, input=texts[0], user="somebody")
        found["one"] = one.data[0].embedding
        own_size = client.embeddings.create(
            model=model, input=texts[0], dimensions=len(one.data[0].embedding)
        )
        found["own_size"] = own_size.data[0].embedding
        found["indexes"] = [item.index for item in floats.data]
        found["objects"] = [floats.object, floats.data[0].object]
        found["model"] = floats.model
        found["usage"] = floats.usage.to_dict()
        raw = client.embeddings.with_raw_response.create(model=model, input=texts[0])
        found["raw_status"] = raw.status_code
        found["raw_request_id"] = raw.headers["x-request-id"]
        found["raw_vector"] = raw.parse().data[0].embedding
        found["request_id"] = floats._request_id
        with client.embeddings.with_streaming_response.create(
            model=model, input=texts[0], encoding_format="base64"
        ) as stream:
            body = json.loads(stream.read())
        found["stream_bytes"] = len(base64.b64decode(body["data"][0]["embedding"]))
        listed = list(client.models.list())
        found["models"] = [m.id for m in listed]
        found["created"] = [m.created for m in listed]
        found["created_again"] = [m.created for m in client.models.list()]
        found["model_objects"] = [m.object for m in listed]
        found["retrieved"] = [client.models.retrieve(m.id).id for m in listed]
    return found


def azure_calls(asked: dict[str, Any]) -> dict[str, Any]:
    with openai.AzureOpenAI(
        azure_endpoint=asked["origin"], api_key=asked["key"], api_version="2024-10-21", max_retries=0
    ) as client:
        reply = client.embeddings.create(model=asked["model"], input=asked["texts"])
        try:
            client.embeddings.create(model="nothing-of-that-name", input="x")
            missing = ""
        except openai.NotFoundError as error:
            missing = f"{error.code}"
    found = [item.embedding for item in reply.data]
    with openai.AzureOpenAI(
        azure_endpoint=asked["origin"],
        azure_ad_token_provider=lambda: asked["key"],
        api_version="2024-10-21",
        max_retries=0,
    ) as client:
        bearer = client.embeddings.create(model=asked["model"], input=asked["texts"][0])
    return {"azure": found, "azure_missing": missing, "azure_bearer": bearer.data[0].embedding}


async def async_calls(asked: dict[str, Any]) -> list[list[float]]:
    async with openai.AsyncOpenAI(
        base_url=asked["origin"] + "/v1", api_key=asked["key"], max_retries=0
    ) as client:
        replies = await asyncio.gather(
            *(client.embeddings.create(model=asked["model"], input=text) for text in asked["texts"])
        )
        return [reply.data[0].embedding for reply in replies]


WRONG: dict[str, dict[str, Any]] = {
    "empty": {"input": ""},
    "empty_list": {"input": []},
    "too_many": {"input": ["x"] * 2049},
    "no_dimensions": {"input": "x", "dimensions": 0},
    "too_wide": {"input": "x", "dimensions": 99_999},
    "token_outside": {"input": [[1_000_000_000]]},
    "too_long": {"input": "word " * 9_000},
    "unknown_model": {"input": "x", "model": "nothing-of/that-name"},
}


def errors(asked: dict[str, Any]) -> dict[str, list[Any]]:
    """Return class, status, code, param and whether there was a request id, for what must be refused."""
    found: dict[str, list[Any]] = {}
    base = asked["origin"] + "/v1"

    def note(name: str, client: openai.OpenAI, **given: Any) -> None:
        try:
            client.embeddings.create(**{"model": asked["model"], **given})
            found[name] = ["no error", 200, None, None, False]
        except openai.APIStatusError as error:
            kind = type(error).__name__
            found[name] = [kind, error.status_code, error.code, error.param, bool(error.request_id)]

    with openai.OpenAI(base_url=base, api_key=asked["key"], max_retries=0) as client:
        for name, given in WRONG.items():
            note(name, client, **given)
        try:
            client.models.retrieve("nothing-of/that-name")
        except openai.APIStatusError as error:
            found["unknown_retrieved"] = [type(error).__name__, error.status_code, error.code, None, True]
    with openai.OpenAI(base_url=base, api_key="sk-wrong-0123456789", max_retries=0) as client:
        note("wrong_key", client, input="x")
    with openai.OpenAI(base_url=asked["origin"] + "/nowhere", api_key=asked["key"], max_retries=0) as client:
        note("unknown_path", client, input="x")
    return found


if __name__ == "__main__":
    main()
