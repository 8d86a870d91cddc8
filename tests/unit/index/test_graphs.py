"""Graphs and lists of faiss: what they find, what they refuse, and their bytes."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecmill.core.errors import (
    CorruptFileError,
    DimensionMismatchError,
    FormatVersionError,
    InputError,
    StorageError,
)
from vecmill.core.extras import installed, require
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest
from vecmill.index.copies import copies_of
from vecmill.index.faiss_candidates import revived, unframed
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists, lists_for
from vecmill.index.originals import ArrayOriginals
from vecmill.index.settings import IndexSettings

Float32Array = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(not installed("faiss"), reason="needs faiss (the extra ann)")

N, D = 600, 20
KINDS = {
    "hnsw": {"kind": "hnsw", "ef": 600},
    "hnsw float16": {"kind": "hnsw", "precision": "float16", "ef": 600},
    "hnsw int8": {"kind": "hnsw", "precision": "int8", "ef": 600},
    "ivf": {"kind": "ivf", "nprobe": 100},
    "ivf float16": {"kind": "ivf", "precision": "float16", "nprobe": 100},
    "ivf int8": {"kind": "ivf", "precision": "int8", "nprobe": 100},
    "ivf pq": {"kind": "ivf", "precision": "pq", "nprobe": 100},
    "ivf pq 8": {"kind": "ivf", "precision": "pq", "nprobe": 100, "pq_parts": 7, "pq_bits": 8},
}
every_kind = pytest.mark.parametrize("made_of", KINDS.values(), ids=KINDS)


def made(
    vectors: Any, made_of: dict[str, Any], *, metric: str = "cosine", **more: Any
) -> HnswGraph | IvfLists:
    settings = IndexSettings(**{**made_of, **more})
    kind = HnswGraph if settings.kind.value == "hnsw" else IvfLists
    return kind.build(vectors, settings, metric=Metric(metric))


def read(data: bytes, made_of: dict[str, Any]) -> HnswGraph | IvfLists:
    kind = HnswGraph if made_of["kind"] == "hnsw" else IvfLists
    return kind.from_bytes(data, where="films.graph")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small searches by several threads spend their time waiting for each other."""
    faiss = require("faiss", extra="ann")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def vectors() -> Float32Array:
    return np.random.default_rng(1).standard_normal((N, D), np.float32)


@pytest.fixture(scope="module")
def queries() -> Float32Array:
    return np.random.default_rng(2).standard_normal((30, D), np.float32)


def share(named: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    return float(np.mean([np.isin(t, row).mean() for row, t in zip(named, true, strict=True)]))


@every_kind
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_looking_everywhere_finds_the_neighbours(
    vectors: Float32Array, queries: Float32Array, made_of: dict[str, Any], metric: str
) -> None:
    index = made(vectors, made_of, metric=metric)
    truth = nearest(queries, vectors, 10, metric=Metric(metric)).rows
    counts = {"float32": 10, "float16": 20, "int8": 40, "pq": 300}
    named = index.candidates(queries, counts[made_of.get("precision", "float32")])
    assert named.dtype == np.int64
    assert share(named, truth) >= (1.0 if made_of.get("precision") != "pq" else 0.95)
    assert all(len(set(row)) == len(row) for row in named.tolist())
    assert len(index) == N
    assert index.dimensions == D


@pytest.mark.parametrize("metric", ["manhattan", "chebyshev"])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_float32_also_finds_by_sums_and_maxima_of_differences(
    vectors: Float32Array, queries: Float32Array, kind: str, metric: str
) -> None:
    truth = nearest(queries, vectors, 10, metric=Metric(metric)).rows
    assert share(made(vectors, KINDS[kind], metric=metric).candidates(queries, 10), truth) == 1.0
    with pytest.raises(InputError, match="choose precision float32"):
        made(vectors, KINDS[f"{kind} int8"], metric=metric)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("metric", ["hamming", "jaccard"])
def test_metrics_of_signs_are_refused_with_the_cure(vectors: Float32Array, kind: str, metric: str) -> None:
    with pytest.raises(InputError, match=f"{kind} cannot find {metric} neighbours.*search exactly"):
        made(vectors, KINDS[kind], metric=metric)


@every_kind
def test_a_filter_is_kept_and_few_survivors_are_all_named(
    vectors: Float32Array, queries: Float32Array, made_of: dict[str, Any]
) -> None:
    index = made(vectors, made_of)
    third = np.arange(N) % 3 == 0
    named = index.candidates(queries, 100, allowed=third)
    assert third[named[named >= 0]].all()
    truth = nearest(queries, vectors, 5, metric=Metric.COSINE, allowed=third).rows
    assert share(named, truth) >= (0.95 if made_of.get("precision") == "pq" else 1.0)
    few = np.zeros(N, np.bool_)
    few[[3, 77]] = True
    assert index.candidates(queries, 4, allowed=few).tolist() == [[3, 77, -1, -1]] * 30
    assert index.candidates(queries, 2, allowed=np.zeros(N, np.bool_)).tolist() == [[-1, -1]] * 30


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_filter_costs_effort_not_neighbours(kind: str) -> None:
    """Without more effort a filter of 6 % would leave a sixteenth of what is kept in sight."""
    rng = np.random.default_rng(8)
    vectors = rng.standard_normal((6000, 24), np.float32)
    queries = rng.standard_normal((100, 24), np.float32)
    index = made(vectors, {"kind": kind, "ef": 60, "nprobe": 20})
    some = rng.random(6000) < 0.06
    found = []
    for allowed in (None, some):
        truth = nearest(queries, vectors, 10, metric=Metric.COSINE, allowed=allowed).rows
        found.append(share(index.candidates(queries, 10, allowed=allowed), truth))
    assert found[1] >= found[0] > 0.6


def test_many_threads_search_one_graph(vectors: Float32Array, queries: Float32Array) -> None:
    index = made(vectors, KINDS["hnsw int8"], ef=40)
    alone = index.candidates(queries, 10)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: index.candidates(queries, 10), range(64)))
    assert all(np.array_equal(alone, answer) for answer in answers)


@every_kind
def test_more_than_there_are_names_each_once(vectors: Float32Array, made_of: dict[str, Any]) -> None:
    few = vectors[:40]
    named = made(few, made_of).candidates(few[:3], 1000)
    assert named.shape == (3, 40)
    assert all(sorted(row) == list(range(40)) for row in named.tolist())


@every_kind
@pytest.mark.parametrize("n", [1, 2, 17])
def test_a_handful_of_vectors_works(vectors: Float32Array, made_of: dict[str, Any], n: int) -> None:
    index = made(vectors[:n], made_of)
    named = index.candidates(vectors[:1], n)
    if made_of is KINDS["ivf pq"]:  # 4-bit sums of very few vectors may all reach the end of their range
        assert set(named[0]) <= set(range(-1, n))
    else:
        assert sorted(named[0]) == list(range(n))
    again = read(index.to_bytes(), made_of)
    assert len(again) == n


@every_kind
def test_wrong_input_is_named_before_faiss_sees_it(vectors: Float32Array, made_of: dict[str, Any]) -> None:
    index = made(vectors, made_of)
    with pytest.raises(DimensionMismatchError, match="queries have 19 dimensions, the index 20"):
        index.candidates(vectors[:2, :19], 3)
    with pytest.raises(InputError, match="NaN"):
        index.candidates(np.full((1, D), np.nan, np.float32), 3)
    with pytest.raises(InputError, match="count is 0"):
        index.candidates(vectors[:2], 0)
    with pytest.raises(InputError, match="one bool per vector"):
        index.candidates(vectors[:2], 3, allowed=np.ones(N - 1, np.bool_))
    with pytest.raises(InputError, match="one bool per vector"):
        index.candidates(vectors[:2], 3, allowed=np.ones(N, np.int64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two axes"):
        index.candidates(vectors[0], 3)
    assert index.candidates(np.empty((0, D), np.float32), 3).shape == (0, 3)
    with pytest.raises(InputError, match="nothing to index"):
        made(np.empty((0, D), np.float32), made_of)
    with pytest.raises(InputError, match="NaN"):
        made(np.where(np.arange(N)[:, None] == 5, np.nan, vectors), made_of)
    with pytest.raises(InputError, match="cannot shorten vectors of 20 dimensions to 21"):
        made(vectors, made_of, shorten=21)


def test_settings_of_another_kind_are_refused(vectors: Float32Array) -> None:
    with pytest.raises(InputError, match="of kind 'ivf', not 'hnsw'"):
        HnswGraph.build(vectors, IndexSettings(kind="ivf"), metric=Metric.COSINE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="of kind 'flat', not 'ivf'"):
        IvfLists.build(vectors, IndexSettings(), metric=Metric.COSINE)


def test_lists_suit_the_vectors(vectors: Float32Array) -> None:
    assert [lists_for(n) for n in (1, 77, 78, 600, 23_000, 1_000_000)] == [1, 1, 2, 15, 589, 4000]
    assert made(vectors, KINDS["ivf"]).settings.nlist == 15
    with pytest.raises(InputError, match="nlist is 601, but there are 600 vectors; 15 would suit"):
        made(vectors, KINDS["ivf"], nlist=601)
    with pytest.raises(InputError, match="pq_parts is 21"):
        made(vectors, KINDS["ivf pq"], pq_parts=21)


def test_lists_that_stay_empty_do_no_harm() -> None:
    same = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    index = made(same, KINDS["ivf"], nlist=40)
    assert sorted(index.candidates(same[:1], 200)[0]) == list(range(200))


@pytest.mark.parametrize("kind", ["hnsw", "hnsw int8", "ivf"])
def test_shortened_vectors_name_by_their_leading_components(vectors: Float32Array, kind: str) -> None:
    for metric in ("cosine", "dot", "euclidean"):
        index = made(vectors, KINDS[kind], metric=metric, shorten=8)
        cut = np.ascontiguousarray(vectors[:, :8])
        truth = nearest(cut[:20], cut, 5, metric=Metric(metric)).rows
        assert share(index.candidates(vectors[:20], 20), truth) == 1.0
        assert index.dimensions == D


def test_masses_of_copies_cut_nothing_off() -> None:
    """hnswlib's and faiss's own graphs lose here: copies link only to each other."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((400, 16), np.float32)
    vectors = np.concatenate((np.repeat(centres[:8], 300, axis=0), centres[8:]))
    vectors = vectors[rng.permutation(len(vectors))]
    index = made(vectors, {"kind": "hnsw", "ef": 32}, metric="euclidean")
    queries = centres[8:] + 0.01 * rng.standard_normal((392, 16), np.float32)
    truth = nearest(queries, vectors, 1, metric=Metric.EUCLIDEAN).rows
    assert share(index.candidates(queries, 1), truth) == 1.0
    copies = index.candidates(centres[:8], 400)
    assert all(
        set(np.flatnonzero((vectors == centre).all(axis=1))) <= set(row)
        for centre, row in zip(centres[:8], copies, strict=True)
    )
    odd = np.arange(len(vectors)) % 2 == 1
    named = index.candidates(centres[:8], 300, allowed=odd)
    assert odd[named[named >= 0]].all()
    assert share(
        named, nearest(centres[:8], vectors, 100, metric=Metric.EUCLIDEAN, allowed=odd).rows
    ) == pytest.approx(1.0)
    assert np.array_equal(
        HnswGraph.from_bytes(index.to_bytes()).candidates(queries, 5), index.candidates(queries, 5)
    )


def test_rows_left_out_are_not_named_until_the_graph_is_complete(vectors: Float32Array) -> None:
    doubled = np.concatenate((vectors, vectors[:50]))
    out = np.arange(len(doubled)) < 20
    settings = IndexSettings(**KINDS["hnsw"])  # type: ignore[arg-type]
    index = HnswGraph.build(doubled, settings, metric=Metric.COSINE, leave_out=out)
    assert len(index) == N + 50
    named = set(index.candidates(vectors[:1], N + 50).ravel().tolist()) - {-1}
    assert named == set(range(20, N)) | set(range(N + 20, N + 50))
    tuned = index.tuned(settings)
    with pytest.raises(InputError, match="complete it"):
        tuned.to_bytes()
    tuned.complete(doubled)
    assert set(tuned.candidates(vectors[:1], N + 50).ravel().tolist()) == set(range(N + 50))
    truth = nearest(vectors[:20], doubled, 2, metric=Metric.COSINE).rows
    assert share(tuned.candidates(vectors[:20], 2), truth) == 1.0
    tuned.complete(doubled)
    assert np.array_equal(
        HnswGraph.from_bytes(tuned.to_bytes()).candidates(vectors, 5), tuned.candidates(vectors, 5)
    )
    with pytest.raises(InputError, match="all 650 vectors are left out"):
        HnswGraph.build(doubled, settings, metric=Metric.COSINE, leave_out=np.ones(650, np.bool_))


@every_kind
def test_bytes_give_the_same_index(
    vectors: Float32Array, queries: Float32Array, made_of: dict[str, Any]
) -> None:
    index = made(vectors, made_of)
    data = index.to_bytes()
    again = read(data, made_of)
    assert np.array_equal(again.candidates(queries, 20), index.candidates(queries, 20))
    assert (again.settings, again.metric, len(again)) == (index.settings, index.metric, N)
    assert again.to_bytes() == data
    assert 0.85 * len(data) < index.size_bytes < 1.05 * len(data)


@pytest.mark.parametrize("kind", ["hnsw int8", "ivf pq"])
def test_any_flipped_or_missing_byte_is_found_before_faiss_reads(vectors: Float32Array, kind: str) -> None:
    data = made(vectors[:60], KINDS[kind]).to_bytes()
    places = {*range(400), *range(0, len(data), 97), len(data) - 1}
    for at in sorted(places):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(StorageError, match="build it again"):
            read(bytes(damaged), KINDS[kind])
    for short in (b"", data[:7], data[:40], data[:-1], data + b"\0"):
        with pytest.raises(CorruptFileError, match=r"films\.graph"):
            read(short, KINDS[kind])


def forged(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the header and digest it again, as whoever wants to do harm would."""
    header, _, _ = unframed(data, "sound bytes")
    (body_size,) = struct.unpack_from("<Q", data, 16)
    change(header)
    text, body = json.dumps(header).encode(), data[-body_size:]
    digest = hashlib.blake2b(struct.pack("<IQ", len(text), len(body)) + text + body, digest_size=32).digest()
    return data[:12] + struct.pack("<IQ", len(text), len(body)) + digest + text + body


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf pq"])
@pytest.mark.parametrize(
    "change",
    [
        {"arrays": [1 << 50]},
        {"arrays": [-1]},
        {"arrays": "all"},
        {"dimensions": 7},
        {"dimensions": "7"},
        {"rows": N - 1},
        {"rows": -1},
        {"exponent": "a"},
        {"exponent": 10**9},
        {"metric": "nearness"},
        {"settings": []},
        {"settings": {"kind": "flat"}},
        {"settings": {"kind": "hnsw", "shorten": 3}},
        {"settings": {"kind": "hnsw", "shorten": 1 << 20}},
    ],
    ids=str,
)
def test_a_forged_header_is_refused(vectors: Float32Array, kind: str, change: dict[str, Any]) -> None:
    data = made(vectors, KINDS[kind]).to_bytes()
    with pytest.raises(CorruptFileError):
        read(forged(data, lambda header: header.update(change)), KINDS[kind])


@pytest.mark.parametrize("members", [[0, 0, 1], [0, 1, 3], [0, 1, -1], [0, 1]])
def test_copies_that_cannot_be_are_refused(members: list[int]) -> None:
    with pytest.raises(CorruptFileError, match="which of its 3 rows are equal"):
        copies_of([np.array(members), np.array([0, 2, 3])], 3, "films.graph")
    with pytest.raises(CorruptFileError, match="which of its 3 rows are equal"):
        copies_of([np.array([0, 1, 2]), np.array([0, 3, 2, 3])], 3, "films.graph")


def test_faiss_reserves_no_more_than_a_file_can_need(vectors: Float32Array) -> None:
    faiss = require("faiss", extra="ann")
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        pytest.skip("this faiss knows no such limit")
    before = faiss.get_deserialization_vector_byte_limit()
    index = made(vectors, KINDS["hnsw"])
    _, _, payload = unframed(index.to_bytes(), "sound bytes")
    sound = bytes(payload)
    huge = sound.replace(struct.pack("<Q", N * D), struct.pack("<Q", 1 << 36), 1)  # the table of vectors
    assert huge != sound
    with pytest.raises(StorageError, match="limit"):
        revived(memoryview(huge), "films.graph", rows=N, dimensions=D)
    assert faiss.get_deserialization_vector_byte_limit() == before


def test_another_version_is_told_from_damage(vectors: Float32Array) -> None:
    data = bytearray(made(vectors[:60], KINDS["hnsw"]).to_bytes())
    data[8] = 2
    with pytest.raises(FormatVersionError, match="format version 2, this vecmill reads 1"):
        read(bytes(data), KINDS["hnsw"])


def test_bytes_of_another_index_are_refused(vectors: Float32Array) -> None:
    graph = made(vectors, KINDS["hnsw"]).to_bytes()
    with pytest.raises(CorruptFileError, match="of kind 'hnsw', not 'ivf'"):
        IvfLists.from_bytes(graph)
    with pytest.raises(CorruptFileError, match="built with m 16, not 8"):
        HnswGraph.from_bytes(graph, IndexSettings(kind="hnsw", m=8))  # type: ignore[arg-type]
    other = HnswGraph.from_bytes(graph, IndexSettings(kind="hnsw", ef=7, oversample=3))  # type: ignore[arg-type]
    assert (other.settings.ef, other.settings.oversample) == (7, 3.0)
    lists = made(vectors, KINDS["ivf"]).to_bytes()
    unsaid = IvfLists.from_bytes(lists, IndexSettings(kind="ivf", nprobe=3))  # type: ignore[arg-type]
    assert (unsaid.settings.nlist, unsaid.settings.nprobe) == (15, 3)


class Pieces(ArrayOriginals):
    """The same vectors in pieces of another size."""

    def parts(self) -> Any:
        for start in range(0, len(self), 37):
            yield start, self.vectors[start : start + 37]


@every_kind
def test_the_pieces_of_the_originals_do_not_matter(vectors: Float32Array, made_of: dict[str, Any]) -> None:
    one, many = made(vectors, made_of), made(Pieces(vectors), made_of)
    assert one.to_bytes() == many.to_bytes()


def test_vectors_given_are_not_changed(vectors: Float32Array) -> None:
    given = vectors.copy()
    given.setflags(write=False)
    made(given, KINDS["hnsw"]).candidates(given[:3], 3)
    made(given, KINDS["ivf pq"]).candidates(given[:3], 3)
    assert np.array_equal(given, vectors)


def script(body: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


_PROLOGUE = """
import hashlib
import numpy as np
import faiss
faiss.omp_set_num_threads(1)
from vecmill.core.types import Metric
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists
from vecmill.index.settings import IndexSettings
x = np.random.default_rng(0).standard_normal((3000, 24), np.float32)
"""

_SAME_BYTES = """
settings = IndexSettings(**SETTINGS)
kind = HnswGraph if settings.kind.value == "hnsw" else IvfLists
for seed in (0, 0, 1):
    made = kind.build(x, settings, metric=Metric.COSINE, seed=seed)
    print(hashlib.sha256(made.to_bytes()).hexdigest())
"""

_SAME_ROWS = """
made = HnswGraph.build(x, IndexSettings(kind="hnsw", ef=20), metric=Metric.COSINE)
answers = []
for threads in (1, 2, 4):
    faiss.omp_set_num_threads(threads)
    answers.append(made.candidates(x, 10))
assert all(np.array_equal(answers[0], other) for other in answers)
"""


@pytest.mark.parametrize("kind", ["hnsw int8", "ivf pq"])
def test_one_thread_and_one_seed_give_the_same_bytes_in_any_process(kind: str) -> None:
    body = _PROLOGUE + _SAME_BYTES.replace("SETTINGS", repr(KINDS[kind]))
    first, second = script(body).split(), script(body).split()
    assert first == second
    assert first[0] == first[1] != first[2]


def test_a_graph_is_searched_alike_with_any_number_of_threads() -> None:
    script(_PROLOGUE + _SAME_ROWS)


def test_importing_the_index_does_not_import_faiss() -> None:
    script(
        """
        import sys
        import vecmill.index.build, vecmill.index.hnsw, vecmill.index.ivf
        assert "faiss" not in sys.modules
        """
    )


@pytest.mark.skipif(
    not installed("usearch"), reason="usearch is not installed: nothing to be imported before faiss"
)
def test_usearch_imported_first_does_no_harm() -> None:
    script(
        """
        import usearch.index
        import numpy as np
        from vecmill.core.types import Metric
        from vecmill.index.hnsw import HnswGraph
        from vecmill.index.ivf import IvfLists
        from vecmill.index.settings import IndexSettings
        x = np.random.default_rng(0).standard_normal((500, 16), np.float32)
        for kind, precision in (("hnsw", "int8"), ("hnsw", "float32"), ("ivf", "pq"), ("ivf", "int8")):
            cls = HnswGraph if kind == "hnsw" else IvfLists
            made = cls.build(x, IndexSettings(kind=kind, precision=precision), metric=Metric.COSINE)
            cls.from_bytes(made.to_bytes()).candidates(x, 5)
        """
    )
