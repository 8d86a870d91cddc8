"""Which segments of a collection are worth writing anew, and what doing so gave back."""

from __future__ import annotations

from dataclasses import dataclass

from vecmill.index.catalogue import Catalogue, Entry

_GONE_SHARE = 0.2  # a segment with more deleted rows is written anew


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting did.

    Attributes:
        segments_before, segments_after: How many there are.
        rows_removed: Deleted rows that are no longer stored.
        bytes_written: Bytes of vectors that were written anew.
        complete: False where the bound was reached and another call would do more.
    """

    segments_before: int
    segments_after: int
    rows_removed: int
    bytes_written: int
    complete: bool


def runs_to_merge(catalogue: Catalogue, full: int, max_bytes: int) -> tuple[list[list[str]], bool]:
    """Choose neighbouring segments worth writing anew, within a bound: their names, run by run; is it all?"""
    runs: list[list[Entry]] = [[]]
    for entry in catalogue.segments:
        small = entry.rows - entry.deleted < full // 2
        if small or entry.deleted > _GONE_SHARE * entry.rows:
            runs[-1].append(entry)
        elif runs[-1]:
            runs.append([])
    worth = [run for run in runs if len(run) > 1 or any(entry.deleted for entry in run)]
    chosen: list[list[str]] = []
    spent, complete = 0, True
    for run in worth:
        names: list[str] = []
        for entry in run:
            if spent + entry.vectors_bytes > max_bytes and (len(names) > 1 or (spent and not names)):
                complete = False
                break
            spent += entry.vectors_bytes
            names.append(entry.name)
        if names:
            chosen.append(names)
    return chosen, complete
