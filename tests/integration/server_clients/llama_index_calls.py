"""LlamaIndex's OpenAIEmbedding and OpenAILikeEmbedding as people make them."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    where = {"api_base": asked["origin"] + "/v1", "api_key": asked["key"], "max_retries": 0}
    like = OpenAILikeEmbedding(model_name=asked["model"], **where)
    own = OpenAIEmbedding(model_name=asked["model"], embed_batch_size=2, **where)
    print(
        json.dumps(
            {
                "like": like.get_text_embedding_batch(asked["texts"]),
                "like_query": like.get_query_embedding(asked["texts"][0]),
                "own": own.get_text_embedding_batch(asked["texts"]),
                "own_one": own.get_text_embedding(asked["texts"][0]),
                "async": asyncio.run(like.aget_text_embedding_batch(asked["texts"])),
            }
        )
    )


if __name__ == "__main__":
    main()
