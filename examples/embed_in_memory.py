"""Embed texts in memory and compare them; the same from asynchronous code."""

import asyncio

import numpy as np

import vecmill

texts = ["The cat naps.", "A kitten sleeps in the sun.", "Tax forms are due in May."]

with vecmill.Embedder("minilm") as embedder:
    made = embedder.embed(texts)
print(made.model, made.vectors.shape, made.usage.tokens, "tokens")
print(np.round(made.vectors @ made.vectors.T, 2))


async def both_roles() -> float:
    """Return the similarity of a query and a document."""
    async with vecmill.AsyncEmbedder("minilm") as embedder:
        query = await embedder.embed("sleepy pets", input_type="query")
        document = await embedder.embed(texts[1])
    return float(query.vectors[0] @ document.vectors[0])


print(f"{asyncio.run(both_roles()):.2f}")

table = {"title": ["Soup", "Cake"], "steps": ["Simmer lentils.", "Bake until brown."]}
print(len(vecmill.embed(table, template="{title}: {steps}")), "rows of a table")
