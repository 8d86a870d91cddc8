"""Texts to measure with: lengths as mixed as in a real table, the same ones for the same seed.

The mix: of twelve texts four are titles, five are title and description, two join two stories and one joins
three. Result files record the tokens, mean and 95th percentile.
"""

from __future__ import annotations

import csv
import hashlib
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from vecmill.core.errors import InputError
from vecmill.data.readers import batches, scan
from vecmill.data.sources import resolve
from vecmill.data.template import choose_text, template_columns

_STORIES = (0, 1, 2, 3)
_WEIGHTS = (4, 5, 2, 1)
_ATTEMPTS = 20

SENTENCES = (
    "The mill by the river grinds wheat and rye for three villages.",
    "A new wheel was cut from oak last winter.",
    "Flour is sold in bags of one, five and twenty-five kilograms.",
    "Prices follow the harvest, and the harvest follows the rain.",
    "When the river is low the stones stand still.",
    "The miller keeps a book of every sack that comes in and every sack that leaves.",
    "Visitors may climb to the hopper on the first Sunday of the month.",
    "An electric motor helps out in August.",
    "The bakery across the road buys half of what is ground.",
    "Two of the four stones were dressed again this spring, which takes a patient hand and a week of work.",
    "Bran goes to the farms, dust goes to the wind.",
    "Nobody remembers who painted the sign above the door.",
    "A school class counted forty swallows under the roof.",
    "Spelt needs a wider gap between the stones than wheat, or the grain is crushed before it is opened.",
    "The weir was repaired after the flood of 1958 and has held ever since.",
    "Rye bread keeps longer and tastes better on the second day.",
    "Moisture above fifteen per cent spoils a silo within weeks, so every delivery is measured at the gate.",
    "The night shift ended when the railway came.",
    "Old sacks become aprons, and old aprons become rags.",
    "A cat is on the payroll.",
)


def mixed_lengths(stories: Sequence[tuple[str, str]], n: int, *, seed: int = 0) -> list[str]:
    """Draw texts of mixed lengths from stories; no two are equal as long as the stories allow it.

    Args:
        stories: (title, description) pairs, at least one.
        n: Texts to return.
        seed: Of the draw; equal seeds give equal texts.

    Raises:
        InputError: There are no stories.
    """
    if not stories:
        raise InputError("no stories to draw texts from")
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    drawn: set[str] = set()
    texts: list[str] = []
    for kind in chance.choices(_STORIES, _WEIGHTS, k=n):
        for _ in range(_ATTEMPTS):
            text = _text(stories, chance.randrange(len(stories)), kind)
            if text not in drawn:
                break
        drawn.add(text)
        texts.append(text)
    return texts


def _text(stories: Sequence[tuple[str, str]], at: int, joined: int) -> str:
    if joined == 0:
        return stories[at][0]
    picked = [stories[(at + i) % len(stories)] for i in range(joined)]
    return " ".join(f"{title}. {description}" for title, description in picked)


def read_stories(path: Path) -> list[tuple[str, str]]:
    """Read (title, description) pairs from the first two columns of a CSV file with a header.

    Raises:
        InputError: The file has fewer than two columns, or no rows.
    """
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, [])
        stories = [(row[0].strip(), row[1].strip()) for row in rows if len(row) >= 2 and row[0].strip()]
    if len(header) < 2 or not stories:
        raise InputError(f"{path}: needs two columns, title and description, and at least one row")
    return stories


def read_texts(
    inputs: Sequence[str | Path],
    n: int,
    *,
    text: str | None = None,
    template: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Draw n different texts from tables, every one as likely as the other.

    Reads everything, keeps n texts in memory. Texts without a visible character are left out.

    Args:
        inputs: Files, folders, globs or URLs, as a job takes them.
        n: Texts to return.
        text: The column of the texts; None where only one column holds text.
        template: Joins columns, instead of `text`.
        seed: Of the draw.

    Raises:
        InputError: There are fewer than n different texts, or it is not clear which column holds them.
        StorageError: A file is damaged.
    """
    columns = () if text is None else (text,)
    mentioned = () if template is None else template_columns(template)
    with tempfile.TemporaryDirectory(prefix="vecmill-bench-") as folder:
        sources = resolve(inputs, spool_dir=Path(folder))
        seen = scan(sources, text_columns=columns, template_columns=mentioned)
        chosen = choose_text(seen, text=text, template=template)
        rows = batches(sources, seen, text_columns=columns, template_columns=mentioned)
        drawn = _drawn((one for batch in rows for one in chosen.texts(batch.batch)), n, seed)
    if len(drawn) < n:
        raise InputError(f"{len(drawn)} different texts are there, {n} are asked for: ask for fewer")
    return drawn


def _drawn(texts: Iterable[str | None], n: int, seed: int) -> list[str]:
    """Keep the n different texts of the smallest keyed hashes: a draw that needs no count before."""
    kept: dict[str, bytes] = {}
    for text in texts:
        if text is None or not text.strip() or text in kept:
            continue
        kept[text] = hashlib.blake2b(
            text.encode("utf-8", "surrogatepass"), digest_size=16, key=str(seed).encode()
        ).digest()
        if len(kept) >= 2 * n + 1000:
            kept = dict(sorted(kept.items(), key=lambda item: item[1])[:n])
    return sorted(kept, key=lambda text: kept[text])[:n]


def synthetic_stories(n: int = 200, *, seed: int = 0) -> list[tuple[str, str]]:
    """Make stories from the sentences of this file, for machines without real texts.

    They have realistic lengths but few different words: right for speed, wrong for judging quality.
    """
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    return [
        (
            chance.choice(SENTENCES)[:60].rpartition(" ")[0],
            " ".join(chance.sample(SENTENCES, chance.randint(1, 5))),
        )
        for _ in range(n)
    ]
