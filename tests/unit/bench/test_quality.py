from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from vecmill.bench.quality import closeness, read_collection, search_quality, similarity_quality
from vecmill.core.errors import InputError

WORDS = ("mill", "river", "bread", "cat")


def count_words(texts: list[str]) -> np.ndarray:
    """Embed a text as the counts of four words: every figure below can be worked out by hand."""
    return np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32)


def write(folder: Path, qrels: str, *, zipped: bool = False) -> Path:
    corpus = '{"_id":"a","title":"mill","text":"river"}\n{"_id":"b","title":"","text":"bread"}\n{"_id":"c"}\n'
    if zipped:
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    else:
        (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text('{"_id":"1","text":"mill"}\n{"_id":"2","text":"cat"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_documents_are_title_space_text_and_blank_where_empty(tmp_path: Path, zipped: bool) -> None:
    collection = read_collection(write(tmp_path, "1\ta\t2\n", zipped=zipped))
    assert collection.documents == {"a": "mill river", "b": " bread", "c": " "}
    assert collection.judged == {"1": {"a": 2.0}}


def test_a_judgement_of_an_absent_document_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="judges 1 and x"):
        read_collection(write(tmp_path, "1\tx\t2\n"))


def test_search_quality_is_the_mean_over_judged_queries(tmp_path: Path) -> None:
    assert search_quality(count_words, read_collection(write(tmp_path, "1\ta\t1\n"))) == 1.0
    # "cat" is equally far from all three, so rows keep their order and b comes second: gain 1 / log2(3).
    two = read_collection(write(tmp_path, "1\ta\t1\n2\tb\t1\n"))
    assert search_quality(count_words, two) == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_similarity_quality_is_the_rank_correlation_in_percent(tmp_path: Path) -> None:
    file = tmp_path / "sts.tsv"
    file.write_text("score\tsentence1\tsentence2\n5\tmill\tmill\n3\tmill river\tmill\n0\tmill\tcat\n")
    assert similarity_quality(count_words, file) == pytest.approx(100.0)


def test_closeness_of_equal_vectors_is_perfect_and_of_shuffled_ones_is_not() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    same = closeness(vectors, 3 * vectors)
    assert (same.overlap, same.cosine_min) == (1.0, pytest.approx(1.0))
    other = closeness(vectors, vectors[::-1])
    assert other.overlap < 0.5
    assert other.cosine_mean < 0.5


def test_closeness_leaves_out_the_row_itself_even_among_equal_texts() -> None:
    vectors = np.ones((30, 4), np.float32)
    moved = vectors.copy()
    moved[::2] += np.eye(4, dtype=np.float32)[0]
    assert closeness(vectors, vectors).overlap == 1.0
    assert closeness(vectors, moved).overlap < 1.0
