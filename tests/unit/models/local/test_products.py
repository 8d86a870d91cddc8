from __future__ import annotations

import numpy as np
import pytest

from vecmill.core.errors import ConfigError
from vecmill.models.local import products
from vecmill.models.local.products import Products


def codes(rows: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, (rows, d)).astype(np.int8)


@pytest.mark.parametrize(
    ("items", "queries", "d"), [(64, 16, 384), (128, 32, 1), (64, 64, 33), (192, 16, 2000)]
)
def test_products_are_numpys_integers(items: int, queries: int, d: int) -> None:
    product = Products(items, queries, d, threads=1)
    right = codes(queries, d, 1)
    product.ask(right)
    out = np.empty((items, queries), np.float32)
    for seed in (2, 3):
        left = codes(items, d, seed)
        product.multiply(left, np.ones((items, 1), np.float32), np.zeros((items, 1), np.float32), out)
        want = left.astype(np.int64) @ right.astype(np.int64).T
        np.testing.assert_array_equal(out, want.astype(np.float32))


def test_scale_and_offset_belong_to_the_item() -> None:
    product = Products(64, 16, 8, threads=1)
    left, right = codes(64, 8, 0), codes(16, 8, 1)
    scales = np.linspace(0.5, 2, 64, dtype=np.float32)[:, None]
    offsets = np.linspace(-100, 100, 64, dtype=np.float32)[:, None]
    out = np.empty((64, 16), np.float32)
    product.ask(right)
    product.multiply(left, scales, offsets, out)
    want = (left.astype(np.int64) @ right.astype(np.int64).T) * scales.astype(np.float64) + offsets
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-3)


def test_a_graph_that_saturates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Products.multiply

    def saturating(self: Products, items: object, scales: object, offsets: object, out: np.ndarray) -> None:
        honest(self, items, scales, offsets, out)  # type: ignore[arg-type]
        np.clip(out, -32768, 32767, out=out)

    monkeypatch.setattr(Products, "multiply", saturating)
    with pytest.raises(ConfigError, match=r"not exact on this processor.*engine='numpy'"):
        Products(64, 16, 384, threads=1)


def test_only_processors_with_8_bit_products_are_called_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = products.machine.Cpu
    monkeypatch.setattr(products.machine, "cpu", lambda: cpu("one", frozenset({"avx2", "avx512f"})))
    assert not products.are_fast()
    monkeypatch.setattr(products.machine, "cpu", lambda: cpu("two", frozenset({"avx2", "avx_vnni"})))
    assert products.are_fast()
