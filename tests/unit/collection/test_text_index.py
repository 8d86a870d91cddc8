"""Words rank texts by BM25, exactly under a filter, from any thread; two rankings fuse by reciprocal rank."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vecmill.collection.text_index import TextIndex, fused
from vecmill.core.errors import CorruptFileError, InputError, WriteError

TEXTS = [
    "A dog runs on the beach",
    "The cat sleeps",
    None,
    "Café au lait, don't spill",
    "dog dog dog",
    "",
    "A cat and a dog",
]


@pytest.fixture(params=["memory", "file"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TextIndex]:
    path = None if request.param == "memory" else tmp_path / "texts.sqlite"
    built = TextIndex.build(path, enumerate(TEXTS))
    yield built
    built.close()


def test_rows_come_best_first(index: TextIndex) -> None:
    assert index.ranked("dog", 10).tolist() == [4, 6, 0]
    assert index.ranked("cat sleeps", 1).tolist() == [1]
    assert index.ranked("dog", 10).dtype == np.int64


def test_the_rank_is_bm25(tmp_path: Path) -> None:
    generator = random.Random(7)
    words = [f"word{number}" for number in range(30)]
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 30))) for _ in range(300)]
    with_index = TextIndex.build(None, enumerate(texts))
    length = [len(text.split()) for text in texts]
    mean = sum(length) / len(texts)
    asked = ["word3", "word17"]
    worth = np.zeros(len(texts))
    for word in asked:  # Robertson and Zaragoza 2009, section 3; k1 = 1.2, b = 0.75
        counts = [text.split().count(word) for text in texts]
        holding = sum(count > 0 for count in counts)
        rarity = max(math.log((len(texts) - holding + 0.5) / (holding + 0.5)), 1e-6)
        for row, count in enumerate(counts):
            worth[row] += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length[row] / mean))
    found = with_index.ranked(" ".join(asked), 50)
    assert worth[found] == pytest.approx(np.sort(worth)[::-1][:50])


def test_case_and_diacritics_do_not_matter(index: TextIndex) -> None:
    assert index.ranked("CAFE", 5).tolist() == [3]
    assert index.ranked("dóg", 1).tolist() == [4]


def test_equal_texts_come_in_row_order() -> None:
    same = TextIndex.build(None, [(9, "a dog"), (3, "a dog"), (5, "a dog"), (4, "a cat")])
    assert same.ranked("dog", 2).tolist() == [3, 5]


@pytest.mark.parametrize("query", ["", "   ", "!!!", '"', "\0", "—…", "( ) * ^ :", "''"])
def test_a_query_without_a_word_finds_nothing(index: TextIndex, query: str) -> None:
    assert index.ranked(query, 5).tolist() == []


@pytest.mark.parametrize(
    "query",
    [
        "dog NOT cat",
        "text:dog",
        'dog" OR "cat',
        "dog*",
        "^dog",
        "NEAR(dog cat)",
        "-dog",
        "dog AND",
        "{dog",
        "dog\0cat",
        "dog \ud800",
        "dog; drop table texts",
        "dog " + "x" * 100_000,
        "dog " * 5_000 + " ".join(f"w{number}" for number in range(5_000)),
    ],
)
def test_words_are_never_syntax(index: TextIndex, query: str) -> None:
    assert {4, 0, 6} <= set(index.ranked(query, 10).tolist())


def test_a_piece_of_several_words_is_a_phrase(index: TextIndex) -> None:
    assert index.ranked("don't", 5).tolist() == [3]
    assert index.ranked("t'don", 5).tolist() == []
    assert index.ranked("cat-like walrus", 5).tolist() == [1, 6]


def test_a_filter_is_exact_however_few_rows_pass() -> None:
    many = TextIndex.build(None, ((row, "dog " * (1 + row % 7) + "x " * (row % 5)) for row in range(9_000)))
    everything = many.ranked("dog", 9_000)
    assert len(everything) == 9_000
    for step in (1, 2, 1_000, 8_999):
        allowed = np.zeros(9_000, bool)
        allowed[::step] = True
        expected = everything[allowed[everything]]
        assert many.ranked("dog", 5, allowed).tolist() == expected[:5].tolist()
    assert many.ranked("dog", 5, np.zeros(9_000, bool)).tolist() == []
    assert many.ranked("dog", 5, np.ones(3, bool)).tolist() == sorted(range(3), key=everything.tolist().index)
    assert many.ranked("dog", 2).tolist() == everything[:2].tolist()


def test_texts_can_be_added(index: TextIndex) -> None:
    assert len(index) == 6
    index.add([(100, "a dog and a walrus")])
    assert len(index) == 7
    assert index.ranked("walrus", 3).tolist() == [100]


def test_a_failed_addition_leaves_nothing(index: TextIndex) -> None:
    def pairs() -> Iterator[tuple[int, str]]:
        yield 100, "walrus"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        index.add(pairs())
    assert index.ranked("walrus", 3).tolist() == []


def test_a_file_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "ünder scöre?#%.sqlite"
    TextIndex.build(path, enumerate(TEXTS)).close()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    again = TextIndex.open(path)
    assert again.ranked("dog", 10).tolist() == [4, 6, 0]
    again.close()


def test_a_file_that_is_there_is_not_built_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(WriteError, match="there already"):
        TextIndex.build(tmp_path / "x", [])
    assert (tmp_path / "x").read_text() == "mine"


def test_what_is_not_a_text_index_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"not a database at all" * 100)
    with sqlite3.connect(tmp_path / "empty") as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()
    for name in ("missing", "other", "empty"):
        with pytest.raises(CorruptFileError, match="build it anew"):
            TextIndex.open(tmp_path / name)


def test_sixteen_threads_read_alike_while_one_adds(index: TextIndex) -> None:
    expected = index.ranked("cat", 10).tolist()

    def read(_: int) -> list[int]:
        return index.ranked("cat", 10).tolist()

    with ThreadPoolExecutor(17) as pool:
        adding = pool.submit(lambda: [index.add([(1_000 + n, "a walrus")]) for n in range(20)])
        answers = list(pool.map(read, range(200)))
        adding.result()
    assert answers == [expected] * 200
    assert len(index.ranked("walrus", 100)) == 20


def test_a_closed_index_says_so(index: TextIndex) -> None:
    index.close()
    index.close()
    with pytest.raises(InputError, match="closed"):
        index.ranked("dog", 1)


def test_a_count_below_one_is_refused(index: TextIndex) -> None:
    with pytest.raises(InputError, match="count is 0"):
        index.ranked("dog", 0)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_fused_sums_reciprocal_ranks() -> None:
    vector, words = rows(1, 2, 3, 4), rows(4, 9, 1)
    worth = {1: 1 / 61 + 1 / 63, 2: 1 / 62, 3: 1 / 63, 4: 1 / 64 + 1 / 61, 9: 1 / 62}
    expected = sorted(worth, key=lambda row: (-worth[row], row))
    assert expected[:2] == [1, 4]
    assert fused([vector, words], 10).tolist() == [1, 4, 2, 9, 3]
    assert fused([vector, words], 2).tolist() == [1, 4]


def test_equal_sums_go_to_the_better_first_ranking_then_the_lower_row() -> None:
    assert fused([rows(5, 3), rows(3, 5)], 2).tolist() == [5, 3]
    assert fused([rows(7), rows(2)], 2).tolist() == [7, 2]
    assert fused([rows(), rows(8), rows(2)], 2).tolist() == [2, 8]


def test_one_ranking_stays_as_it_is_and_none_gives_none() -> None:
    assert fused([rows(3, 1, 2)], 5).tolist() == [3, 1, 2]
    assert fused([], 5).tolist() == []
    assert fused([rows(), rows()], 5).dtype == np.int64


def test_a_small_constant_favours_first_ranks() -> None:
    one, two = rows(1, 2, 3), rows(9, 3, 2)
    assert fused([one, two], 1, constant=60).tolist() == [2]
    assert fused([one, two], 1, constant=0).tolist() == [1]


def test_fused_needs_a_k() -> None:
    with pytest.raises(InputError, match="k is 0"):
        fused([rows(1)], 0)
