"""A process that changes a collection step by step, and says after each step that it is done.

The steps follow from a seed alone, so whoever kills it knows what must be there.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vecmill.index.storage import Store

DIMENSIONS = 16
Held = dict[object, tuple[float, int]]
"""id -> first component of its vector, its column `stars`."""


def vector(name: object, step: int) -> Any:
    """The vector an id has after a step that wrote it."""
    seed = [step, *f"{type(name).__name__} {name}".encode()]
    return np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)


def plan(seed: int, step: int) -> tuple[str, list[object]]:
    """What a step does, and to which ids."""
    chance = random.Random(f"{seed}/{step}")
    what = chance.choices(["add", "delete", "columns", "compact", "index"], [6, 3, 1, 2, 1])[0]
    ids: list[object] = [
        number if number % 3 else f"id {number}"
        for number in chance.sample(range(400), chance.choice([1, 5, 60]))
    ]
    return what, ids


def expect(held: Held, seed: int, step: int) -> Held:
    """What is held after one more step."""
    what, ids = plan(seed, step)
    after = dict(held)
    if what == "add":
        after.update({name: (float(vector(name, step)[0]), step) for name in ids})
    elif what == "delete":
        for name in ids:
            after.pop(name, None)
    elif what == "columns":
        after.update({name: (after[name][0], step) for name in ids if name in after})
    return after


def do(store: Store, seed: int, step: int) -> None:
    """Do one step."""
    what, ids = plan(seed, step)
    if what == "add":
        table = pa.table({"stars": [step] * len(ids)})
        store.add(ids, np.stack([vector(name, step) for name in ids]), table, replace=True)
    elif what == "delete":
        store.delete(ids)
    elif what == "columns":
        store.set_columns(ids, pa.table({"stars": [step] * len(ids)}))
    elif what == "compact":
        store.compact(max_bytes=4096)
    elif len(store):
        from vecmill.index.settings import IndexSettings
        from vecmill.index.store_index import build_index

        build_index(store, IndexSettings(precision="int8", recall_target=0.9), k=3)  # type: ignore[arg-type]


def held(store: Store) -> Held:
    """Everything that can be found."""
    now = store.snapshot()
    at = np.flatnonzero(now.live)
    stars = [record["stars"] for record in now.records(at, ["stars"])] if len(at) else []
    firsts = now.fetch(at)[:, 0].tolist()
    return {name: (first, star) for name, first, star in zip(now.ids(at), firsts, stars, strict=True)}


def main() -> None:
    """Arguments: folder, seed, first step. Runs until it is killed."""
    store = Store.open(Path(sys.argv[1]))
    seed, step = int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    while True:
        do(store, seed, step)
        print(step, flush=True)
        step += 1


if __name__ == "__main__":
    main()
