"""States of limits are changed whole, shared through a file, and never cost a job its life."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vecmill.embedder.limit_store import LimitStore, MemoryStore, SqliteStore
from vecmill.embedder.pacing import Caps, State

CAPS = Caps(600.0, 100_000.0)
NOW = 1_800_000_000.0


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LimitStore]:
    made: LimitStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "limits.sqlite")
    yield made
    made.close()


def _reserve(store: LimitStore, key: str = "e", now: float = NOW) -> float:
    return store.change(key, lambda state: state.reserve([1000], CAPS, now=now, horizon=0.1)[0].at)


def _count(state: State) -> None:
    state.requests.total += 1


def test_a_change_is_there_for_the_next_one(store: LimitStore) -> None:
    first, second = _reserve(store), _reserve(store)
    assert second > first
    assert store.read("e").tokens.total == 2000


def test_endpoints_do_not_mix(store: LimitStore) -> None:
    _reserve(store)
    assert store.read("other") == State()


def test_a_change_that_raises_leaves_the_next_one_possible(store: LimitStore) -> None:
    def broken(state: State) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.change("e", broken)
    store.change("e", _count)
    assert store.read("e").requests.total == 1


def test_threads_lose_no_change(store: LimitStore) -> None:
    def work() -> None:
        for _ in range(50):
            store.change("e", _count)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("e").requests.total == 200


def test_a_file_gives_back_every_field(tmp_path: Path) -> None:
    path = tmp_path / "new" / "limits.sqlite"
    one, other = SqliteStore(path), SqliteStore(path)
    expected = State()

    def change(state: State) -> None:
        for each in (state, expected):
            each.reserve([10, 20, 30], CAPS, now=NOW, horizon=5.0)
            each.requests.limit, each.requests.kind, each.requests.rival = 60.0, "bucket", 7.5
            each.slow_down(NOW)
            each.paused_until = NOW + 3

    one.change("e", change)
    assert other.read("e") == expected
    one.close()
    other.close()


def test_reading_makes_no_file(tmp_path: Path) -> None:
    assert SqliteStore(tmp_path / "limits.sqlite").read("e") == State()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"format":2}',
        b'{"format":1,"state":{"requests":{},"tokens":{}}}',
        b'{"format":1,"state":{"last":null}}',
        b"\xff",
    ],
)
def test_a_state_of_another_version_counts_as_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "limits.sqlite"
    store = SqliteStore(path)
    _reserve(store)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE endpoints SET state = ?", (content,))
    connection.commit()
    connection.close()
    assert store.read("e") == State()
    assert _reserve(store) == NOW
    store.close()


def _warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("damage", ["nonsense", "folder", "file in the way"])
def test_a_file_that_cannot_be_used_costs_one_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "home" / "limits.sqlite"
    if damage == "file in the way":
        path.parent.write_text("here")
    else:
        path.parent.mkdir()
        if damage == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"no database at all, " * 500)
    store = SqliteStore(path)

    first, second = _reserve(store), _reserve(store)

    assert second > first
    assert not store.blocks
    assert len(_warned(caplog)) == 1
    assert str(path) in _warned(caplog)[0]
    store.close()


def test_a_file_locked_for_long_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vecmill.embedder.limit_store._PREPARATION",
        ("CREATE TABLE IF NOT EXISTS endpoints (id TEXT PRIMARY KEY, state BLOB)", "PRAGMA busy_timeout=1"),
    )
    path = tmp_path / "limits.sqlite"
    store = SqliteStore(path)
    _reserve(store)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    first, second = _reserve(store), _reserve(store)

    assert second > first
    assert len(_warned(caplog)) == 1
    holder.close()
    store.close()


def test_damage_while_it_is_in_use_keeps_the_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SqliteStore(tmp_path / "limits.sqlite")
    store.change("e", _count)

    def dropping(state: State) -> None:
        state.requests.total += 1
        assert store._connection is not None
        store._connection.execute("DROP TABLE endpoints")

    store.change("e", dropping)
    store.change("e", _count)

    assert store.read("e").requests.total == 3
    assert len(_warned(caplog)) == 1
    store.close()


def test_a_closed_store_opens_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "limits.sqlite")
    store.change("e", _count)
    store.close()
    store.change("e", _count)
    assert store.read("e").requests.total == 2
    store.close()
