"""The import of a pickled cache: everything in it that is right, and nothing of it executed."""

from __future__ import annotations

import asyncio
import csv
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import CorruptFileError, FormatVersionError, StorageError
from vecmill.core.space import space_id
from vecmill.core.types import InputType
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.memory import MemoryCache
from vecmill.embedder.cache.pickles import Problem, import_pickle, read_pickle_cache
from vecmill.embedder.cache.sqlite import SqliteCache
from vecmill.models.resolve import open_model

ADA = "text-embedding-ada-002"
OWN = "somebody-elses-model"


def vectors(n: int, d: int = 6) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)


def unknown(engine: str) -> None:
    return None


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def read(path: Path) -> list[tuple[str, str, np.ndarray]]:
    return list(read_pickle_cache(path, dimensions=unknown))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "embeddings_cache.pkl"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["list", "tuple", "float64", "float32", "float16", "big-endian", "scalars"])
def test_every_protocol_and_kind_of_vector_is_read(path: Path, protocol: int, kind: str) -> None:
    rows = vectors(5, 1_100)
    made = {
        "list": lambda row: row.tolist(),
        "tuple": lambda row: tuple(row.tolist()),
        "float64": lambda row: row.astype(np.float64),
        "float32": lambda row: row,
        "float16": lambda row: row.astype(np.float16),
        "big-endian": lambda row: row.astype(">f8"),
        "scalars": lambda row: list(row),
    }[kind]
    texts = ["plain", "línea\nzwei", "汉字", "😀", "\ud800 lone"]
    write(path, {(text, OWN): made(row) for text, row in zip(texts, rows, strict=True)}, protocol)
    found = read(path)
    assert [(text, engine) for text, engine, _ in found] == [(text, OWN) for text in texts]
    right = rows.astype(np.float16).astype(np.float32) if kind == "float16" else rows
    assert np.array([vector for *_, vector in found]).tobytes() == right.tobytes()


def test_whole_numbers_among_floats_are_read(path: Path) -> None:
    write(path, {("a", OWN): [0, 1.5, -1, 2.25, 3.5, 10**20]})
    assert read(path)[0][2].tolist() == [0.0, 1.5, -1.0, 2.25, 3.5, np.float32(1e20)]


def test_a_vector_two_entries_share_is_read_twice(path: Path) -> None:
    shared = [1.0, 2.0]
    write(path, {("a", OWN): shared, ("b", OWN): shared})
    assert [vector.tolist() for *_, vector in read(path)] == [shared, shared]


def test_names_of_old_numpy_are_read(path: Path) -> None:
    row = vectors(1)[0]
    raw = pickle.dumps({("a", OWN): row}, protocol=2)
    assert b"numpy._core.multiarray" in raw
    path.write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read(path)[0][2].tobytes() == row.tobytes()


class Calls:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


MARKER = "vecmill_marker_file"


def evil(function: Any, *arguments: object, protocol: int = 4) -> bytes:
    return pickle.dumps(Calls(function, *arguments), protocol=protocol)


def malicious() -> dict[str, bytes]:
    touch = f"touch {MARKER}"
    code = f"open({MARKER!r}, 'w').close()"
    text = b"\x8c" + bytes([len(touch)]) + touch.encode()
    return {
        "os.system": evil(os.system, touch),
        "os.system, protocol 0": evil(os.system, touch, protocol=0),
        "builtins.eval": evil(eval, code),
        "builtins.exec": evil(exec, code, protocol=2),
        "builtins.open": evil(open, MARKER, "w"),
        "nested as a value": pickle.dumps({("a", OWN): [1.0, Calls(os.system, touch)]}),
        "nested as a key": pickle.dumps({(Calls(eval, code), OWN): [1.0]}),
        "after good entries": pickle.dumps({("a", OWN): [1.0], ("b", OWN): Calls(os.system, touch)}),
        "GLOBAL": b"\x80\x02cposix\nsystem\n" + text + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL from the memo": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93.",
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "INST without a text": b"(iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + text + b"\x85\x81.",
        "NEWOBJ of nothing": b"\x80\x02N)\x81.",
        "NEWOBJ_EX of nothing": b"\x80\x04N)}\x92.",
        "BUILD of a class": b"\x80\x02cos\n_wrap_close\n)\x81}b.",
        "BUILD of a list": b"\x80\x02]}X\x06\x00\x00\x00appendK\x01sb.",
        "REDUCE of a text": b"\x80\x02X\x05\x00\x00\x00posix)R.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"\x80\x02Pthing\n.",
        "BINPERSID": b"\x80\x02K\x01Q.",
        "numpy, another function": b"\x80\x02cnumpy\nload\n" + text + b"\x85R.",
        "numpy, deeper": b"\x80\x04\x8c\x05numpy\x8c\x0df2py.os.open_\x93.",
        "numpy, arrays of objects": pickle.dumps({("a", OWN): np.array([Calls(eval, code)], dtype=object)}),
        "numpy, reconstructing another class": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nK\x00\x85C\x01btR."
        ),
        "codecs with another codec": b"\x80\x02c_codecs\nencode\n\x8c\x01a\x8c\x03hex\x86R.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\ncos\nX\x06\x00\x00\x00system\x86R.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "OrderedDict": pickle.dumps(OrderedDict({("a", OWN): [1.0]})),
        "a set": pickle.dumps({1.0, 2.0}),
    }


@pytest.mark.parametrize("name", malicious())
def test_a_pickle_that_asks_for_more_than_values_is_refused_without_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(malicious()[name])
    cache = MemoryCache()
    with pytest.raises(StorageError, match=r"evil\.pkl asks for .*Nothing of it was executed") as caught:
        import_pickle(path, cache, dimensions=unknown)
    assert not (tmp_path / MARKER).exists()
    if named := {"os.system": "posix.system", "builtins.eval": "builtins.eval"}.get(name):
        assert named.partition(".")[2] in str(caught.value)
    assert not cache.contains("", cache_keys(space_id("hosted", OWN), ["a"]), dimensions=1).any()


def test_the_tests_own_pickles_do_act_when_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "builtins.eval", "nested as a value", "GLOBAL", "STACK_GLOBAL"):
        pickle.loads(malicious()[name])  # noqa: S301 - to see that the refusals above mean something
        assert (tmp_path / MARKER).exists(), name
        (tmp_path / MARKER).unlink()


def test_every_cut_of_a_file_is_said_to_be_damaged(path: Path) -> None:
    whole = pickle.dumps({("a", OWN): [1.0, 2.0, 3.0], ("b", OWN): np.arange(3.0)}, protocol=4)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"embeddings_cache.pkl"):
            read(path)


def test_bytes_at_random_are_refused_and_never_crash(path: Path) -> None:
    chance = np.random.default_rng(5)
    whole = pickle.dumps({("a", OWN): [1.0, 2.0, 3.0], ("b", OWN): np.arange(3.0)}, protocol=4)
    for _ in range(3_000):
        content = bytearray(whole)
        for at in chance.integers(0, len(content), 3):
            content[at] = chance.integers(0, 256)
        path.write_bytes(content)
        try:
            read(path)
        except StorageError as error:
            assert path.name in str(error)  # noqa: PT017 - it may also be read


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"text,vector\n", "no pickle"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"\x80\x04" + b"(" * 100, "cut short"),
        (b"\x80\x04e.", "makes no sense"),
        (b"\x80\x04h\x07.", "makes no sense"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc", "cut short"),
    ],
)
def test_what_is_no_pickle_is_said(path: Path, content: bytes, what: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=what):
        read(path)


def test_a_later_protocol_is_refused(path: Path) -> None:
    path.write_bytes(b"\x80\x06}.")
    with pytest.raises(FormatVersionError, match="protocol 6"):
        read(path)


def test_a_pickle_of_millions_of_tiny_objects_is_refused_early(path: Path) -> None:
    path.write_bytes(b"\x80\x04" + b"]" * 3_000_000 + b".")
    with pytest.raises(StorageError, match="more instructions"):
        read(path)


def test_deep_nesting_is_no_crash(path: Path) -> None:
    path.write_bytes(b"\x80\x04})" + b"\x85" * 500_000 + b"]s.")
    with pytest.raises(StorageError, match="entry 0: its key is not"):
        read(path)


def test_a_missing_file_is_said(path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        read(path)


@pytest.mark.parametrize("value", [[1.0], (1, 2), "text", 3, None, np.arange(3.0)])
def test_another_value_than_a_dict_is_refused(path: Path, value: object) -> None:
    with pytest.raises(StorageError, match=r"a cache is a dict"):
        read(write(path, value))


def test_a_second_value_after_the_first_is_not_passed_over(path: Path) -> None:
    path.write_bytes(pickle.dumps({}) * 2)
    with pytest.raises(StorageError, match="goes on after its value"):
        read(path)


WRONG: dict[str, tuple[object, object, str]] = {
    "text alone": ("a", [1.0, 2.0], "its key is not"),
    "three parts": (("a", OWN, 1), [1.0, 2.0], "its key is not"),
    "number as text": ((1, OWN), [1.0, 2.0], "its key is not"),
    "parts swapped": ((OWN, "a text with blanks"), [1.0, 2.0], "no model's name"),
    "no vector": (("a", OWN), None, "not a list of numbers"),
    "text as vector": (("a", OWN), "1.0", "not a list of numbers"),
    "text in the vector": (("a", OWN), [1.0, "2.0"], "not a list of numbers"),
    "True in the vector": (("a", OWN), [1.0, True], "not a list of numbers"),
    "nested vector": (("a", OWN), [[1.0, 2.0]], "not a list of numbers"),
    "matrix": (("a", OWN), np.ones((1, 2)), "not a list of numbers"),
    "empty": (("a", OWN), [], "empty"),
    "NaN": (("a", OWN), [1.0, float("nan")], "not finite"),
    "infinite": (("a", OWN), [float("-inf"), 1.0], "not finite"),
    "too large for float32": (("a", OWN), [1.0, 1e300], "not finite"),
    "too large for any float": (("a", OWN), [1.0, 10**400], "not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_named_by_position_and_the_others_are_imported(path: Path, name: str) -> None:
    key, value, reason = WRONG[name]
    write(path, {("good", OWN): [1.0, 2.0], key: value, ("good too", OWN): [3.0, 4.0]})
    with pytest.raises(StorageError, match=f"entry 1: .*{reason}"):
        read(path)
    cache = MemoryCache()
    report = import_pickle(path, cache, dimensions=unknown)
    assert (report.entries, report.imported, report.already) == (3, 2, 0)
    assert [problem.position for problem in report.skipped] == [1]
    assert reason in report.skipped[0].reason
    assert "good" not in str(report.skipped)


def test_a_width_the_catalogue_contradicts_is_wrong(path: Path) -> None:
    write(path, {("a", ADA): [1.0] * 1536, ("b", ADA): [1.0] * 512})
    report = import_pickle(path, MemoryCache())
    assert report.imported == 1
    assert report.skipped == (Problem(1, f"its vector has 512 dimensions; those of '{ADA}' have 1536"),)


def test_widths_nobody_can_judge_are_not_guessed(path: Path) -> None:
    write(path, {("a", OWN): [1.0, 2.0], ("b", "other"): [1.0], ("c", OWN): [1.0], ("d", OWN): [1.0]})
    report = import_pickle(path, MemoryCache())
    assert [problem.position for problem in report.skipped] == [0, 2, 3]
    assert "1 or 2 dimensions" in report.skipped[0].reason
    assert report.engines == {"other": 1}


def test_a_second_import_imports_nothing(path: Path) -> None:
    write(path, {(f"text {i}", OWN): row.tolist() for i, row in enumerate(vectors(700))})
    cache = MemoryCache()
    first = import_pickle(path, cache)
    second = import_pickle(path, cache)
    assert (first.imported, first.already) == (700, 0)
    assert (second.imported, second.already) == (0, 700)
    assert second.entries == 700


def test_engines_of_long_ago_have_spaces_of_their_own(path: Path) -> None:
    old = "text-similarity-babbage-001"
    write(path, {("a", old): [1.0, 2.0], ("a", ADA): [1.0] * 1536})
    cache = MemoryCache()
    assert import_pickle(path, cache).engines == {old: 1, ADA: 1}
    space = space_id("hosted", old)
    assert cache.get(space, cache_keys(space, ["a"]), dimensions=2)[1].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("model", [ADA, "text-embedding-3-small"])
def test_the_model_of_an_engines_name_finds_what_was_imported(
    path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")
    write(path, {(f"text {i}", model): row.tolist() for i, row in enumerate(vectors(3, 1536))})
    cache = MemoryCache()
    import_pickle(path, cache)
    provider = open_model(f"openai:{model}")
    sent = provider.encode(["text 2", "text 0", "text 7"], input_type=InputType.DOCUMENT)
    keys = cache_keys(provider.info.space, sent.texts, variant=sent.variant)
    at, found = cache.get(provider.info.space, keys, dimensions=provider.info.width)
    asyncio.run(provider.close())
    assert at.tolist() == [0, 1]
    assert found.tobytes() == vectors(3, 1536)[[2, 0]].tobytes()


def test_a_cache_that_keeps_nothing_is_no_success(path: Path, tmp_path: Path) -> None:
    write(path, {("a", OWN): [1.0, 2.0]})
    with pytest.raises(StorageError, match="does not keep"):
        import_pickle(path, SqliteCache(tmp_path / "vectors.sqlite", read_only=True))


def test_the_pickle_of_two_thousand_articles_is_what_the_cache_then_finds(
    path: Path, data_dir: Path, tmp_path: Path
) -> None:
    with (data_dir / "news" / "AG_news_samples.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["description"] for row in csv.DictReader(file)]
    assert len(texts) == 2_000
    rows = vectors(len(texts), 1536)
    write(path, {(text, ADA): row.tolist() for text, row in zip(texts, rows, strict=True)})
    right = dict(zip(texts, rows, strict=True))  # of a text that is there twice, the dict keeps the last
    cache = SqliteCache(tmp_path / "cache" / "vectors.sqlite")
    report = import_pickle(path, cache)
    assert (report.entries, report.imported, report.skipped) == (len(right), len(right), ())
    space = space_id("hosted", ADA)
    at, found = cache.get(space, cache_keys(space, texts), dimensions=1536)
    assert at.tolist() == list(range(2_000))
    assert found.tobytes() == np.array([right[text] for text in texts]).tobytes()
    cache.close()
