"""Settings: their ranges, what they are called elsewhere, and their way to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError, UnknownNameError
from vecmill.core.types import Precision
from vecmill.index.settings import IndexKind, IndexSettings, Measured, parameters


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"m": 1}, "m is 1: it must be from 2 to 512"),
        ({"m": 16.0}, "m is 16.0: it must be a whole number"),
        ({"ef": True}, "ef is True"),
        ({"ef": None}, "ef is None"),
        ({"nlist": 0}, "nlist is 0"),
        ({"shorten": -1}, "shorten is -1"),
        ({"oversample": 0.5}, "at least 1 candidate"),
        ({"oversample": float("inf")}, "at least 1 candidate"),
        ({"oversample": float("nan")}, "oversample is nan"),
        ({"oversample": "2"}, "oversample is '2'"),
        ({"recall_target": 0.0}, "above 0 and at most 1"),
        ({"recall_target": 99}, "above 0 and at most 1"),
        ({"pq_bits": 6}, "4 bits"),
        ({"kind": "hnsw", "precision": "binary"}, "cannot keep binary; it keeps float32, float16 or int8"),
        ({"kind": "ivf", "precision": "binary"}, "cannot keep binary"),
    ],
)
def test_values_out_of_range_are_refused_with_what_would_be_right(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        IndexSettings(**values)


def test_unknown_kind_lists_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hnsw'"):
        IndexSettings(kind="hsnw")  # type: ignore[arg-type]  # what a caller may do


def test_whole_numbers_of_numpy_are_taken() -> None:
    settings = IndexSettings(kind=IndexKind.IVF, nlist=np.int64(7), nprobe=np.int32(2))  # type: ignore[arg-type]
    assert type(settings.nlist) is int
    assert json.loads(json.dumps(settings.to_json()))["nlist"] == 7


def test_only_flat_float32_of_all_components_is_exact() -> None:
    assert IndexSettings().is_exact
    assert not IndexSettings(shorten=64).is_exact
    assert not IndexSettings(precision=Precision.INT8).is_exact
    assert not IndexSettings(kind=IndexKind.HNSW).is_exact


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings(),
        IndexSettings(IndexKind.HNSW, Precision.INT8, 128, 2.5, m=8, ef=300, recall_target=0.95),
        IndexSettings(IndexKind.IVF, Precision.PQ, nlist=100, nprobe=3, pq_parts=12, pq_bits=8),
    ],
)
def test_settings_survive_json(settings: IndexSettings) -> None:
    assert IndexSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_measured_recall_survives_json_and_reads_well() -> None:
    measured = Measured(0.9915, 0.985, 0.996, 10, 200, 31_000)
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    assert str(measured) == (
        "recall@10 0.9915 [0.9850, 0.9960] measured with 200 held-back queries in 31,000 rows"
    )


def test_usual_distances_survive_json_and_older_indexes_have_none() -> None:
    measured = Measured(0.9915, 0.985, 0.996, 2, 200, 31_000, (0.25, 0.5))
    written = json.loads(json.dumps(measured.to_json()))
    assert Measured.from_json(written) == measured
    assert Measured.from_json({**written, "far": None}).far is None
    del written["far"]
    assert Measured.from_json(written).far is None
    for nonsense in (3, ["near"], [None], [float("nan")]):
        with pytest.raises(CorruptFileError, match="recall"):
            Measured.from_json({**written, "far": nonsense})


def test_json_of_a_newer_version_or_of_nonsense_is_refused() -> None:
    with pytest.raises(FormatVersionError, match="'alpha'"):
        IndexSettings.from_json({"kind": "hnsw", "alpha": 1.2})
    with pytest.raises(CorruptFileError, match="m is 0"):
        IndexSettings.from_json({"kind": "hnsw", "m": 0})
    with pytest.raises(FormatVersionError, match="'median'"):
        Measured.from_json({"median": 1.0})
    with pytest.raises(CorruptFileError, match="recall"):
        Measured.from_json({"low": 1.0})


def test_settings_say_what_applies() -> None:
    assert str(IndexSettings()) == "exact"
    assert str(IndexSettings("hnsw", "int8", oversample=2)) == (  # type: ignore[arg-type]
        "hnsw int8, m 16, ef_construction 200, ef 64, oversample 2"
    )
    assert str(IndexSettings("ivf", "pq", nlist=9)) == (  # type: ignore[arg-type]
        "ivf pq, nlist 9, nprobe 8, pq_bits 4, oversample 1"
    )
    assert str(IndexSettings(precision="binary", oversample=20)) == "flat binary, oversample 20"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("hnsw", {"M": 24, "ef_construction": 90, "ef": 50}, {"m": 24, "ef_construction": 90, "ef": 50}),
        ("hnsw", {"efSearch": 70, "efConstruction": 80}, {"ef": 70, "ef_construction": 80}),
        ("hnsw", {"ef_search": 70, "precision": "int8"}, {"ef": 70, "precision": "int8"}),
        ("ivfflat", {"nlist": 2, "nprobe": 1}, {"nlist": 2, "nprobe": 1}),
        ("ivf_flat", {"lists": 4, "probes": 3}, {"nlist": 4, "nprobe": 3}),
        (
            "ivfpq",
            {"nlist": 10, "M": 16, "n_bits": 8},
            {"nlist": 10, "pq_parts": 16, "pq_bits": 8, "precision": "pq"},
        ),
        ("ivfflat", {"n_lists": 4, "n_probes": 3}, {"nlist": 4, "nprobe": 3}),
        ("ivfpq", {"pq_dim": 16}, {"pq_parts": 16, "precision": "pq"}),
        (
            "cagra",
            {"graph_degree": 64, "intermediate_graph_degree": 128, "itopk_size": 64},
            {"m": 32, "ef_construction": 128, "ef": 64},
        ),
        ("flat", {"precision": "pq", "pq_parts": 12}, {"precision": "pq", "pq_parts": 12}),
        ("flat", {"precision": "binary", "oversample": 20}, {"precision": "binary", "oversample": 20}),
    ],
)
def test_names_of_other_libraries_mean_ours(
    kind: str, given: dict[str, object], expected: dict[str, Any]
) -> None:
    kinds = {"ivfflat": "ivf", "ivf_flat": "ivf", "ivfpq": "ivf", "cagra": "hnsw"}
    assert parameters(kind, given) == IndexSettings(kind=kinds.get(kind, kind), **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("hnsw", {"nprobe": 3}, "'nprobe' does not apply to 'hnsw', only to ivf; 'hnsw' takes m, ef_constr"),
        ("flat", {"M": 16}, "'M' does not apply to 'flat', only to hnsw or ivf"),
        ("ivfflat", {"M": 16}, "'M' applies to pq codes only"),
        ("ivfflat", {"graph_degree": 64}, "only to hnsw"),
        ("hnsw", {"max_elements": 1000}, "grows by itself"),
        ("cagra", {"build_algo": "nn_descent"}, "one vector after another"),
        ("cagra", {"search_width": 2}, "'search_width' has no meaning here"),
        ("cagra", {"max_iterations": 0}, "'max_iterations' has no meaning here"),
        ("cagra", {"compression": None}, "name the precision"),
        ("ivfflat", {"pq_dim": 8}, "applies to pq codes only"),
        ("cagra", {"graph_degree": 33}, "must be even"),
        ("hnsw", {"M": 16, "m": 16}, "mean the same"),
        ("cagra", {"graph_degree": 32, "m": 16}, "mean the same"),
        ("ivfpq", {"precision": "int8"}, "name kind 'ivf'"),
        ("hnsw", {"M": 0}, "m is 0"),
    ],
)
def test_what_does_not_apply_is_refused_with_what_would(
    kind: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        parameters(kind, given)


def test_unknown_names_list_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="ef_construction"):
        parameters("hnsw", {"ef_constuction": 10})
    with pytest.raises(UnknownNameError, match="ivfflat"):
        parameters("ivflat", {})
