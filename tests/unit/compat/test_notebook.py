from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vecmill.compat.notebook import binary_quantization, packed, scalar_quantization
from vecmill.core.errors import InputError
from vecmill.core.measure import cosines

MERMAID = [
    -0.0039056178648024797,
    0.019039113074541092,
    0.004666934721171856,
    0.003809679765254259,
    -0.012193450704216957,
    -0.02396601065993309,
    -0.028496775776147842,
    0.02036368101835251,
    -0.04020743817090988,
    -0.0006201174110174179,
]
"""The first ten components of "The Little Mermaid" as the English notebook prints them."""


@pytest.fixture(scope="module")
def films(data_dir: Path) -> dict[str, list[float]]:
    path = data_dir / "vectors" / "peliculas_text-embedding-3-small-1536.json"
    films: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return films


def level(value: float, low: float, high: float) -> int:
    """The notebook's steps for one number: to [0, 1], to 0 ... 255, to -128 ... 127."""
    return int(round((value - low) / (high - low) * 255) * (127 - -128) / 255 + -128)


@pytest.mark.parametrize("value_range", [(-0.251, 0.15), (-0.248, 0.148), (-0.2445, 0.1455)])
def test_the_little_mermaid_has_the_bytes_the_notebook_prints(value_range: tuple[float, float]) -> None:
    got = scalar_quantization([MERMAID], value_range=value_range)
    assert got.tolist() == [[29, 44, 35, 34, 24, 16, 13, 45, 6, 31]]


def test_every_byte_of_the_films_is_the_notebooks(films: dict[str, list[float]]) -> None:
    table = list(films.values())
    low, high = min(map(min, table)), max(map(max, table))
    got = scalar_quantization(table)
    assert got.tolist() == [[level(value, low, high) for value in vector] for vector in table]
    assert (got.min(), got.max(), got[0].nbytes) == (-128, 127, 1536)


def test_every_bit_of_the_films_is_the_notebooks(films: dict[str, list[float]]) -> None:
    table = list(films.values())
    mean = sum(map(sum, table)) / sum(map(len, table))
    got = binary_quantization(table)
    assert got.tolist() == [[1 if value > mean else 0 for value in vector] for vector in table]
    assert got[0].nbytes == 1536
    assert packed(got).shape == (62, 192)
    np.testing.assert_array_equal(np.unpackbits(packed(got), axis=1), got)


def test_the_shift_lifts_cosines_and_keeps_most_of_their_order(films: dict[str, list[float]]) -> None:
    table = np.array(list(films.values()))
    lion = list(films).index("El Rey León")
    others = np.delete(np.arange(62), lion)

    def to_lion(vectors: np.ndarray) -> np.ndarray:
        left = np.repeat(vectors[lion : lion + 1], 61, axis=0).astype(np.float32)
        return cosines(left, vectors[others].astype(np.float32))

    plain, shifted = to_lion(table), to_lion(scalar_quantization(table, value_range=(-0.2477, 0.1478)))
    assert plain.max() < 0.51
    assert shifted.min() > 0.75
    assert len(np.intersect1d(np.argsort(-plain)[:10], np.argsort(-shifted)[:10])) >= 9


def test_levels_may_be_fewer() -> None:
    assert scalar_quantization([[0.0, 0.4, 1.0]], 3, 0, 10).tolist() == [[0, 5, 10]]


def test_values_beyond_a_given_range_get_its_end() -> None:
    assert scalar_quantization([[-9.0, 9.0]], value_range=(-1.0, 1.0)).tolist() == [[-128, 127]]


def test_a_threshold_takes_the_place_of_the_mean() -> None:
    assert binary_quantization([[0.1, 0.3]], threshold=0.0).tolist() == [[1, 1]]
    assert binary_quantization([[0.1, 0.3]]).tolist() == [[0, 1]]


@pytest.mark.parametrize("wrong", [[1.0], [], [["a"]], [[1.0], [1.0, 2.0]], [[np.nan]]])
def test_what_is_no_table_raises(wrong: object) -> None:
    with pytest.raises(InputError, match="embeddings"):
        scalar_quantization(wrong)
    with pytest.raises(InputError, match="embeddings"):
        binary_quantization(wrong)


def test_ranges_and_levels_that_cannot_be_raise() -> None:
    with pytest.raises(InputError, match=r"values from 1\.0 to 1\.0"):
        scalar_quantization([[1.0, 1.0]])
    with pytest.raises(InputError, match="not 256 from 0 to 255"):
        scalar_quantization([[0.0, 1.0]], min_level=0, max_level=255)
