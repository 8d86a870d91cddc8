"""LangChain's OpenAIEmbeddings as people make it: by default it sends token ids of cl100k_base."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    where = {"model": asked["model"], "base_url": asked["origin"] + "/v1", "api_key": asked["key"]}
    plain = OpenAIEmbeddings(**where)
    texts = OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    azure = AzureOpenAIEmbeddings(
        model=asked["model"],
        azure_endpoint=asked["origin"],
        azure_deployment=asked["model"],
        api_version="2024-10-21",
        api_key=asked["key"],
        chunk_size=2,
    )
    print(
        json.dumps(
            {
                "documents": plain.embed_documents(asked["texts"]),
                "query": plain.embed_query(asked["texts"][0]),
                "as_texts": texts.embed_documents(asked["texts"]),
                "async": asyncio.run(plain.aembed_documents(asked["texts"])),
                "azure": azure.embed_documents(asked["texts"]),
            }
        )
    )


if __name__ == "__main__":
    main()
