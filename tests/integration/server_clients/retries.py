"""The official client against a server that is too busy: told to wait, it comes back by itself.

Reads {"origin", "model", "texts", "key", "patient"}: with 0 retries the first refusal is seen, with `patient`
retries nobody notices.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai


async def ask(client: openai.AsyncOpenAI, model: str, text: str) -> tuple[str, list[float], float]:
    try:
        reply = await client.embeddings.create(model=model, input=text)
    except openai.RateLimitError as error:
        wait = float(error.response.headers.get("retry-after-ms", "nan"))
        return f"{type(error).__name__} {error.status_code} {error.code}", [], wait
    return "", reply.data[0].embedding, 0.0


async def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    report: dict[str, Any] = {"version": openai.__version__}
    for name, retries in (("hasty", 0), ("patient", asked["patient"])):
        async with openai.AsyncOpenAI(
            base_url=asked["origin"] + "/v1", api_key=asked["key"], max_retries=retries
        ) as client:
            found = await asyncio.gather(*(ask(client, asked["model"], text) for text in asked["texts"]))
        report[name] = {
            "errors": [error for error, _, _ in found],
            "vectors": [vector for _, vector, _ in found],
            "waits": [wait for error, _, wait in found if error],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main())
