"""Whatever is sent: both forms of a vector are the same numbers, order and usage hold, nothing is a 5xx."""

from __future__ import annotations

import asyncio
import base64
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vecmill.server.call import Answer
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits, Options
from vecmill.server.parsing import depth, parse, parse_large
from vecmill.server.replies import bits, int8, json_reply, raw_reply
from vecmill.server.schemas import EmbeddingsRequest
from vecmill.testing.fakes import FakeProvider

FORMATS = ("float", "base64", "int8", "ubinary")
fake = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "server" / "fake_models.py"))
Served, application, asked = fake["Served"], fake["application"], fake["asked"]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
tables = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=finite)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
inputs = (
    st.text(max_size=30)
    | st.lists(st.text(max_size=5), max_size=4)
    | st.lists(st.integers(-1, 110_000), max_size=4)
    | st.lists(st.lists(st.integers(0, 110_000), max_size=3), max_size=3)
    | json_values
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "n", "", "../m"]) | json_values,
        "input": inputs,
        "encoding_format": st.sampled_from(["float", "base64", "int8", "ubinary", "x", None]) | json_values,
        "dimensions": st.integers(-1, 10) | json_values,
        "user": st.text(max_size=3) | json_values,
        "input_type": st.sampled_from(["query", "document", "x"]) | json_values,
        "truncate": st.sampled_from([True, "end", "average", "start"]) | json_values,
        "text": st.text(max_size=9) | json_values,
        "max_length": st.integers(-1, 20) | json_values,
        "pad_to_max_length": st.booleans() | json_values,
        "query": st.text(max_size=9) | json_values,
        "documents": st.lists(st.text(max_size=5) | json_values, max_size=3) | json_values,
        "top_n": st.integers(-1, 4) | json_values,
    },
)


def bytes_of(body: Any) -> bytes:
    """Return JSON; what has no JSON (lone surrogates, huge numbers) as near to it as can be."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return repr(body).encode("utf-8", "replace")


def whole(answer: Answer) -> bytes:
    """Return an answer's body."""

    async def every() -> bytes:
        body = answer.body
        return body if isinstance(body, bytes) else b"".join([piece async for piece in body])

    return asyncio.run(every())


@settings(deadline=None)
@given(st.integers(1, 300), st.sampled_from([1, 5, 1536, 20_000]), st.sampled_from([*FORMATS]), st.booleans())
def test_answers_in_pieces_are_those_in_one(n: int, d: int, encoding: str, raw: bool) -> None:
    vectors = np.random.default_rng(n).standard_normal((min(n, 300_000 // d), d), dtype=np.float32)
    if raw:
        found = raw_reply(vectors, encoding, tokens=1)
        body = whole(found)
        assert isinstance(found.body, bytes) or found.size == len(body)
        rows = [raw_reply(vectors[at : at + 1], encoding, tokens=1) for at in range(len(vectors))]
        assert body == b"".join(map(whole, rows))
    else:
        found = json_reply(vectors, encoding, model="m", tokens=1)
        body = whole(found)
        assert found.size in (None, len(body))
        items = orjson.loads(body)["data"]
        for at, item in enumerate(items):
            (one,) = orjson.loads(whole(json_reply(vectors[at : at + 1], encoding, model="m", tokens=1)))[
                "data"
            ]
            assert item == {**one, "index": at}
        assert len(items) == len(vectors)


cut_short = st.tuples(bodies, st.integers(0, 80)).map(lambda pair: bytes_of(pair[0])[: pair[1]])


@pytest.fixture(scope="module")
def app() -> Any:
    return application(Served("m", FakeProvider(max_tokens=4)), options=Options())


@settings(deadline=None)
@given(tables)
@example(np.array([[1e-45, -0.0, 3.4028235e38, 1.17549435e-38, 0.1]], np.float32))
def test_float_and_base64_are_the_same_bits(vectors: Any) -> None:
    said = {
        encoding: orjson.loads(whole(json_reply(vectors, encoding, model="m", tokens=1)))
        for encoding in ("float", "base64")
    }
    for at, row in enumerate(vectors):
        plain, packed = (said[encoding]["data"][at] for encoding in ("float", "base64"))
        assert np.array(plain["embedding"], np.float32).tobytes() == row.tobytes()
        assert base64.b64decode(packed["embedding"]) == row.astype("<f4").tobytes()
        assert plain["index"] == packed["index"] == at
    assert whole(raw_reply(vectors, "float", tokens=1)) == vectors.astype("<f4").tobytes()


@settings(deadline=None)
@given(tables)
def test_int8_is_off_by_half_a_step_at_most(vectors: Any) -> None:
    codes, scales = int8(vectors)
    assert np.abs(codes.astype(int)).max() <= 127
    off = np.abs(codes * scales.astype(float)[:, None] - vectors)
    least = np.finfo(np.float32).smallest_subnormal * 127  # below it a scale itself is rounded
    assert (off <= scales.astype(float)[:, None] * 0.5001 + least).all()


@settings(deadline=None)
@given(tables)
def test_bits_are_the_signs(vectors: Any) -> None:
    found = np.unpackbits(bits(vectors), axis=1)
    np.testing.assert_array_equal(found[:, : vectors.shape[1]], vectors > 0)
    assert not found[:, vectors.shape[1] :].any()


words = st.lists(st.sampled_from(["a", "bb", "c"]), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=9), st.sampled_from([False, "end", "average"]))
def test_order_is_kept_and_usage_is_exact(app: Any, texts: list[str], truncate: Any) -> None:
    body = {"model": "m", "input": texts, "truncate": truncate}
    found = asked(app, "/v1/embeddings", body)
    counts = [len(text.split()) for text in texts]
    if truncate is False and max(counts) > 4:
        assert f"index {next(at for at, n in enumerate(counts) if n > 4)} of input" in found.error["message"]
        return
    tokens = sum(counts) if truncate == "average" else sum(min(n, 4) for n in counts)
    assert found.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found.json.get("truncated", []) == [
        at for at, n in enumerate(counts) if n > 4 and truncate == "end"
    ]
    for at, (text, item) in enumerate(zip(texts, found.json["data"], strict=True)):
        alone = asked(app, "/v1/embeddings", {**body, "input": text}).json["data"][0]
        assert item == {**alone, "index": at}


@settings(deadline=None, max_examples=300)
@given(bodies | json_values, st.sampled_from(["/v1/embeddings", "/v3/tokenize", "/v1/rerank"]))
@example({"model": "m", "input": [[100_256]]}, "/v1/embeddings")
@example({"model": "m", "input": " ", "truncate": "average"}, "/v1/embeddings")
def test_no_json_ends_in_a_5xx(app: Any, body: Any, path: str) -> None:
    found = asked(app, path, bytes_of(body))
    assert found.status in (200, 400, 404), found.content
    if found.status != 200:
        assert found.error.keys() == {"message", "type", "param", "code"}


@settings(deadline=None)
@given(
    st.binary(max_size=60) | st.tuples(bodies, st.integers(0, 80)).map(lambda cut: bytes_of(cut[0])[: cut[1]])
)
def test_no_bytes_end_in_a_5xx(app: Any, body: bytes) -> None:
    assert asked(app, "/v1/embeddings", body).status in (200, 400, 404)


def reference_depth(node: Any) -> int:
    if isinstance(node, list):
        return 1 + max(map(reference_depth, node), default=0)
    if isinstance(node, dict):
        return 1 + max(map(reference_depth, node.values()), default=0)
    return 0


tricky = st.recursive(
    st.text(alphabet='[]{}"\\a,:', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=4), inner, max_size=3)
    ),
)


@settings(deadline=None)
@given(tricky)
def test_depth_is_that_of_the_values(value: Any) -> None:
    assert depth(orjson.dumps(value)) == reference_depth(value)


@settings(deadline=None)
@given(bodies)
def test_large_bodies_are_read_as_small_ones(body: Any) -> None:
    raw = bytes_of(body)

    def read(how: Any) -> Any:
        try:
            return how()
        except Refusal as refusal:
            return refusal.body()

    assert read(lambda: parse(raw, EmbeddingsRequest)) == read(
        lambda: parse_large(raw, EmbeddingsRequest, False, Limits())
    )
