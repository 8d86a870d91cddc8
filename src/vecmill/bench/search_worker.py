"""One way to find neighbours, in a process of its own: loads vectors, then searches when asked.

A script: `python -P search_worker.py SYSTEM OPTIONS`, run by the interpreter that has the system's packages,
which needs NumPy besides and nothing else of ours installed. OPTIONS is JSON: `vectors` (an npy file of unit
vectors, float32), `k`, `threads`, `cores`, and what the system needs. It answers JSON lines on the pipe that
was its standard output; what libraries print goes to standard error. Requests, until the pipe ends:

    {"do": "batch", "queries": FILE, "count": n, "set": {...}}   -> seconds for the first n queries at once
    {"do": "single", "queries": FILE, "count": n, "set": {...}}  -> and for each of them alone
    {"do": "save", "to": FILE}                     -> rows (n, k) int64 of the last search, as npy

`set` changes how hard the system searches (ef, nprobe, oversample) without building anything anew.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from typing import Any, TextIO

import numpy as np

from vecmill.bench.worker import answers, peak_bytes, pin, say, version_of

SYSTEMS = {
    "argpartition": "search_peers:Argpartition",
    "gemv": "search_peers:Gemv",
    "faiss_flat": "search_peers:FaissFlat",
    "faiss_graph": "search_peers:FaissGraph",
    "faiss_lists": "search_peers:FaissLists",
    "sklearn": "search_peers:Sklearn",
    "usearch_exact": "search_peers:UsearchExact",
    "usearch_graph": "search_peers:UsearchGraph",
    "lancedb": "search_peers:LanceDb",
    "pgvector": "search_peers:Pgvector",
    "exact": "search_own:VecmillExact",
    "index": "search_own:VecmillIndex",
}
"""Kind -> "module:Class" of this folder."""


def serve(system_class: type[Any], options: dict[str, Any], requests: TextIO, replies: TextIO) -> None:
    """Load the vectors, build, say what that took, then answer requests until the pipe ends."""
    pin(options["cores"])
    mapped = options.get("mapped")
    vectors = np.load(options["vectors"], mmap_mode="r" if mapped else None, allow_pickle=False)
    loaded = peak_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    system = system_class(vectors, options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    versions = {package: version_of(package) for package in system.packages} | getattr(system, "versions", {})
    ready = {"build_wall": wall, "build_cpu": cpu, "loaded_bytes": loaded, "versions": versions}
    size = getattr(system, "size_bytes", None)
    say(replies, {**ready, "cpu": cpu, "rss_bytes": peak_bytes(), "size_bytes": size})
    try:
        _answer(system, options["k"], requests, replies)
    finally:
        getattr(system, "close", lambda: None)()


def _answer(system: Any, k: int, requests: TextIO, replies: TextIO) -> None:
    rows = np.empty((0, k), np.int64)
    for line in requests:
        request = json.loads(line)
        if request["do"] == "save":
            np.save(request["to"], rows)
            say(replies, {"saved": len(rows)})
            continue
        queries = np.load(request["queries"], allow_pickle=False)[: request["count"]]
        if hasattr(system, "set"):
            system.set(**request["set"])
        gc.collect()
        if request["do"] == "batch":
            cpu, wall = time.process_time(), time.perf_counter()
            rows = system.search(queries, k)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            say(replies, {"wall": wall, "cpu": cpu, "rss_bytes": peak_bytes()})
        else:
            found, took = [], []
            system.search(queries[:1], k)  # a setting just changed: what follows from it is done once
            cpu = time.process_time()
            for at in range(len(queries)):
                began = time.perf_counter()
                found.append(system.search(queries[at : at + 1], k))
                took.append(time.perf_counter() - began)
            cpu = time.process_time() - cpu
            rows = np.concatenate(found)
            say(replies, {"wall": sum(took), "cpu": cpu, "rss_bytes": peak_bytes(), "each": took})


def main() -> None:
    """Serve the system that the command line names, over the pipes."""
    replies = answers()
    module, _, name = SYSTEMS[sys.argv[1]].partition(":")
    system = getattr(importlib.import_module(f"vecmill.bench.{module}"), name)
    serve(system, json.loads(sys.argv[2]), sys.stdin, replies)


if __name__ == "__main__":
    main()
