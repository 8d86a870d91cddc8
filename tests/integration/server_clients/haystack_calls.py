"""Haystack's embedders as people make them."""

from __future__ import annotations

import json
import sys
from typing import Any

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    where = {
        "model": asked["model"],
        "api_base_url": asked["origin"] + "/v1",
        "api_key": Secret.from_token(asked["key"]),
        "max_retries": 0,
    }
    text = OpenAITextEmbedder(**where)
    documents = OpenAIDocumentEmbedder(**where, batch_size=2, progress_bar=False)
    if hasattr(text, "warm_up"):
        text.warm_up()
        documents.warm_up()
    one = text.run(text=asked["texts"][0])
    many = documents.run(documents=[Document(content=content) for content in asked["texts"]])
    print(
        json.dumps(
            {
                "query": one["embedding"],
                "model": one["meta"]["model"],
                "usage": dict(one["meta"]["usage"]),
                "documents": [list(document.embedding) for document in many["documents"]],
            }
        )
    )


if __name__ == "__main__":
    main()
