"""Addresses given for paths: refused, and never with a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core.addresses import ensure_path, without_password
from vecmill.core.errors import InputError


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("postgresql://bob:S3cret@h/db?table=x", "postgresql://bob:…@h/db?table=x"),
        ("no postgresql+psycopg://bob:S3/c@r:et@h/db here", "no postgresql+psycopg://bob:…@h/db here"),
        ("postgresql:/bob:S3cret@h/db", "postgresql:/bob:…@h/db"),
        ("postgresql://:S3cret@h/db", "postgresql://:…@h/db"),
        ("postgres://h/db?password=S3cret&table=x", "postgres://h/db?password=…&table=x"),
        ("https://host:8080/a/b.parquet", "https://host:8080/a/b.parquet"),
        ("postgresql://bob@h:5433/db", "postgresql://bob@h:5433/db"),
        ("C:/films.parquet and a:b@c", "C:/films.parquet and a:b@c"),
    ],
)
def test_a_text_is_shown_without_passwords(said: str, shown: str) -> None:
    assert without_password(said) == shown


@pytest.mark.parametrize("scheme", ["postgresql", "POSTGRES", "postgresql+psycopg", "mysql"])
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_path_and_its_password_is_not_said(scheme: str, kind: type) -> None:
    with pytest.raises(InputError) as raised:
        ensure_path(kind(f"{scheme}://bob:S3cret@localhost/db?table=x"))
    assert "S3cret" not in str(raised.value)
    assert "bob" in str(raised.value)


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd:").mkdir()
    Path("odd:/set.parquet").touch()
    assert ensure_path("odd:/set.parquet") == Path("odd:/set.parquet")
    assert ensure_path("none/set.parquet") == Path("none/set.parquet")
