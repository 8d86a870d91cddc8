# ruff: noqa: E402 - optional packages are skipped first
from __future__ import annotations

import pytest

from vecmill.core.errors import InputError, StorageError, WriteError

psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.index.postgres_session import Sessions, translated
from vecmill.index.postgres_url import parse

ADDRESS = parse("postgresql://ann:hunter2@h/d?table=films")


@pytest.mark.parametrize(
    ("said", "kind", "cure"),
    [
        ('FATAL: password authentication failed for user "ann"', InputError, "check user and password"),
        ('FATAL: database "d" does not exist', InputError, "createdb"),
        ('FATAL: role "ann" does not exist', InputError, "the server knows"),
        ("connection refused", StorageError, "running"),
        ("Connection refused", StorageError, "running"),
        ("failed to resolve host 'h'", StorageError, "host's name"),
        ("server closed the connection unexpectedly", StorageError, "nothing of this call was kept"),
    ],
)
def test_failed_connection_says_the_cure(said: str, kind: type[Exception], cure: str) -> None:
    error = translated(psycopg.OperationalError(said), ADDRESS)
    assert type(error) is kind
    assert cure in str(error)
    assert str(error).startswith(ADDRESS.shown)


def test_no_error_shows_the_password() -> None:
    assert "hunter2" not in str(translated(psycopg.OperationalError("bad: hunter2"), ADDRESS))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.errors.InsufficientPrivilege, InputError),
        (psycopg.errors.DiskFull, WriteError),
        (psycopg.errors.QueryCanceled, StorageError),
        (psycopg.errors.AdminShutdown, StorageError),
        (psycopg.errors.UndefinedTable, StorageError),
        (psycopg.errors.DatatypeMismatch, InputError),
        (psycopg.errors.ReadOnlySqlTransaction, InputError),
    ],
)
def test_servers_errors_become_ours(error: type[Exception], kind: type[Exception]) -> None:
    assert type(translated(error("said"), ADDRESS)) is kind  # type: ignore[arg-type] # one of psycopg's


def test_parameter_libpq_does_not_know_is_refused() -> None:
    sessions = Sessions(parse("postgresql://h/d?nonsense=1"))
    with pytest.raises(InputError, match="nonsense"), sessions.transaction():
        pass
