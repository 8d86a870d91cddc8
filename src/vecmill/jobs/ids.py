"""Ids must differ: two rows of one id are found before anything is embedded, in 8 bytes of memory per row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.jobs.layout import Layout, ids_of
from vecmill.jobs.windows import Window


def refuse_double_ids(windows: Callable[[], Iterable[Window]], layout: Layout) -> None:
    """Read the input and raise when two rows have one id; reads it again only to name them.

    Raises:
        InputError: Two rows have one id, or a row has none.
    """
    hashes = [_hashes(ids_of(window, layout)) for window in windows()]
    values = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
    unique, counts = np.unique(values, return_counts=True)
    suspects = unique[counts > 1]
    if len(suspects):
        _name_double(windows(), layout, suspects)


def _name_double(windows: Iterable[Window], layout: Layout, suspects: npt.NDArray[np.uint64]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for window in windows:
        ids = ids_of(window, layout)
        for at in np.flatnonzero(np.isin(_hashes(ids), suspects)):
            here = (window.files[at], int(window.rows[at]))
            if ids[at] in first:
                file, row = first[ids[at]]
                raise InputError(
                    f"id {ids[at]!r} stands twice: {file} row {row} and {here[0]} row {here[1]}; ids must "
                    f"differ: choose another --id column, or none"
                )
            first[ids[at]] = here


def _hashes(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    raw = b"".join(
        hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest() for one in ids
    )
    return np.frombuffer(raw, dtype="<u8")
