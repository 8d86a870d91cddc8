"""A process that changes a collection others change and search: `rounds` of items 0 to 19, or `others`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store
from vecmill.index.store_index import build_index, refresh

reader = runpy.run_path(str(Path(__file__).with_name("collection_reader.py")))


def put_round(store: Store, step: int) -> None:
    """Replace the twenty items that belong together."""
    count = reader["TOGETHER"]
    columns = pa.table({"round": [step] * count, "text": [f"words{step}"] * count})
    store.add(range(count), reader["vectors"](step), columns, replace=True)


def main() -> None:
    """Arguments: folder, what, steps. Prints the last generation it published."""
    store, what, steps = Store.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for step in range(1, steps + 1):
        if what == "rounds":
            put_round(store, step)
            continue
        ids = [f"{step} {number}" for number in range(30)]
        far = np.full((30, reader["DIMENSIONS"]), -5.0) + np.arange(30)[:, None] * 0.01
        store.add(ids, far, pa.table({"round": [-1] * 30, "text": ["other"] * 30}))
        store.delete(ids[:25])
        if step % 3 == 0:
            store.compact(max_bytes=2048)
        if step % 5 == 0:
            build_index(store, IndexSettings(precision="int8", recall_target=0.9), k=3)  # type: ignore[arg-type]
        refresh(store)
    print(store.catalogue.generation, flush=True)


if __name__ == "__main__":
    main()
