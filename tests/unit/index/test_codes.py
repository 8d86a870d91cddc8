from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import CorruptFileError, DimensionMismatchError, FormatVersionError, InputError
from vecmill.core.measure import recall
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import distances, nearest, pair_distances
from vecmill.index import codec as codec_module
from vecmill.index import fast_scan, quantizers
from vecmill.index.base import Candidates
from vecmill.index.codes import Codec, Codes, CodeSpec, codec_from_bytes, fit
from vecmill.index.quantizers import Bits

FLOAT_METRICS = [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN, Metric.MANHATTAN, Metric.CHEBYSHEV]
SIGN_METRICS = [Metric.HAMMING, Metric.JACCARD]
SPECS = [
    CodeSpec(Precision.FLOAT16),
    CodeSpec(Precision.INT8),
    CodeSpec(Precision.INT8, scale="dimension"),
    CodeSpec(Precision.BINARY),
    CodeSpec(Precision.PQ),
    CodeSpec(Precision.PQ, bits=8),
    CodeSpec(Precision.FLOAT32, shorten=12),
]
ENGINES = ["numpy", "auto"]


def clustered(n: int, d: int, seed: int = 0, *, scale: float = 1.0) -> np.ndarray:
    """Vectors around some centres, off the origin: nothing a code has it easy with."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, d)) + 0.3
    return (scale * (centres[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, d)))).astype(np.float32)


def named(spec: CodeSpec) -> str:
    return f"{spec.precision.value}-{spec.scale}-{spec.bits}-{spec.shorten}"


@pytest.mark.parametrize(
    ("spec", "dimensions", "want"),
    [
        (CodeSpec(Precision.FLOAT32), 1536, 6144),
        (CodeSpec(Precision.FLOAT16), 1536, 3072),
        (CodeSpec(Precision.INT8), 1536, 1536),
        (CodeSpec(Precision.BINARY), 1536, 192),
        (CodeSpec(Precision.BINARY, shorten=256), 1536, 32),
        (CodeSpec(Precision.FLOAT32, shorten=256), 1536, 1024),
        (CodeSpec(Precision.BINARY), 384, 48),
        (CodeSpec(Precision.PQ), 384, 48),
        (CodeSpec(Precision.PQ, bits=8), 384, 48),
        (CodeSpec(Precision.PQ, parts=48), 384, 24),
        (CodeSpec(Precision.BINARY), 13, 2),
        (CodeSpec(Precision.PQ), 13, 2),
        (CodeSpec(Precision.PQ), 9, 2),
    ],
)
def test_a_vector_takes_exactly_its_payload(spec: CodeSpec, dimensions: int, want: int) -> None:
    vectors = clustered(300, dimensions)
    codec = fit(vectors, spec, metric="cosine")
    assert codec.size_bytes == want
    assert codec.encode(vectors).shape == (300, want)


@pytest.mark.parametrize("spec", SPECS, ids=named)
@pytest.mark.parametrize("metric", FLOAT_METRICS)
@pytest.mark.parametrize("engine", ENGINES)
def test_candidates_hold_most_true_neighbours(spec: CodeSpec, metric: Metric, engine: str) -> None:
    vectors, queries = clustered(2000, 24, scale=3.0), clustered(40, 24, seed=1, scale=3.0)
    codec = fit(vectors, spec, metric=metric)
    codes: Candidates = Codes(codec, codec.encode(vectors), metric=metric, engine=engine)
    true = nearest(queries, vectors, 10, metric=metric)
    rows = codes.candidates(queries, 400)
    hits = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(true.rows, rows, strict=True)])
    coarse = spec.precision in (Precision.BINARY, Precision.FLOAT32) or metric is Metric.CHEBYSHEV
    assert hits > (0.75 if coarse else 0.99)


@pytest.mark.parametrize("spec", SPECS, ids=named)
@pytest.mark.parametrize("metric", FLOAT_METRICS)
def test_both_engines_name_the_best_by_estimate(spec: CodeSpec, metric: Metric) -> None:
    vectors, queries = clustered(700, 21), clustered(20, 21, seed=1)
    codec = fit(vectors, spec if spec.shorten is None else CodeSpec(Precision.INT8, shorten=7), metric=metric)
    packed = codec.encode(vectors)
    estimates = codec.estimate(queries, packed)
    allowed = np.random.default_rng(2).random(700) < 0.5
    for engine in ENGINES:
        codes = Codes(codec, packed, metric=metric, engine=engine)
        for mask in (None, allowed):
            rows = codes.candidates(queries, 20, allowed=mask)
            limit = np.sort(estimates if mask is None else estimates[:, mask], axis=1)[:, 19]
            got = np.take_along_axis(estimates, rows, axis=1)
            # tables in registers have 8 bits: near the limit their order may differ
            assert np.mean(got <= limit[:, None] + 1e-4 * np.abs(limit[:, None])) > 0.93
            assert mask is None or mask[rows].all()
        np.testing.assert_array_equal(codes.codes(np.arange(700)), packed)
        np.testing.assert_array_equal(codes.codes(slice(31, 99)), packed[31:99])
        assert codes.size_bytes <= 1.1 * packed.nbytes + 8 * 700


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
@pytest.mark.parametrize("engine", ENGINES)
def test_signs_that_are_all_alike_are_taken_around_the_mean(metric: Metric, engine: str) -> None:
    rng = np.random.default_rng(0)
    vectors = (5.0 + rng.normal(size=(1000, 64))).astype(np.float32)
    queries = (5.0 + rng.normal(size=(20, 64))).astype(np.float32)
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=metric)
    packed = codec.encode(vectors)
    assert 0.4 < np.unpackbits(packed).mean() < 0.6
    rows = Codes(codec, packed, metric=metric, engine=engine).candidates(queries, 100)
    estimates = codec.estimate(queries, packed)
    limit = np.sort(estimates, axis=1)[:, 99:100]
    assert np.mean(np.take_along_axis(estimates, rows, axis=1) <= limit + 1e-4 * np.abs(limit)) > 0.93
    assert fit(queries - 5.0, CodeSpec(Precision.BINARY), metric=metric).quantizer.arrays()["mean"].size == 1


def test_counting_bits_first_passes_on_the_rows_allowed() -> None:
    vectors, queries = clustered(4000, 64), clustered(3, 64, seed=1)
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric="cosine")
    packed = codec.encode(vectors)
    codes = Codes(codec, packed, metric="cosine", engine="numpy")
    estimates = codec.estimate(queries, packed)
    for allowed in (np.ones(4000, np.bool_), np.random.default_rng(2).random(4000) < 0.5):
        rows = codes.candidates(queries, 20, allowed=allowed)
        limit = np.sort(estimates[:, allowed], axis=1)[:, 19:20]
        assert allowed[rows].all()
        assert np.mean(np.take_along_axis(estimates, rows, axis=1) <= limit + 1e-6) > 0.9


@pytest.mark.parametrize("spec", [SPECS[1], SPECS[2], SPECS[0]], ids=named)
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.EUCLIDEAN])
def test_faiss_decodes_as_the_codec_does(spec: CodeSpec, metric: Metric) -> None:
    pytest.importorskip("faiss")
    vectors = clustered(200, 24, scale=3.0)
    codec = fit(vectors, spec, metric=metric)
    packed = codec.encode(vectors)
    held = fast_scan.ScalarCodes(codec, packed)
    decoded = held._index.reconstruct_n(0, 200)
    want = codec.quantizer.decode(packed)
    if held._whole:
        decoded = decoded * codec.quantizer.arrays()["step"]
    np.testing.assert_allclose(decoded, want, atol=1e-6)


@pytest.mark.parametrize("spec", [CodeSpec(Precision.BINARY), CodeSpec(Precision.PQ)], ids=named)
def test_what_scores_lowest_is_named_when_all_are_asked_for(spec: CodeSpec) -> None:
    vectors = clustered(70, 8)
    for n in (1, 2, 70):
        codec = fit(vectors[:n], spec, metric="cosine")
        codes = Codes(codec, codec.encode(vectors[:n]), metric="cosine")
        rows = codes.candidates(np.concatenate((vectors[:3], -vectors[:3])), n)
        np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (6, 1)))


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
def test_shortened_vectors_keep_their_length(metric: Metric) -> None:
    vectors = clustered(50, 32, scale=7.0)
    codec = fit(vectors, CodeSpec(Precision.FLOAT32, shorten=8), metric=metric)
    decoded = codec.decode(codec.encode(vectors))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", SIGN_METRICS)
@pytest.mark.parametrize("dimensions", [5, 64, 100])
def test_packed_signs_answer_hamming_and_jaccard_exactly(
    metric: Metric, engine: str, dimensions: int
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, dimensions)).astype(np.float32)
    vectors[7] = -1.0  # no bit is set
    queries = np.concatenate((vectors[5:9], rng.normal(size=(12, dimensions)).astype(np.float32)))
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric, engine=engine)
    np.testing.assert_array_equal(
        codec.estimate(queries, codec.encode(vectors)), distances(queries, vectors, metric=metric)
    )
    for allowed in (None, rng.random(500) < 0.3):
        want = nearest(queries, vectors, 20, metric=metric, allowed=allowed)
        np.testing.assert_array_equal(codes.candidates(queries, 20, allowed=allowed), want.rows)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FLOAT16, Precision.PQ, Precision.FLOAT32])
def test_metrics_of_signs_take_binary_only(precision: Precision) -> None:
    with pytest.raises(InputError, match="hamming looks at signs only: use precision binary"):
        fit(clustered(10, 8), CodeSpec(precision), metric="hamming")


@pytest.mark.parametrize("metric", FLOAT_METRICS)
@pytest.mark.parametrize(("spec", "off"), [(SPECS[0], 2e-3), (SPECS[1], 0.03), (SPECS[2], 0.03)])
def test_estimates_are_on_the_scale_of_distances(metric: Metric, spec: CodeSpec, off: float) -> None:
    vectors, queries = clustered(500, 32, scale=40.0), clustered(20, 32, seed=1, scale=40.0)
    codec = fit(vectors, spec, metric=metric)
    true = distances(queries, vectors, metric=metric)
    estimated = codec.estimate(queries, codec.encode(vectors))
    assert np.abs(estimated - true).max() <= off * np.abs(true).max()


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
def test_one_bit_estimates_are_right_on_average(metric: Metric) -> None:
    vectors, queries = clustered(1000, 256), clustered(50, 256, seed=1)
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=metric)
    true, estimated = (
        distances(queries, vectors, metric=metric),
        codec.estimate(queries, codec.encode(vectors)),
    )
    slope = np.polyfit(estimated.ravel(), true.ravel(), 1)[0]
    assert 0.85 < slope < 1.15
    assert abs(np.mean(estimated - true)) < 0.1 * np.std(true)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
def test_shortened_codes_compare_leading_components_at_full_length(metric: Metric) -> None:
    vectors, queries = clustered(50, 32), clustered(5, 32, seed=1)
    vectors[:, 8:] *= 1e-3
    queries[:, 8:] *= 1e-3
    codec = fit(vectors, CodeSpec(Precision.FLOAT32, shorten=8), metric=metric)
    assert codec.decode(codec.encode(vectors)).shape == (50, 8)
    true = distances(queries, vectors, metric=metric)
    np.testing.assert_allclose(codec.estimate(queries, codec.encode(vectors)), true, atol=1e-3, rtol=1e-3)


def test_an_outlying_component_gets_a_scale_of_its_own() -> None:
    vectors = clustered(400, 16)
    plain = fit(vectors, CodeSpec(Precision.INT8), metric="dot")
    vectors[:, 5] += 200.0
    codec = fit(vectors, CodeSpec(Precision.INT8), metric="dot")
    assert len(plain.quantizer.arrays()["step"]) == 1
    assert len(codec.quantizer.arrays()["step"]) == 16
    assert np.abs(codec.decode(codec.encode(vectors)) - vectors)[:, :5].max() < 0.05
    alike = fit(vectors, CodeSpec(Precision.INT8, scale="global"), metric="dot")
    assert np.abs(alike.decode(alike.encode(vectors)) - vectors)[:, :5].max() > 0.5


def test_float16_decodes_every_half_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)][:, None]
    codec = fit(np.ones((1, 1), np.float32), CodeSpec(Precision.FLOAT16), metric="cosine")
    np.testing.assert_array_equal(codec.decode(halves.view(np.uint8)), halves.astype(np.float32))


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_a_codec_survives_its_bytes(spec: CodeSpec) -> None:
    vectors = clustered(300, 24)
    codec = fit(vectors, spec, metric="euclidean")
    read = codec_from_bytes(codec.to_bytes())
    assert (read.spec, read.metric, read.dimensions, read.size_bytes) == (
        codec.spec,
        codec.metric,
        codec.dimensions,
        codec.size_bytes,
    )
    assert read.to_bytes() == codec.to_bytes()
    np.testing.assert_array_equal(read.encode(vectors), codec.encode(vectors))
    np.testing.assert_array_equal(
        read.estimate(vectors[:3], read.encode(vectors)), codec.estimate(vectors[:3], codec.encode(vectors))
    )


def test_equal_seeds_give_equal_bytes() -> None:
    vectors = clustered(900, 24)
    made = [fit(vectors, CodeSpec(Precision.PQ), metric="dot", seed=seed).to_bytes() for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_every_flipped_byte_and_every_cut_of_a_codec_is_noticed() -> None:
    data = fit(clustered(50, 6), CodeSpec(Precision.INT8, scale="dimension"), metric="dot").to_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(CorruptFileError, match=r"films\.codec is damaged"):
            codec_from_bytes(bytes(damaged), where="films.codec")
        with pytest.raises(CorruptFileError):
            codec_from_bytes(data[:at])
    with pytest.raises(CorruptFileError):
        codec_from_bytes(data + b"\0")


def test_a_codec_of_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "_FORMAT", 2)
    data = fit(clustered(5, 4), CodeSpec(Precision.FLOAT16), metric="dot").to_bytes()
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match="format 2, this version reads up to 1"):
        codec_from_bytes(data)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_few_allowed_rows_are_all_named_and_the_rest_is_minus_one(spec: CodeSpec, engine: str) -> None:
    vectors = clustered(400, 16)
    codec = fit(vectors, spec, metric="cosine")
    codes = Codes(codec, codec.encode(vectors), metric="cosine", engine=engine)
    allowed = np.zeros(400, np.bool_)
    allowed[[3, 77]] = True
    rows = codes.candidates(vectors[:2], 5, allowed=allowed)
    assert [sorted(row) for row in rows.tolist()] == [[-1, -1, -1, 3, 77]] * 2
    assert codes.candidates(vectors[:2], 1000).shape == (2, 400)
    assert codes.candidates(vectors[:0], 3).shape == (0, 3)
    assert (codes.candidates(vectors[:2], 3, allowed=np.zeros(400, np.bool_)) == -1).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_filter_that_excludes_the_nearest_still_gets_enough(engine: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    query = vectors[:1]
    far = np.argsort(distances(query, vectors, metric=Metric.COSINE)[0])[-300:]
    allowed = np.zeros(3000, np.bool_)
    allowed[far] = True
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric="cosine")
    rows = Codes(codec, codec.encode(vectors), metric="cosine", engine=engine).candidates(
        query, 50, allowed=allowed
    )
    assert len(np.unique(rows)) == 50
    assert allowed[rows].all()


def test_wrong_tables_raise_saying_what_would_be_right() -> None:
    vectors = clustered(20, 8)
    codec = fit(vectors, CodeSpec(Precision.INT8), metric="cosine")
    packed = codec.encode(vectors)
    with pytest.raises(InputError, match="made for cosine, not for dot"):
        Codes(codec, packed, metric="dot")
    with pytest.raises(InputError, match=r"\(n, 8\) of uint8"):
        Codes(codec, packed[:, :7], metric="cosine")
    with pytest.raises(InputError, match="engine is 'gpu'"):
        Codes(codec, packed, metric="cosine", engine="gpu")
    codes = Codes(codec, packed, metric="cosine")
    with pytest.raises(DimensionMismatchError, match="have 7 dimensions, not the 8"):
        codes.candidates(vectors[:, :7], 1)
    with pytest.raises(InputError, match="count is 0"):
        codes.candidates(vectors, 0)
    with pytest.raises(InputError, match="one bool for each of 20"):
        codes.candidates(vectors, 1, allowed=np.ones(19, np.bool_))
    with pytest.raises(InputError, match="holds NaN"):
        codec.encode(np.full((1, 8), np.nan, np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8", "scale": "rows"}, "scale is 'rows'"),
        ({"precision": "binary", "scale": "global"}, "for int8, not for binary"),
        ({"precision": "int8", "shorten": 0}, "shorten vectors to 0"),
        ({"precision": "pq", "bits": 6}, "bits is 6"),
        ({"precision": "int8", "parts": 3}, "parts and bits are for pq"),
        ({"precision": "int9"}, "unknown precision 'int9'"),
    ],
)
def test_specs_that_mean_nothing_raise(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodeSpec(**arguments)


def test_samples_that_teach_nothing_raise() -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        fit(np.empty((0, 4), np.float32), CodeSpec(Precision.INT8), metric="dot")
    with pytest.raises(InputError, match="4 dimensions to 5"):
        fit(np.ones((2, 4), np.float32), CodeSpec(Precision.INT8, shorten=5), metric="dot")
    with pytest.raises(InputError, match="pq has 9 parts of 4 dimensions"):
        fit(np.ones((2, 4), np.float32), CodeSpec(Precision.PQ, parts=9), metric="dot")


def test_mapped_codes_are_searched_where_they_lie(tmp_path: Path) -> None:
    vectors = clustered(500, 16)
    codec = fit(vectors, CodeSpec(Precision.INT8), metric="cosine")
    np.save(tmp_path / "codes.npy", codec.encode(vectors))
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    codes = Codes(codec, mapped, metric="cosine", engine="numpy")
    assert np.shares_memory(codes.codes(slice(0, 500)), mapped)
    assert codes.candidates(vectors[3:4], 1)[0, 0] == 3


def test_real_vectors_are_found_in_56_bytes_and_in_a_quarter(real_vectors: np.ndarray) -> None:
    vectors, queries = real_vectors[:-1000], real_vectors[-1000:]
    true = nearest(queries, vectors, 10, metric=Metric.COSINE)

    def reached(codec: Codec, oversample: int, engine: str) -> float:
        codes = Codes(codec, codec.encode(vectors), metric="cosine", engine=engine)
        # half of them by many at once, half by one at a time: other ways through the codes
        named = [codes.candidates(queries[:500], 10 * oversample)]
        named += [codes.candidates(query, 10 * oversample) for query in queries[500:, None]]
        rows = np.concatenate(named)
        at = np.repeat(np.arange(len(queries)), rows.shape[1])
        near = pair_distances(queries[at], vectors[rows.ravel()], Metric.COSINE).reshape(rows.shape)
        return recall(true.distances, np.sort(near, axis=1), 10, epsilon=1e-6)

    for engine in ENGINES:
        int8 = fit(vectors[:5000], CodeSpec(Precision.INT8), metric="cosine")
        assert int8.size_bytes * 4 == 384 * 4
        assert reached(int8, 2, engine) >= 0.999
        bits = fit(vectors[:5000], CodeSpec(Precision.BINARY), metric="cosine")
        assert bits.size_bytes <= 56
        assert reached(bits, 20, engine) >= 0.998
        groups = fit(vectors[:5000], CodeSpec(Precision.PQ), metric="cosine")
        assert groups.size_bytes <= 56
        assert reached(groups, 20, engine) >= 0.99


def forged(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the header of a codec and digest it again, as whoever wants to do harm would."""
    (length,) = struct.unpack_from("<I", data, 8)
    header = json.loads(data[12 : 12 + length])
    change(header)
    text = json.dumps(header).encode()
    body = data[:8] + struct.pack("<I", len(text)) + text + data[12 + length : -16]
    return body + hashlib.blake2b(body, digest_size=16).digest()


@pytest.mark.parametrize("precision", ["int8", "binary", "pq"])
@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(arrays=[[name, kind, [1 << 40]] for name, kind, _ in header["arrays"]]),
        lambda header: header.update(arrays=[[name, kind, [-1]] for name, kind, _ in header["arrays"]]),
        lambda header: header.update(arrays=[[name, "|O", shape] for name, _, shape in header["arrays"]]),
        lambda header: header.update(arrays=[]),
        lambda header: header.update(dimensions=1 << 40),
        lambda header: header.update(dimensions=-3),
        lambda header: header.update(exponent=10**9),
        lambda header: header.update(metric="nearness"),
        lambda header: header.update(format="new"),
        lambda header: header["spec"].update(bits=7),
        lambda header: header["spec"].update(shorten=1 << 30),
        lambda header: header["spec"].update(more=1),
        lambda header: header.pop("metric"),
        lambda header: header.clear(),
    ],
    ids=[
        "huge array",
        "negative shape",
        "objects",
        "no arrays",
        "huge dimensions",
        "negative dimensions",
        "exponent",
        "metric",
        "format",
        "bits",
        "shorten",
        "unknown field",
        "missing field",
        "empty",
    ],
)
def test_a_forged_header_is_refused(precision: str, change: Callable[[dict[str, Any]], object]) -> None:
    data = fit(clustered(300, 20), CodeSpec(Precision(precision)), metric="cosine").to_bytes()
    with pytest.raises(CorruptFileError, match=r"films\.codec is no codec"):
        codec_from_bytes(forged(data, change), where="films.codec")


@pytest.mark.parametrize("count", [1, 3, 700])
def test_bits_are_learned_piece_by_piece_as_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(count, 20) + np.float32(3)
    whole = Bits.fit(vectors, plain=False)
    monkeypatch.setattr(quantizers, "_FIT_COMPONENTS", 1)
    pieces = Bits.fit(vectors, plain=False)
    np.testing.assert_array_equal(pieces.mean, whole.mean)
    assert (pieces.spread, pieces.excess) == pytest.approx((whole.spread, whole.excess), rel=1e-12)


def test_learning_one_bit_codes_takes_little_beside_the_sample() -> None:
    vectors = clustered(20_000, 256)
    tracemalloc.start()
    Bits.fit(vectors, plain=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * vectors.nbytes  # all of it in double precision is twice as much, twice
