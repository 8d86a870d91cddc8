"""A process that searches a collection others change, and tells every answer that is no whole state.

Items 0 to 19 lie close together and are always replaced together, each with the column `round`; far away from
them other items come and go. So the twenty nearest must always be those, all of one round, never an earlier
one than before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vecmill.collection.collection_items import CollectionItems
from vecmill.collection.filters import parse
from vecmill.core.types import Metric
from vecmill.index.storage import Store

DIMENSIONS = 8
TOGETHER = 20


def vectors(step: int) -> np.ndarray:
    """The vectors of the twenty items in a round."""
    return np.random.default_rng(step).normal(1.0, 0.01, (TOGETHER, DIMENSIONS)).astype(np.float32)


def looked(items: CollectionItems, least: int) -> int:
    """Search once, by all ways; return the round seen.

    Raises:
        AssertionError: The answer is of no whole state.
    """
    query = np.ones((1, DIMENSIONS), np.float32)
    near = items.nearest(query, TOGETHER, metric=Metric.EUCLIDEAN)[0]
    rounds = {record["round"] for record in items.records(near.rows, ["round"])}
    assert sorted(items.ids(near.rows)) == list(range(TOGETHER)), f"ids {items.ids(near.rows)}"
    assert len(rounds) == 1, f"rounds {rounds}"
    (step,) = rounds
    assert step >= least, f"round {step} after {least}"
    np.testing.assert_array_equal(items.vectors_of(items.find(3))[0], vectors(step)[3])
    some = items.nearest(query, 5, metric=Metric.EUCLIDEAN, where=parse(f"round = {step}"))[0]
    assert len(some.rows) == 5, "filtered"
    words = items.ranked(f"words{step}", TOGETHER)
    assert sorted(items.ids(words)) == list(range(TOGETHER)), f"words {items.ids(words)}"
    return int(step)


def main() -> None:
    """Argument: folder. Searches five times a line; prints how often in all, and the round seen last."""
    folder, seen, count = Path(sys.argv[1]), 0, 0
    store = Store.open(folder)
    items = CollectionItems(store.snapshot())
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "stop\n":
            break
        for again in range(5):
            if again == 4:
                store = Store.open(folder)  # as one who comes anew, in the middle of a change
            items = CollectionItems(store.snapshot(), items)
            seen, count = looked(items, seen), count + 1
        print(count, seen, flush=True)
    print("stopped", count, flush=True)


if __name__ == "__main__":
    main()
