from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core.errors import InputError
from vecmill.index.postgres_url import MANIFESTS, is_address, parse, quoted, shown


def test_whole_address_is_read() -> None:
    found = parse("postgresql://ann:p%40ss@db.example:6432/shop?table=public.films&sslmode=require")
    assert found.parameters == {
        "user": "ann",
        "password": "p@ss",
        "host": "db.example",
        "port": "6432",
        "dbname": "shop",
        "sslmode": "require",
    }
    assert (found.schema, found.table) == ("public", "films")
    assert found.shown == "postgresql://ann@db.example:6432/shop?table=public.films&sslmode=require"
    assert "p@ss" not in repr(found)


def test_table_has_a_default_and_keeps_its_case() -> None:
    assert parse("postgres://h/d").table == "vecmill"
    assert parse("postgres://h/d?table=Films").table == "Films"
    assert parse('postgres://h/d?table="a.b"."c""d"').table == 'c"d'
    assert parse('postgres://h/d?table="a.b"."c""d"').schema == "a.b"


def test_several_hosts_and_ipv6_are_passed_on() -> None:
    found = parse("postgresql://one:5432,[::1]:5433/db").parameters
    assert (found["host"], found["port"]) == ("one,::1", "5432,5433")
    assert parse("postgresql:///db?host=/var/run/pg").parameters == {"dbname": "db", "host": "/var/run/pg"}


@pytest.mark.parametrize(
    "url",
    [
        "films.parquet",
        "mysql://ann:secret@h/d",
        "postgresql+psycopg://ann:secret@h/d",
        "postgresql://ann:sec/ret@h/d",
        "postgresql://ann:sec?ret@h/d",
        "postgresql://ann:se@cret@h/d",
        "postgresql://ann:secret/d",
        "postgresql://h/d?table=",
        "postgresql://h/d?table=a.b.c",
        "postgresql://h/d?table=a&table=b",
        "postgresql://h/d?films",
        f"postgresql://h/d?table={MANIFESTS}",
        f"postgresql://h/d?table={'x' * 64}",
        "postgresql://h/d?table=a%00b",
    ],
)
def test_wrong_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(url)
    assert "secret" not in str(raised.value)
    assert "ret@" not in str(raised.value)
    assert "cret" not in str(raised.value)


@settings(deadline=None)
@given(
    password=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6),
    host=st.sampled_from(["h", "h:5432"]),
)
def test_no_password_is_ever_shown(password: str, host: str) -> None:
    hidden = f"§{password}§"
    for url in (
        f"postgresql://ann:{hidden}@{host}/d?table=films",
        f"postgresql://{host}/d?table=films&password={hidden.replace('&', '')}",
        f"ann:{hidden}@{host}/d",
    ):
        assert "§" not in shown(url)


def test_shown_keeps_what_is_no_secret() -> None:
    assert shown("postgresql://h/d?password=x&table=films&sslpassword=y") == "postgresql://h/d?table=films"
    assert shown("postgresql://h:5432/d") == "postgresql://h:5432/d"


def test_only_addresses_are_addresses() -> None:
    assert is_address("postgresql://h/d")
    assert is_address("postgres://h/d")
    assert not is_address("films.parquet")
    assert not is_address("postgresql")
    assert not is_address(7)


def test_quoted_name_cannot_end_itself() -> None:
    assert quoted('a"; DROP TABLE x; --%s') == '"a""; DROP TABLE x; --%%s"'
