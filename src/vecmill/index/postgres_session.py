"""Connections to PostgreSQL, a few of which are kept, and the errors of psycopg in our words."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vecmill.core.config import environment
from vecmill.core.errors import Error, InputError, StorageError, WriteError
from vecmill.core.extras import require
from vecmill.core.types import Vectors
from vecmill.index.postgres_url import Address

if TYPE_CHECKING:
    import psycopg
    from psycopg import Connection, Copy, Cursor
else:
    psycopg = require("psycopg", extra="postgres")

_IDLE = 4
"""Connections kept open between calls."""

_CONNECT_SECONDS = "15"

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN"


@dataclass(frozen=True, slots=True)
class Vector:
    """A query vector as a parameter of a statement: its bytes as the server reads them."""

    data: bytes


def vector(components: Vectors) -> Vector:
    """Encode one vector (d,) as pgvector's binary format has it: count, a zero, big-endian float32."""
    head = np.array([len(components), 0], dtype=">i2").tobytes()
    return Vector(head + np.ascontiguousarray(components, dtype=">f4").tobytes())


class _VectorDumper(psycopg.adapt.Dumper):
    """Sends a `Vector`; the server knows its type from the cast beside it."""

    format = psycopg.pq.Format.BINARY
    oid = 0

    def dump(self, obj: Any) -> bytes:
        data: bytes = obj.data
        return data


class Sessions:
    """Connections to one server. Any thread may ask for a transaction; each has a connection of its own.

    Attributes:
        address: Where it is.
        notices: What the server remarked since they were last cleared.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection[Any]] = []
        self._lock = threading.Lock()
        self.notices: list[str] = []
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Close the connections that are kept. A later call connects again."""
        with self._lock:
            _close_all(self._idle)

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Cursor[Any]]:
        """Yield a cursor in a transaction: committed at the end, rolled back on any error.

        Args:
            write: False sees one moment all through and can change nothing.

        Raises:
            InputError, StorageError: What the server said, in our words and without secrets.
        """
        connection = None
        try:
            connection = self._begun(_WRITE if write else _READ)
            with connection.cursor(binary=True) as cursor:
                yield cursor
            connection.execute("COMMIT")
        except psycopg.Error as error:
            _roll_back(connection)
            raise translated(error, self.address) from _safe(error, self.address)
        except Error:
            _roll_back(connection)
            raise
        except BaseException:
            # Whatever was under way is cut off; the server rolls back.
            if connection is not None:
                connection.close()
            raise
        finally:
            if connection is not None:
                self._put_back(connection)

    def _begun(self, statement: str) -> Connection[Any]:
        """Return a connection with a transaction begun; one that died while it was kept is replaced."""
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            if kept is None:
                break
            try:
                kept.execute(statement)
                return kept
            except psycopg.OperationalError:
                kept.close()
        connection = connect(self.address)
        notices = self.notices  # a handler that held this object would keep it alive
        connection.add_notice_handler(lambda told: notices.append(told.message_primary or ""))
        connection.execute(statement)
        return connection

    def _put_back(self, connection: Connection[Any]) -> None:
        calm = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if calm and not connection.closed and len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()


def connect(address: Address) -> Connection[Any]:
    """Open a connection: UTF-8, moments in UTC, no prepared statements, 15 seconds to answer unless told.

    Raises:
        psycopg.Error: The server or the address is not right.
    """
    given = dict(address.parameters)
    if "connect_timeout" not in given and "PGCONNECT_TIMEOUT" not in environment():
        given["connect_timeout"] = _CONNECT_SECONDS
    given.setdefault("application_name", "vecmill")
    given["client_encoding"] = "UTF8"
    where = psycopg.conninfo.make_conninfo("", **given)
    connection = psycopg.connect(where, autocommit=True, prepare_threshold=None)
    connection.adapters.register_dumper(Vector, _VectorDumper)
    connection.execute("SET TIME ZONE 'UTC'; SET datestyle = 'ISO, YMD'; SET jit = off")
    return connection


def copying(
    cursor: Cursor[Any], statement: str, parameters: Sequence[Any] = ()
) -> AbstractContextManager[Copy]:
    """Begin a COPY. In one without parameters psycopg leaves a doubled % as it is."""
    return cursor.copy(statement, parameters) if parameters else cursor.copy(statement.replace("%%", "%"))


def _close_all(connections: list[Connection[Any]]) -> None:
    while connections:
        connections.pop().close()


def _roll_back(connection: Connection[Any] | None) -> None:
    if connection is None or connection.closed:
        return
    try:
        connection.execute("ROLLBACK")
    except psycopg.Error:
        connection.close()


_CONNECTING: tuple[tuple[str, type[Error], str], ...] = (
    (
        "password authentication failed|no password supplied|authentication failed",
        InputError,
        "check user and password; a password may also stand in PGPASSWORD or ~/.pgpass",
    ),
    ('database ".*" does not exist', InputError, "create it with createdb, or name another"),
    ('role ".*" does not exist', InputError, "name a user the server knows"),
    ("invalid connection option", InputError, "parameters behind ? are table and those of libpq"),
    ("invalid .* value|invalid integer value", InputError, "correct the parameter behind ?"),
    (
        "pg_hba.conf|SSL",
        InputError,
        "ask who runs the server whether you may connect, and try ?sslmode=require",
    ),
    ("resolve host|translate host", StorageError, "check the host's name"),
    (
        "refused|No such file|timeout|timed out|unreachable",
        StorageError,
        "is the server running, and reachable?",
    ),
    (
        "too many|remaining connection slots",
        StorageError,
        "the server has no connection left: try again later",
    ),
)
"""What a failed connection says (it has no code), whose fault it is, and the cure."""

_STATES: tuple[tuple[str, type[Error], str], ...] = (
    ("08|57P|58|XX", StorageError, "nothing of this call was kept; run it again when the server is well"),
    ("57014", StorageError, "the server gave up (statement_timeout?): raise the limit or ask for less"),
    ("42501", InputError, "ask the table's owner to GRANT what is needed, or name another ?table="),
    ("25006", InputError, "the server only reads (a standby?): write to its primary"),
    ("3F000", InputError, "create the schema, or name another in ?table=SCHEMA.NAME"),
    ("42P01|42703", StorageError, "the table was changed by others: open it again"),
    ("40|55P03", StorageError, "others wrote at the same time; run it again"),
    ("53100|53400|54", WriteError, "nothing of this call was kept"),
    ("53", StorageError, "the server is short of memory or connections: try again later"),
    ("22|42|0A|23", InputError, "correct the call"),
)
"""Beginnings of SQLSTATE codes. Source: PostgreSQL manual, appendix A."""


def translated(error: psycopg.Error, address: Address) -> Error:
    """Return our error for one of psycopg's: what happened, where, the cure, no secret and no row's text."""
    state = error.sqlstate or ""
    said = error.diag.message_primary or " ".join(str(error).split())
    said = _scrubbed(said, address)
    if not state:
        for pattern, kind, cure in _CONNECTING:
            if re.search(pattern, said):
                return kind(f"{address.shown}: {said}; {cure}")
        lost = isinstance(error, psycopg.OperationalError)
        cure = "; the connection was lost, nothing of this call was kept: run it again" if lost else ""
        return (StorageError if lost else InputError)(f"{address.shown}: {said}{cure}")
    for beginnings, kind, cure in _STATES:
        if re.match(beginnings, state):
            return kind(f"{address.shown}: {said}; {cure}")
    return StorageError(f"{address.shown}: {said} (SQLSTATE {state})")


def _scrubbed(text: str, address: Address) -> str:
    for secret in address.secrets:
        text = text.replace(secret, "…")
    return text


def _safe(error: psycopg.Error, address: Address) -> psycopg.Error | None:
    """Return the error to be chained, or None where a traceback of it would show a secret."""
    return None if _scrubbed(str(error), address) != str(error) else error
