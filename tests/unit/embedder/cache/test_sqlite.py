"""The cache in a file: what stays, what goes, and what becomes of a file that is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import InputError
from vecmill.core.types import Vectors
from vecmill.embedder.cache import database
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.sqlite import SqliteCache, open_cache

SPACE = "0123456789abcdef" * 2
DAY = 86_400.0


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


def keys_of(*names: str) -> list[bytes]:
    return cache_keys(SPACE, names)


def made(n: int, d: int = 8, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vectors.sqlite"


def change(path: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(path)
    with db:
        assert db.execute(statement, values).rowcount, "nothing was changed"
    db.close()


def test_vectors_stay_when_the_process_opens_the_file_again(path: Path) -> None:
    first = SqliteCache(path)
    first.put(SPACE, keys_of("a", "b"), made(2))
    first.close()
    again = SqliteCache(path)
    at, found = again.get(SPACE, keys_of("b", "c", "a"), dimensions=8)
    again.close()
    assert at.tolist() == [0, 2]
    assert found.tobytes() == made(2)[[1, 0]].tobytes()


def test_looking_makes_no_file(path: Path) -> None:
    cache = SqliteCache(path)
    cache.get(SPACE, keys_of("a"), dimensions=8)
    assert cache.info().vectors == 0
    cache.close()
    assert not path.parent.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such rights there")
def test_only_the_owner_may_read_the_files(path: Path) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a"), made(1))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    names = {file.name for file in path.parent.iterdir()}
    cache.close()
    assert names == {"vectors.sqlite", "vectors.sqlite-wal", "vectors.sqlite-shm"}
    assert modes == {0o600}


def test_no_text_is_in_any_file_or_name(path: Path) -> None:
    text = "planted: the quick brown fox 4711"
    cache = SqliteCache(path)
    cache.name_space(SPACE, "openai:text-embedding-ada-002")
    cache.put(SPACE, cache_keys(SPACE, [text]), made(1))
    files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    cache.close()
    assert b"text-embedding-ada-002" in b"".join(files.values()), "the search itself works"
    assert not any(b"planted" in content or "planted" in name for name, content in files.items())


def test_the_file_grows_linearly_by_at_most_8500_bytes_a_row(path: Path) -> None:
    cache, sizes = SqliteCache(path), []
    for step in range(4):
        for put in range(0, 500, 50):
            keys = cache_keys(SPACE, [f"{step} {put} {i}" for i in range(50)])
            cache.put(SPACE, keys, made(50, 1536, seed=put))
        cache.close()
        sizes.append(sum(file.stat().st_size for file in path.parent.iterdir()))
    grown = np.diff([0, *sizes]) / 500
    assert sizes[-1] / 2000 <= 8_500
    assert grown.max() <= 8_500
    assert grown[1:].max() - grown[1:].min() < 0.05 * grown[1:].mean(), "each 500 rows cost the same"


def test_a_flipped_byte_makes_the_vector_missing_and_it_can_be_put_again(path: Path) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a", "b"), made(2))
    cache.close()
    wrong = bytearray(made(2)[0].tobytes())
    wrong[5] ^= 1
    change(path, "UPDATE data SET vector = ? WHERE vector = ?", bytes(wrong), made(2)[0].tobytes())
    assert cache.get(SPACE, keys_of("a", "b"), dimensions=8)[0].tolist() == [1]
    assert cache.contains(SPACE, keys_of("a", "b"), dimensions=8).tolist() == [False, True]
    cache.put(SPACE, keys_of("a"), made(2)[:1])
    at, found = cache.get(SPACE, keys_of("a", "b"), dimensions=8)
    cache.close()
    assert at.tolist() == [0, 1]
    assert found.tobytes() == made(2).tobytes()


def test_vectors_that_changed_places_are_missing(path: Path) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a", "b"), made(2))
    cache.close()
    change(path, "UPDATE entry SET id = 3 - id")
    assert cache.get(SPACE, keys_of("a", "b"), dimensions=8)[0].size == 0
    cache.close()


@pytest.mark.parametrize("value", [None, 3, 2.5, "text", b"", b"123"])
def test_a_vector_of_another_type_or_length_is_missing(path: Path, value: object) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a"), made(1))
    cache.close()
    db = sqlite3.connect(path)
    with db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    db.close()
    change(path, "UPDATE data SET vector = ?", value)
    assert cache.get(SPACE, keys_of("a"), dimensions=8)[0].size == 0
    cache.close()


def damaged_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if "damaged" in file.name)


def spoil_header(path: Path) -> None:
    path.write_bytes(b"this is no database".ljust(2000, b"!"))


def spoil_pages(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // database.PAGE_BYTES):
            file.seek(page * database.PAGE_BYTES)
            file.write(b"\xff" * 64)


def spoil_version(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def spoil_application(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA application_id = 7")
    db.close()


def spoil_schema(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("DROP TABLE data")
    db.close()


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def someone_elses(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.close()


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_header,
        spoil_pages,
        spoil_version,
        spoil_application,
        spoil_schema,
        cut_in_half,
        someone_elses,
    ],
)
def test_a_damaged_file_is_set_aside_once_and_a_new_one_begun(
    path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a", "b"), made(2))
    cache.close()
    spoil(path)
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert cache.get(SPACE, keys_of("a", "b"), dimensions=8)[0].size == 0
        cache.put(SPACE, keys_of("a", "b"), made(2))
        at, found = cache.get(SPACE, keys_of("a", "b"), dimensions=8)
    cache.close()
    assert at.tolist() == [0, 1]
    assert found.tobytes() == made(2).tobytes()
    assert damaged_files(path) == ["vectors.sqlite.damaged-1"]
    assert path.with_name("vectors.sqlite.damaged-1").read_bytes()[200:] == content[200:]
    assert len(caplog.records) == 1
    assert "vectors.sqlite.damaged-1" in caplog.text


def test_damage_in_the_middle_of_use_is_survived_by_every_cache_of_the_file(path: Path) -> None:
    one, other = SqliteCache(path), SqliteCache(path)
    letters = {name: made(1, seed=ord(name)) for name in "abc"}
    for name in "ab":
        one.put(SPACE, keys_of(name), letters[name])
    one.close()
    for cache in (one, other):  # both have the file open, and the index in memory
        assert cache.contains(SPACE, keys_of("a", "b"), dimensions=8).all()
    spoil_pages(path)
    for name in "abc":
        for cache in (one, other):
            cache.get(SPACE, keys_of(name), dimensions=8)
            cache.put(SPACE, keys_of(name), letters[name])
    for cache in (one, other):
        at, found = cache.get(SPACE, keys_of(*"abc"), dimensions=8)
        assert at.size >= 2
        assert found.tobytes() == np.concatenate([letters["abc"[i]] for i in at]).tobytes()
        cache.close()
    assert {name.partition(".damaged-")[2][0] for name in damaged_files(path)} == {"1"}


def test_a_second_damaged_file_does_not_replace_the_first(path: Path) -> None:
    for _ in range(2):
        cache = SqliteCache(path)
        cache.put(SPACE, keys_of("a"), made(1))
        cache.close()
        spoil_header(path)
        cache.get(SPACE, keys_of("a"), dimensions=8)
        cache.close()
    assert damaged_files(path) == ["vectors.sqlite.damaged-1", "vectors.sqlite.damaged-2"]


def test_a_removed_file_is_begun_anew(path: Path) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a"), made(1))
    for file in path.parent.iterdir():
        file.unlink()
    assert cache.get(SPACE, keys_of("a"), dimensions=8)[0].size == 0
    cache.put(SPACE, keys_of("a"), made(1))
    assert cache.get(SPACE, keys_of("a"), dimensions=8)[0].tolist() == [0]
    cache.close()


def test_a_read_only_cache_finds_and_writes_nothing(path: Path) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a"), made(1))
    cache.close()
    before = path.read_bytes()
    reader = SqliteCache(path, read_only=True)
    reader.put(SPACE, keys_of("b"), made(1))
    assert reader.get(SPACE, keys_of("a", "b"), dimensions=8)[0].tolist() == [0]
    reader.close()
    assert path.read_bytes() == before


def test_a_read_only_cache_leaves_a_damaged_file_alone(path: Path) -> None:
    path.parent.mkdir()
    spoil_header(path)
    before = path.read_bytes()
    reader = SqliteCache(path, read_only=True)
    assert reader.get(SPACE, keys_of("a"), dimensions=8)[0].size == 0
    reader.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    now = Now()
    cache = SqliteCache(tmp_path / "taken" / "vectors.sqlite", now=now)
    for _ in range(3):
        cache.put(SPACE, keys_of("a"), made(1))
        now.seconds += 100
        assert cache.get(SPACE, keys_of("a"), dimensions=8)[0].size == 0
    cache.close()
    assert len(caplog.records) == 1
    assert "new vectors are not kept" in caplog.text


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY])
@pytest.mark.parametrize("refused", [{"mode=rw"}, {"mode=rw", "mode=ro"}])
def test_what_may_only_be_read_is_read(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    refused: set[str],
) -> None:
    cache = SqliteCache(path)
    cache.put(SPACE, keys_of("a"), made(1))
    cache.close()
    connect = database._connect

    def connect_as_allowed(path: Path, mode: str, *, create: bool) -> sqlite3.Connection:
        if mode in refused:
            error = sqlite3.OperationalError("not allowed")
            error.sqlite_errorcode = code
            raise error
        return connect(path, mode, create=create)

    monkeypatch.setattr(database, "_connect", connect_as_allowed)
    for _ in range(2):
        assert cache.get(SPACE, keys_of("a", "b"), dimensions=8)[0].tolist() == [0]
        cache.put(SPACE, keys_of("b"), made(1))
    cache.close()
    assert [record.message.count("new vectors are not kept") for record in caplog.records] == [1]


def test_what_was_used_is_evicted_last(path: Path) -> None:
    now = Now()
    cache = SqliteCache(path, max_bytes=3 << 20, now=now)
    early = cache_keys(SPACE, [f"early {i}" for i in range(100)])
    cache.put(SPACE, early, made(100, 1536))
    now.seconds += 2 * DAY
    later = cache_keys(SPACE, [f"later {i}" for i in range(200)])
    cache.put(SPACE, later, made(200, 1536))
    now.seconds += 2 * DAY
    assert cache.get(SPACE, early[:50], dimensions=1536)[0].size == 50
    more = cache_keys(SPACE, [f"more {i}" for i in range(200)])
    cache.put(SPACE, more, made(200, 1536))
    assert cache.contains(SPACE, early[:50], dimensions=1536).all(), "used two days ago"
    assert cache.contains(SPACE, more, dimensions=1536).all()
    assert not cache.contains(SPACE, early[50:], dimensions=1536).any(), "not used for four days"
    there = cache.contains(SPACE, later, dimensions=1536)
    assert there.any()
    assert cache.info().used_bytes <= 3 << 20
    cache.close()


def test_use_is_written_down_when_a_cache_only_reads(path: Path) -> None:
    now = Now()
    cache = SqliteCache(path, now=now)
    cache.put(SPACE, keys_of("a", "b"), made(2))
    now.seconds += 10 * DAY
    cache.get(SPACE, keys_of("a"), dimensions=8)
    cache.close()
    (space,) = cache.info().spaces
    cache.close()
    assert now() - space.newest_use < DAY
    assert now() - space.oldest_use >= 10 * DAY


def test_a_use_of_the_same_day_is_not_written_down(path: Path) -> None:
    now = Now()
    cache = SqliteCache(path, now=now)
    cache.put(SPACE, keys_of("a"), made(1))
    cache.close()
    before = path.read_bytes()
    now.seconds += DAY / 2
    cache.get(SPACE, keys_of("a"), dimensions=8)
    cache.close()
    assert path.read_bytes() == before


def test_a_file_above_a_new_limit_shrinks_to_it(path: Path) -> None:
    keys = cache_keys(SPACE, [str(i) for i in range(1000)])
    cache = SqliteCache(path)
    cache.put(SPACE, keys[:999], made(999, 1536))
    cache.close()
    assert path.stat().st_size > 6 << 20
    smaller = SqliteCache(path, max_bytes=2 << 20)
    smaller.put(SPACE, keys[999:], made(1, 1536))
    smaller.close()
    assert path.stat().st_size <= 2 << 20
    assert smaller.info().vectors > 200
    smaller.close()


def test_info_tells_spaces_apart(path: Path) -> None:
    cache = SqliteCache(path, max_bytes=1 << 30)
    cache.name_space(SPACE, "openai:text-embedding-3-small")
    cache.put(SPACE, keys_of("a", "b"), made(2))
    cache.put("f" * 32, cache_keys("f" * 32, ["a"]), made(1, 16))
    info = cache.info()
    cache.close()
    assert [(s.space, s.model, s.dimensions, s.vectors, s.vector_bytes) for s in info.spaces] == [
        (SPACE, "openai:text-embedding-3-small", 8, 2, 64),
        ("f" * 32, None, 16, 1, 64),
    ]
    assert info.max_bytes == 1 << 30
    assert info.vectors == 3
    assert 0 < info.used_bytes <= info.file_bytes


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_limit_below_one_is_refused(path: Path, wrong: int) -> None:
    with pytest.raises(InputError, match="max_bytes"):
        SqliteCache(path, max_bytes=wrong)


def test_one_cache_for_one_folder_in_a_process(tmp_path: Path) -> None:
    settings = load_settings(cache_dir=tmp_path)
    assert open_cache(settings) is open_cache(settings)
    assert open_cache(settings) is not open_cache(load_settings(cache_dir=tmp_path / "other"))
    assert open_cache(settings).path == tmp_path / "vectors.sqlite"
