"""Import of a cache that was kept as a pickle: `{(text, engine): vector}`.

Notebooks around 2023 kept what they had paid for in such a file. `pickle_values` reads it without executing
anything. A key is made from the text as it stands in the file. The helper that filled those files replaced
newlines by blanks before it sent a text, so for a text with newlines the vector is that of its one-line form.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecmill.core import catalog
from vecmill.core.errors import StorageError
from vecmill.core.space import space_id
from vecmill.core.types import Vectors
from vecmill.embedder.cache.base import VectorCache, cache_keys
from vecmill.embedder.cache.pickle_values import Floats, PickledDict, as_vector, read_pickle

_BATCH = 256

_ENGINE = re.compile(r"[\w.:/@+-]{1,100}")
"""What a model is called. A text in its place would be shown in messages, and make a space of its own."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an entry of a file is not imported.

    Attributes:
        position: Of the entry, 0-based, in the order of the file.
        reason: What is wrong with it, without its text.
    """

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a file's entries; the three add up to `entries`.

    Attributes:
        entries: Entries of the file.
        imported: Entries whose vectors the cache has now and had not before.
        already: Entries it had, under their own or an equal text.
        skipped: Entries that are not imported, each with its reason.
        engines: Vectors found per engine, skipped ones left out.
    """

    entries: int
    imported: int
    already: int
    skipped: tuple[Problem, ...]
    engines: dict[str, int]


def hosted_space(engine: str) -> str:
    """Return the space of a model that OpenAI ran under this name, also of those it has given up."""
    return space_id("hosted", engine)


def hosted_dimensions(engine: str) -> int | None:
    """Return how many components the vectors of a hosted model have, None where the catalogue lacks it."""
    known = [entry.dimensions for entry in catalog.entries() if entry.model == engine]
    return known[0] if known else None


def read_pickle_cache(
    path: Path,
    *,
    dimensions: Callable[[str], int | None] = hosted_dimensions,
    report: Callable[[Problem], None] | None = None,
) -> Iterator[tuple[str, str, Floats]]:
    """Read the entries of a pickled cache, in the order of the file.

    Nothing in the file is executed. The whole file is read before the first entry is given out.

    Args:
        path: A pickle of `{(text, engine): vector}`; vectors are lists, tuples or float arrays.
        dimensions: How many components an engine's vectors have; None: unknown, then all must have as many.
        report: Called with each entry that is wrong, which is then left out. None: the first one raises.

    Yields:
        Text, engine and vector, (d,) float32, finite.

    Raises:
        CorruptFileError: The file is cut short or no pickle.
        StorageError: It is no such dict, asks for anything but plain values, or an entry is wrong.
    """
    value = read_pickle(path)
    if not isinstance(value, PickledDict):
        what = type(value).__name__.removeprefix("Pickled").lower()
        raise StorageError(f"{path} holds a {what}; a cache is a dict {{(text, engine): vector}}")
    entries = [_entry(key, vector) for key, vector in value.pairs]
    widths = _widths([entry for entry in entries if not isinstance(entry, str)], dimensions)
    for position, entry in enumerate(entries):
        reason = entry if isinstance(entry, str) else _width_problem(entry, widths)
        if isinstance(entry, str) or reason:
            if report is None:
                raise StorageError(f"{path}: entry {position}: {reason}")
            report(Problem(position, reason))
        else:
            yield entry


def import_pickle(
    path: Path,
    cache: VectorCache,
    *,
    spaces: Callable[[str], str] = hosted_space,
    dimensions: Callable[[str], int | None] = hosted_dimensions,
) -> ImportReport:
    """Put the vectors of a pickled cache into a cache; entries that are wrong are left out and reported.

    Args:
        path: As `read_pickle_cache`.
        cache: Where they are kept from now on.
        spaces: The space of an engine's vectors.
        dimensions: As `read_pickle_cache`.

    Raises:
        CorruptFileError: The file is cut short or no pickle.
        StorageError: It is not what it should be, or the cache does not keep what it is given.
    """
    skipped: list[Problem] = []
    engines: Counter[str] = Counter()
    imported = already = 0
    entries = read_pickle_cache(path, dimensions=dimensions, report=skipped.append)
    for engine, texts, vectors in _batches(entries):
        space = spaces(engine)
        keys = cache_keys(space, texts)
        before = cache.contains(space, keys, dimensions=vectors.shape[1])
        cache.put(space, keys, vectors)
        if not cache.contains(space, keys, dimensions=vectors.shape[1]).all():
            raise StorageError(
                f"the cache does not keep the vectors of {path}: it cannot be written, or its limit is too "
                f"small for them; {imported} were imported"
            )
        new = len({key for key, there in zip(keys, before, strict=True) if not there})
        imported += new
        already += len(keys) - new
        engines[engine] += len(keys)
    total = imported + already + len(skipped)
    return ImportReport(total, imported, already, tuple(skipped), dict(engines))


def _entry(key: object, value: object) -> tuple[str, str, Floats] | str:
    """Return text, engine and vector of an entry, or what is wrong with it."""
    match key:
        case (str(text), str(engine)):
            pass
        case _:
            return "its key is not (text, engine), two texts"
    if not _ENGINE.fullmatch(engine):
        return "the second part of its key is no model's name"
    vector = as_vector(value)
    if vector is None:
        return "its value is not a list of numbers"
    if not len(vector):
        return "its vector is empty"
    if not np.isfinite(vector).all():
        return "its vector has a component that is not finite"
    return text, engine, vector


def _widths(
    entries: Sequence[tuple[str, str, Floats]], dimensions: Callable[[str], int | None]
) -> dict[str, tuple[int, ...]]:
    """Return the widths an engine's vectors may have: one, or several where nobody can tell the right one."""
    seen: dict[str, set[int]] = {}
    for _, engine, vector in entries:
        seen.setdefault(engine, set()).add(len(vector))
    known = {engine: dimensions(engine) for engine in seen}
    return {engine: (right,) if (right := known[engine]) else tuple(sorted(seen[engine])) for engine in seen}


def _width_problem(entry: tuple[str, str, Floats], widths: dict[str, tuple[int, ...]]) -> str:
    _, engine, vector = entry
    right = widths[engine]
    if len(right) > 1:
        several = " or ".join(map(str, right))
        return f"vectors of {engine!r} have {several} dimensions; which is right cannot be told"
    if len(vector) != right[0]:
        return f"its vector has {len(vector)} dimensions; those of {engine!r} have {right[0]}"
    return ""


def _batches(entries: Iterator[tuple[str, str, Floats]]) -> Iterator[tuple[str, list[str], Vectors]]:
    """Gather entries of one engine, a few hundred at a time."""
    gathered: dict[str, tuple[list[str], list[Floats]]] = {}
    for text, engine, vector in entries:
        texts, vectors = gathered.setdefault(engine, ([], []))
        texts.append(text)
        vectors.append(vector)
        if len(texts) == _BATCH:
            yield engine, texts, np.stack(vectors)
            del gathered[engine]
    for engine, (texts, vectors) in gathered.items():
        yield engine, texts, np.stack(vectors)
