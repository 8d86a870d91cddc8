"""Adds to a table in several batches until it is killed: `python postgres_process.py URL PART`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from vecmill.index.postgres import Batch, PostgresTable


def main(url: str, part: str) -> None:
    def batches() -> Iterator[Batch]:
        for batch in range(20):
            print(batch, flush=True)
            vectors = np.random.default_rng(batch).standard_normal((200, 64)).astype(np.float32)
            yield Batch([f"{part}-{batch}-{n}" for n in range(200)], vectors)

    with PostgresTable.open(url) as table:
        table.add_batches(batches())
        print("done", flush=True)


main(*sys.argv[1:])
