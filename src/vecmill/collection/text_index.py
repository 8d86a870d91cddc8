"""Ranking by words: BM25 over SQLite FTS5, and the fusion of several rankings into one.

Words are what Unicode 6.1 calls letters and digits, lower case, without diacritics: "Café" finds "cafe".
Scripts written without blanks (Chinese, Japanese, Thai) are one long word to it; there vectors search better.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vecmill.core.errors import ConfigError, CorruptFileError, InputError, WriteError
from vecmill.core.types import IntArray, Mask

RRF_CONSTANT = 60
"""Source: Cormack, Clarke and Buettcher, Reciprocal rank fusion, SIGIR 2009: k = 60."""

_CREATE = """CREATE VIRTUAL TABLE texts USING fts5(
    text, content = '', tokenize = 'unicode61 remove_diacritics 2')"""

_RANK = "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rank, rowid LIMIT ?"

_RANK_ALLOWED = """SELECT rowid FROM texts WHERE texts MATCH ? AND is_allowed(rowid)
    ORDER BY rank, rowid LIMIT ?"""
"""The rank is computed of rows that pass only: it is what costs."""

_MAX_WORDS = 1_000
"""Of a query; a longer one is a document, and what comes first in it says enough."""

_MAX_IDLE = 4

_BETWEEN = re.compile(r"[\s\0!-&(-/:-@\[-^`{-~]+")
"""What parts the words of a query: blanks and ASCII's marks, but ' and _, which stand inside words."""


class TextIndex:
    """Texts by row number, ranked by BM25 against a query's words. Any thread may call any method.

    In memory or one SQLite file. It keeps the words, not the texts. It does no fsync: a file is safe against
    loss of power once whoever asked for it has made it so (`core.durable`), and can always be built anew.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._path = path
        self._idle = [connection]
        self._lock = threading.Condition()
        self._closed = False

    @classmethod
    def build(cls, path: Path | str | None, pairs: Iterable[tuple[int, str | None]]) -> TextIndex:
        """Build an index.

        Cost: some 300,000 short texts a second; about the size of the texts in UTF-8.

        Args:
            path: A file that is not there yet; None for memory.
            pairs: Row numbers, each once, and their texts; null ones are left out.

        Raises:
            WriteError: The file is there already or cannot be written.
            ConfigError: This Python's SQLite has no FTS5.
        """
        target = None if path is None else Path(path)
        if target is not None and target.exists():
            raise WriteError(f"{target} is there already; a text index is built into a new file")
        index = cls(_connect(target), target)
        try:
            with index._connection() as connection:
                _run(connection, _CREATE)
            index.add(pairs)
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def open(cls, path: Path | str) -> TextIndex:
        """Open a file `build` made.

        Raises:
            CorruptFileError: It is missing, damaged, or not a text index; build it anew.
        """
        target = Path(path)
        if not target.is_file():
            raise CorruptFileError(f"no text index at {target}; build it anew")
        index = cls(_connect(target), target)
        try:
            len(index)
        except BaseException:
            index.close()
            raise
        return index

    def add(self, pairs: Iterable[tuple[int, str | None]]) -> None:
        """Add texts under row numbers that are new; all of them or, where one fails, none.

        Raises:
            WriteError: The file cannot be written.
        """
        given = ((row, text) for row, text in pairs if text is not None)
        with self._connection() as connection:
            try:
                with connection:
                    connection.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", given)
            except sqlite3.Error as error:
                raise WriteError(f"{self._name}: cannot add texts: {error}") from error

    def ranked(self, query: str, count: int, allowed: Mask | None = None) -> IntArray:
        """Rank rows by BM25 against the words of a query, any of which may be missing from a text.

        Cost: some 0.8 us for every text that holds one of the words and may be found.

        Args:
            query: Any text. Nothing in it is syntax; a query without a word finds nothing.
            count: Rows wanted, at least 1.
            allowed: (n,) bool by row number, the rows that may be found (no row from n on); None for all.

        Returns:
            (m,) int64 rows, m at most `count`, best first, equal ones in row order.

        Raises:
            InputError: `count` is below 1.
            CorruptFileError: The file is damaged.
        """
        if count < 1:
            raise InputError(f"count is {count}; ask for at least 1 row")
        asked = _as_query(query)
        if not asked:
            return np.empty(0, np.int64)
        with self._connection() as connection:
            try:
                return _fetched(connection, asked, count, allowed)
            except sqlite3.Error as error:
                raise self._damaged(error) from error

    def __len__(self) -> int:
        with self._connection() as connection:
            try:
                (number,) = connection.execute("SELECT count(*) FROM texts_docsize").fetchone()
            except sqlite3.Error as error:
                raise self._damaged(error) from error
        return int(number)

    def close(self) -> None:
        """Close the file; safe to call twice. Searches that are running finish first where they can."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._lock.notify_all()

    @property
    def _name(self) -> str:
        return "the text index" if self._path is None else str(self._path)

    def _damaged(self, error: sqlite3.Error) -> CorruptFileError:
        return CorruptFileError(f"{self._name} is not a sound text index ({error}); build it anew")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to one thread. Of a file there are as many as threads at once; memory has one."""
        connection = self._borrowed()
        try:
            yield connection
        finally:
            with self._lock:
                if self._closed or len(self._idle) >= _MAX_IDLE:
                    connection.close()
                else:
                    self._idle.append(connection)
                self._lock.notify()

    def _borrowed(self) -> sqlite3.Connection:
        with self._lock:
            while not self._idle and self._path is None and not self._closed:
                self._lock.wait()
            if self._closed:
                raise InputError(f"{self._name} was closed")
            if self._idle:
                return self._idle.pop()
        return _connect(self._path)


def fused(rankings: Sequence[IntArray], k: int, *, constant: int = RRF_CONSTANT) -> IntArray:
    """Fuse rankings of rows: a row's worth is the sum of 1 / (constant + rank) over those that name it.

    Source: Cormack, Clarke and Buettcher, Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods, SIGIR 2009.

    Args:
        rankings: Rows best first, each row at most once in each.
        k: Rows wanted, at least 1.
        constant: How little the first ranks stand out.

    Returns:
        (at most k,) int64 rows, best first; equal ones by rank in the first ranking, then the lower row.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 row")
    ranks: dict[int, list[int]] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking.tolist(), 1):
            ranks.setdefault(row, []).append(rank)
    first = {row: rank for rank, row in enumerate(rankings[0].tolist())} if rankings else {}

    def place(row: int) -> tuple[float, float, int]:
        worth = math.fsum(1.0 / (constant + rank) for rank in ranks[row])
        return -worth, first.get(row, math.inf), row

    return np.array(sorted(ranks, key=place)[:k], np.int64)


def _as_query(text: str) -> str:
    """Write words as FTS5 strings joined by OR; what FTS5 cuts further, such as don't, is a phrase."""
    pieces = _BETWEEN.split(text.encode("utf-8", "ignore").decode())
    words = list(dict.fromkeys(piece for piece in pieces if piece))[:_MAX_WORDS]
    return " OR ".join(f'"{word}"' for word in words)


def _fetched(connection: sqlite3.Connection, asked: str, count: int, allowed: Mask | None) -> IntArray:
    if allowed is None:
        found = connection.execute(_RANK, (asked, count)).fetchall()
    else:
        flags = np.ascontiguousarray(allowed, np.bool_).tobytes()
        connection.create_function("is_allowed", 1, lambda row: row < len(flags) and flags[row])
        try:
            found = connection.execute(_RANK_ALLOWED, (asked, count)).fetchall()
        finally:
            connection.create_function("is_allowed", 1, None)
    return np.fromiter((row for (row,) in found), np.int64, len(found))


def _connect(path: Path | None) -> sqlite3.Connection:
    """Open a connection any thread may use, one at a time."""
    if path is None:
        return sqlite3.connect(":memory:", check_same_thread=False)
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rwc", uri=True, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
    except sqlite3.Error as error:
        raise CorruptFileError(f"{path} is not a sound text index ({error}); build it anew") from error
    return connection


def _run(connection: sqlite3.Connection, statement: str) -> None:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if "fts5" in str(error):
            raise ConfigError("this Python's SQLite has no full-text search (FTS5)") from error
        raise WriteError(f"cannot build a text index: {error}") from error
