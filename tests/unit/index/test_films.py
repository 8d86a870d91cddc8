"""The 62 Spanish film titles with vectors bought from OpenAI: what the demo notebooks print, and beyond."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest
from vecmill.index.codes import Codes, CodeSpec, fit
from vecmill.index.exact import ExactIndex
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex

NEIGHBOURS = [
    ("El Libro de la selva", 0.503),
    ("La Bella y la Bestia", 0.494),
    ("Cenicienta", 0.457),
    ("Encanto", 0.454),
    ("Piglet", 0.450),
    ("Aladdín", 0.449),
    ("Frozen", 0.445),
    ("Merlín", 0.436),
    ("Jorobado", 0.422),
    ("Dumbo", 0.420),
]
"""What is nearest to "El Rey León", as printed by the Spanish notebook; words of the titles."""


class Films:
    def __init__(self, folder: Path, model: str) -> None:
        table = json.loads((folder / "vectors" / f"peliculas_{model}.json").read_text(encoding="utf-8"))
        self.titles = list(table)
        self.vectors = np.array(list(table.values()), np.float32)

    def row(self, title: str) -> int:
        return self.titles.index(title)


@pytest.fixture(scope="module")
def films(data_dir: Path) -> Films:
    return Films(data_dir, "text-embedding-3-small-1536")


@pytest.fixture(scope="module")
def ada(data_dir: Path) -> Films:
    return Films(data_dir, "text-embedding-ada-002")


def left_out(vectors: np.ndarray, spec: CodeSpec, engine: str, metric: Metric = Metric.COSINE) -> list[float]:
    """Recall@10 at oversample 1 to 5, every film asking for its like among the 61 others."""
    codec = fit(vectors, spec, metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric, engine=engine)
    hits = np.zeros(5)
    for row in range(len(vectors)):
        others = np.arange(len(vectors)) != row
        query = vectors[row : row + 1]
        true = nearest(query, vectors, 10, metric=Metric.COSINE, allowed=others).rows[0]
        for oversample in range(1, 6):
            named = codes.candidates(query, 10 * oversample, allowed=others)[0]
            hits[oversample - 1] += len(np.intersect1d(true, named)) / 10
    return list(hits / len(vectors))


def test_neighbours_of_the_lion_king_are_those_the_notebook_prints(films: Films) -> None:
    lion = films.row("El Rey León")
    codec = fit(films.vectors, CodeSpec(Precision.INT8), metric="cosine")
    codes = Codes(codec, codec.encode(films.vectors), metric="cosine")
    indexes = [
        ExactIndex(films.vectors),
        RescoredIndex(codes, ArrayOriginals(films.vectors), metric="cosine", oversample=2.0),
    ]
    wide = films.vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    brute = wide @ wide[lion]
    for index in indexes:
        got = index.search(films.vectors[lion : lion + 1], 11)
        assert got.rows[0, 0] == lion
        for rank, (words, printed) in enumerate(NEIGHBOURS, start=1):
            assert words in films.titles[got.rows[0, rank]]
            assert f"{1.0 - got.distances[0, rank]:.3f}" == f"{printed:.3f}"
        np.testing.assert_allclose(1.0 - got.distances[0], np.sort(brute)[::-1][:11], atol=1e-6)


def test_the_least_similar_film_is_the_one_the_notebook_drops(films: Films) -> None:
    lion = films.row("El Rey León")
    got = ExactIndex(films.vectors).search(films.vectors[lion : lion + 1], 62)
    assert films.titles[got.rows[0, -1]] == "101 Dálmatas"
    assert 1.0 - got.distances[0, -1] == pytest.approx(0.165964, abs=1e-6)
    tail = [
        (films.titles[row], round(1.0 - float(x), 3))
        for row, x in zip(got.rows[0], got.distances[0], strict=True)
    ]
    for words, printed in (("Ralph", 0.174), ("Mary Poppins", 0.196), ("Bolt", 0.201)):
        assert any(words in title and similarity == printed for title, similarity in tail[-6:-1])


@pytest.mark.parametrize("engine", ["numpy", "auto"])
def test_recall_grows_with_oversampling_and_with_bytes(films: Films, engine: str) -> None:
    measured = {
        name: left_out(films.vectors, spec, engine)
        for name, spec in {
            "int8": CodeSpec(Precision.INT8),
            "int8 per dimension": CodeSpec(Precision.INT8, scale="dimension"),
            "binary": CodeSpec(Precision.BINARY),
            "1024": CodeSpec(Precision.FLOAT32, shorten=1024),
            "512": CodeSpec(Precision.FLOAT32, shorten=512),
            "256": CodeSpec(Precision.FLOAT32, shorten=256),
            "128": CodeSpec(Precision.FLOAT32, shorten=128),
            "64": CodeSpec(Precision.FLOAT32, shorten=64),
            "512 binary": CodeSpec(Precision.BINARY, shorten=512),
            "256 binary": CodeSpec(Precision.BINARY, shorten=256),
            "64 binary": CodeSpec(Precision.BINARY, shorten=64),
        }.items()
    }
    for reached in measured.values():
        assert reached == sorted(reached)
        assert reached[-1] > 0.96
    for better, worse in (
        ("int8", "binary"),
        ("int8 per dimension", "binary"),
        ("1024", "512"),
        ("512", "256"),
        ("256", "128"),
        ("128", "64"),
        ("binary", "512 binary"),
        ("512 binary", "256 binary"),
        ("256 binary", "64 binary"),
        ("512", "512 binary"),
        ("256", "256 binary"),
        ("64", "64 binary"),
    ):
        assert measured[better][0] > measured[worse][0]
        assert all(a >= b for a, b in zip(measured[better], measured[worse], strict=True))
    # computed once by hand, with NumPy alone
    assert measured["int8"] == pytest.approx([0.9984, 1, 1, 1, 1], abs=0.002)
    assert measured["binary"] == pytest.approx([0.8452, 0.9952, 0.9984, 1, 1], abs=0.006)
    assert measured["256"] == pytest.approx([0.7371, 0.9532, 0.9935, 1, 1], abs=0.002)
    assert measured["256 binary"] == pytest.approx([0.6145, 0.8597, 0.95, 0.9823, 0.9952], abs=0.01)


def test_plain_hamming_finds_less_than_a_float_query(films: Films) -> None:
    bits = CodeSpec(Precision.BINARY)
    hamming = left_out(films.vectors, bits, "numpy", Metric.HAMMING)
    assert hamming == sorted(hamming)
    assert hamming[0] == pytest.approx(0.7613, abs=0.006)
    assert hamming[0] < left_out(films.vectors, bits, "numpy")[0] - 0.05


@pytest.mark.parametrize("engine", ["numpy", "auto"])
def test_the_outlying_component_of_ada_002_costs_no_recall(ada: Films, engine: str) -> None:
    reach = np.abs(ada.vectors).max(axis=0)
    assert reach.argmax() == 194
    codec = fit(ada.vectors, CodeSpec(Precision.INT8), metric="cosine")
    assert len(codec.quantizer.arrays()["step"]) == 1536
    reached = left_out(ada.vectors, CodeSpec(Precision.INT8), engine)
    assert reached[1] >= 0.99
    assert reached[0] > left_out(ada.vectors, CodeSpec(Precision.INT8, scale="global"), engine)[0]


def test_shortened_vectors_are_what_the_vendor_sells_as_256_dimensions(films: Films, data_dir: Path) -> None:
    sold = Films(data_dir, "text-embedding-3-small-256")
    codec = fit(films.vectors, CodeSpec(Precision.FLOAT32, shorten=256), metric="cosine")
    cut = codec.decode(codec.encode(films.vectors))
    assert sold.titles == films.titles
    assert np.abs(cut - sold.vectors).max() < 5e-4
    assert np.vecdot(cut, sold.vectors).min() > 0.999999


def test_payloads_are_as_small_as_promised(films: Films) -> None:
    def size(spec: CodeSpec) -> int:
        codec = fit(films.vectors, spec, metric="cosine")
        return int(codec.encode(films.vectors)[0].nbytes)

    assert size(CodeSpec(Precision.FLOAT32)) == 6144
    assert size(CodeSpec(Precision.INT8)) == 1536
    assert size(CodeSpec(Precision.BINARY)) == 192
    assert size(CodeSpec(Precision.BINARY, shorten=256)) == 32
    assert size(CodeSpec(Precision.FLOAT32, shorten=256)) == 1024
