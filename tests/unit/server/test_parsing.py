"""Bytes of a request to its type, and every way they may be wrong."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest

from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.server.parsing import check_media, depth, parse, parse_large, whole
from vecmill.server.schemas import EmbeddingsRequest, RerankRequest

GOOD = b'{"model":"m","input":"a"}'


def read_as(body: bytes, *, strict: bool = False, large: bool = False) -> EmbeddingsRequest:
    if large:
        return parse_large(body, EmbeddingsRequest, strict, Limits())
    return parse(body, EmbeddingsRequest, strict=strict)


def refused(body: bytes, *, strict: bool = False, large: bool = False) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_as(body, strict=strict, large=large)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":"m","input":"a",}',
        b"{'model':'m','input':'a'}",
        b'{"model":"m","input":NaN}',
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":"a\x00"}',
        b'{"model":"\xff","input":"a"}',
        b'{"model":"m","input":"a"} {}',
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_malformed_json_is_told_as_such(body: bytes, large: bool) -> None:
    found = refused(body, large=large)
    assert found.message.startswith("We could not parse the JSON body of your request")
    assert (found.type, found.param, found.code) == ("invalid_request_error", None, None)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"input":"a"}', "model", "missing_required_parameter"),
        (b'{"model":"m"}', "input", "missing_required_parameter"),
        (b'{"model":3,"input":"a"}', "model", "invalid_type"),
        (b'{"model":null,"input":"a"}', "model", "invalid_type"),
        (b'{"model":"m","input":"a","dimensions":true}', "dimensions", "invalid_type"),
        (b'{"model":"m","input":"a","dimensions":"3"}', "dimensions", "invalid_type"),
        (b'{"model":"m","input":"a","user":3}', "user", "invalid_type"),
        (b'{"model":"m","input":"a","truncate":3}', "truncate", "invalid_type"),
        (b'{"model":"m","input":"a","encoding_format":"hex"}', "encoding_format", "invalid_value"),
        (b'{"model":"m","input":null}', "input", None),
        (b'{"model":"m","input":{"a":1}}', "input", None),
        (b'{"model":"m","input":[true]}', "input", None),
        (b'{"model":"m","input":[["a"]]}', "input", None),
        (b'{"model":"m","input":[[[1]]]}', "input", None),
        (b'{"model":"m","input":["a",null]}', "input", None),
    ],
)
def test_a_wrong_field_is_named_with_its_code(body: bytes, param: str, code: str | None) -> None:
    found = refused(body)
    assert (found.param, found.code) == (param, code)
    assert param in found.message


@pytest.mark.parametrize("body", [b"[]", b"3", b'"a"', b"null", b"true"])
def test_a_body_that_is_no_object_is_told_as_such(body: bytes) -> None:
    assert "must be a JSON object" in refused(body).message


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbf" + GOOD, EmbeddingsRequest).model == "m"


def test_null_is_as_absent() -> None:
    body = b'{"model":"m","input":"a","encoding_format":null,"dimensions":null,"user":null,"truncate":null}'
    found = parse(body, EmbeddingsRequest)
    assert (found.encoding_format, found.dimensions, found.user, found.truncate) == (None,) * 4


def test_unknown_fields_are_ignored_unless_strict() -> None:
    body = b'{"model":"m","input":"a","colour":1e999}'
    assert parse(body, EmbeddingsRequest).input == "a"
    found = refused(body, strict=True)
    assert (found.param, found.code) == ("colour", "unknown_parameter")


def test_of_a_key_sent_twice_the_last_counts() -> None:
    assert parse(b'{"model":"m","model":"n","input":"a"}', EmbeddingsRequest).model == "n"


@pytest.mark.parametrize("levels", [1, 7])
def test_up_to_eight_levels_are_read(levels: int) -> None:
    body = b'{"model":"m","input":"a","x":' + b"[" * levels + b"]" * levels + b"}"
    assert parse(body, EmbeddingsRequest).input == "a"


@pytest.mark.parametrize("levels", [8, 100, 100_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_more_levels_are_refused(levels: int, pair: tuple[bytes, bytes]) -> None:
    inner = pair[0] * levels + (b"1" if pair[0] != b"[" else b"") + pair[1] * levels
    found = refused(b'{"model":"m","input":"a","x":' + inner + b"}")
    assert "more than 8" in found.message


@pytest.mark.parametrize(
    ("body", "levels"),
    [
        (b'{"a":"[[[["}', 1),
        (b'{"a":"\\"[[["}', 1),
        (b'{"a":"\\\\","b":[[1]]}', 3),
        (b'{"a":"\\\\\\"[[["}', 1),
        (b'[{"a":"]]"},{"b":[{}]}]', 4),
        (b"[" * 200_000 + b"]" * 200_000, 200_000),
        (b'[["x]",' * 100_000 + b"1" + b"]]" * 100_000, 200_000),
        (b"3", 0),
    ],
)
def test_depth_counts_brackets_outside_strings(body: bytes, levels: int) -> None:
    assert depth(body) == levels


@pytest.mark.parametrize(
    ("given", "count"), [(["a"] * 8193, 8193), (['a"b\\'] * 9000, 9000), ([[1]] * 2049, 2049)]
)
def test_a_flood_of_elements_is_counted_without_reading_them(given: list[Any], count: int) -> None:
    found = refused(orjson.dumps({"model": "m", "input": given}), large=True)
    assert (found.param, found.code) == ("input", "array_above_max_length")
    assert found.message.endswith(
        f"Expected an array with maximum length 2048, but got an array with length {count} instead."
    )


def test_a_flood_of_token_ids_is_counted_without_reading_them() -> None:
    found = refused(orjson.dumps({"model": "m", "input": [7] * 300_001}), large=True)
    assert found.message == "Requested 300001 tokens, max 300000 tokens per request"


@pytest.mark.parametrize("given", [["a, [b]"] * 2048, [1] * 300_000, [[1, 2]] * 2048, 'x",' * 40_000])
def test_large_bodies_within_the_limits_are_read_as_small_ones(given: Any) -> None:
    body = orjson.dumps({"model": "m", "input": given})
    assert parse_large(body, EmbeddingsRequest, False, Limits()).input == given


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (b'["a",' + b"1," * 500_000 + b"1]", "array_above_max_length"),
        (b'["a",' + b"[]," * 500_000 + b"[]]", "array_above_max_length"),
        (b'["a",[' + b"1," * 500_000 + b"1]]", "max_tokens_per_request"),
    ],
)
def test_a_flood_behind_a_string_is_counted_without_reading_it(given: bytes, code: str) -> None:
    tracemalloc.start()
    try:
        found = refused(b'{"model":"m","input":%b}' % given, large=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.code == code
    assert peak < 6 * len(given)  # read, a list of as many elements would take 20 bytes and more for each two


def test_strings_behind_an_object_are_counted_as_documents() -> None:
    given = b'{"model":"m","query":"q","documents":[{"text":"a,b"}' + b',"b"' * 20_000 + b"]}"
    with pytest.raises(Refusal) as caught:
        parse_large(given, RerankRequest, False, Limits())
    assert "with length 20001 instead" in caught.value.message


def test_a_flood_of_documents_is_counted() -> None:
    body = orjson.dumps({"model": "m", "query": "q", "documents": [{"text": "a"}] * 9000})
    with pytest.raises(Refusal, match="length 9000"):
        parse_large(body, RerankRequest, False, Limits())


@pytest.mark.parametrize(
    "given",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/vnd.api+json",
    ],
)
def test_json_is_taken(given: str | None) -> None:
    check_media({} if given is None else {"content-type": given})


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-encoding": "br"},
    ],
)
def test_other_media_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        check_media(headers)
    assert caught.value.status == 415


@pytest.mark.parametrize(("given", "read"), [(194.0, 194), (1, 1), (None, None)])
def test_whole_numbers_are_taken_in_either_form(given: float | None, read: int | None) -> None:
    assert whole(given, "dimensions") == read


@pytest.mark.parametrize(
    ("given", "code"),
    [(1.5, "invalid_type"), (0, "integer_below_min_value"), (-3.0, "integer_below_min_value")],
)
def test_other_numbers_are_refused(given: float, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        whole(given, "dimensions")
    assert (caught.value.param, caught.value.code) == ("dimensions", code)


@pytest.mark.parametrize(
    ("body", "halved"),
    [
        (rb'{"model":"m","input":"\ud800"}', True),
        (rb'{"model":"m","input":"\uDBFFx"}', True),
        (rb'{"model":"m","input":"x\udc00 and more"}', True),
        (rb'{"model":"m","input":"\ud83d\ude00", }', False),
        (rb'{"model":"m","input":"\\ud800", }', False),
    ],
)
def test_half_of_a_surrogate_pair_is_called_so(body: bytes, halved: bool) -> None:
    with pytest.raises(Refusal) as caught:
        parse(body, EmbeddingsRequest)
    assert caught.value.status == 400
    assert ("half of a surrogate pair" in caught.value.message) == halved


@pytest.mark.parametrize("value", [10**16, 1e300])
def test_a_number_of_any_length_is_not_repeated(value: float) -> None:
    with pytest.raises(Refusal) as caught:
        whole(value, "dimensions")
    assert caught.value.code == "integer_above_max_value"
    assert len(caught.value.message) < 200
