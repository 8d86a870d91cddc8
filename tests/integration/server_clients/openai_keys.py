"""The official client before a closed server: which class each key meets.

Reads {"origin", "model", "keys": {name: key}} and prints for each name what embedding and listing led to.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import openai


def outcome(call: Any) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, str(error)]
    return ["fine", 200, None, ""]


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    os.environ["OPENAI_BASE_URL"] = asked["origin"] + "/v1"
    report: dict[str, Any] = {"version": openai.__version__}
    for name, key in asked["keys"].items():
        os.environ["OPENAI_API_KEY"] = key
        with openai.OpenAI(max_retries=0) as client:  # as people do: everything from the environment
            report[name] = {
                "embed": outcome(lambda: client.embeddings.create(model=asked["model"], input="x")),
                "list": outcome(lambda: list(client.models.list())),
            }
    with openai.OpenAI(api_key=asked["keys"]["right"], max_retries=0) as client:
        raw = client.embeddings.with_raw_response.create(model=asked["model"], input="x")
        report["rates"] = {n: v for n, v in raw.headers.items() if n.lower().startswith("x-ratelimit-")}
        found = ["fine"]
        for _ in range(asked.get("until_refused", 0)):
            found = outcome(lambda: client.embeddings.create(model=asked["model"], input="x"))
            if found[0] != "fine":
                break
        report["at_last"] = found
    print(json.dumps(report))


if __name__ == "__main__":
    main()
