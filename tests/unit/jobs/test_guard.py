"""The language guard: what it stops, what it marks, what it only mentions."""

from __future__ import annotations

import asyncio

import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import JobError
from vecmill.embedder.rows import Policy, Prepared, prepare
from vecmill.jobs.guard import Guard, warned_rows
from vecmill.jobs.state import Counts
from vecmill.models.resolve import open_model

ENGLISH = "The mill stands beside the river and grinds the grain of the whole valley into flour. " * 3
GERMAN = "Die Mühle steht am Fluss und mahlt das Getreide des ganzen Tals zu feinem weißem Mehl. " * 12
GREEK = "Ο μύλος στέκεται δίπλα στο ποτάμι και αλέθει το σιτάρι της κοιλάδας. "
CHINESE = "磨坊矗立在河边把整个山谷的谷物磨成面粉"


def ready(*texts: str) -> Prepared:
    provider = open_model("minilm", settings=load_settings())
    return asyncio.run(prepare(provider, texts, Policy()))


def test_chinese_stops_the_job_and_english_does_not() -> None:
    with pytest.raises(JobError, match="--any-language"):
        Guard(allow_any=False).look(ready(CHINESE), Counts(), "m")
    Guard(allow_any=True).look(ready(CHINESE), Counts(), "m")
    seen = Guard(allow_any=False).look(ready(ENGLISH), Counts(), "m")
    assert seen.unknown_tokens == 0


def test_what_was_read_before_counts() -> None:
    before = Counts(seen_tokens=10_000)
    seen = Guard(allow_any=False).look(ready(CHINESE), before, "m")
    assert 0 < seen.unknown_tokens < before.seen_tokens


@pytest.mark.parametrize(("text", "codes"), [(ENGLISH, []), (GERMAN, ["short_tokens"])])
def test_another_language_of_known_letters_is_mentioned(text: str, codes: list[str]) -> None:
    guard = Guard(allow_any=False)
    seen = guard.look(ready(text), Counts(), "m")
    assert [notice.code for notice in guard.notices(seen)] == codes


def test_rows_are_marked_for_what_is_wrong_with_them() -> None:
    assert warned_rows(ready(ENGLISH, CHINESE, GREEK, "12", ENGLISH, GREEK)) == {
        1: "unknown_tokens",
        2: "short_tokens",
        5: "short_tokens",
    }
