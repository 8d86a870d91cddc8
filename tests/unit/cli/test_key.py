"""`vecmill key`: what it prints where, and what it keeps."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from vecmill.cli.key import key
from vecmill.cli.main import COMMANDS, cli
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.server.keys import GIVEN, KeyFile, KeyStore


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(key, arguments, standalone_mode=False)


def shown(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def test_add_prints_the_key_alone_on_stdout_and_it_opens(own_home: Path) -> None:
    result = invoke("add", "team")
    secret = result.stdout.strip()
    assert result.stdout == secret + "\n"
    assert secret not in result.stderr
    assert "may embed, read, without end" in result.stderr
    found = KeyStore(own_home / "keys.json").find(secret)
    assert found is not None
    assert found.name == "team"
    assert secret not in (own_home / "keys.json").read_text()


def test_add_as_json_says_everything_but_the_hash() -> None:
    made = shown("add", "prom", "--right", "metrics", "--right", "read", "--expires", "90d")
    assert made["key"].startswith("vm-")
    assert made["rights"] == ["read", "metrics"]
    assert made["state"] == "valid"
    assert "sha256" not in made
    expires = datetime.fromisoformat(made["expires"]).timestamp()
    assert 0 <= time.time() + 90 * 86_400 - expires < 60


@pytest.mark.parametrize(
    ("given", "expires"),
    [
        ("2031-05-06", "2031-05-07T00:00:00Z"),
        ("2031-05-06T12:00", "2031-05-06T12:00:00Z"),
        ("2031-05-06T12:00:00+02:00", "2031-05-06T10:00:00Z"),
    ],
)
def test_a_key_may_end_at_a_date(given: str, expires: str) -> None:
    assert shown("add", "x", "--expires", given)["expires"] == expires


@pytest.mark.parametrize("given", ["soon", "90", "-1d", "90y", "2031-99-99", ""])
def test_an_end_that_is_none_is_a_wrong_usage(given: str) -> None:
    result = invoke("add", "x", "--expires", given)
    assert isinstance(result.exception, click.BadParameter)
    assert "90d or 2027-01-31 would be" in str(result.exception)


def test_a_past_end_an_unknown_right_and_a_taken_name_are_refused(own_home: Path) -> None:
    assert isinstance(invoke("add", "x", "--expires", "2020-01-01").exception, InputError)
    assert isinstance(invoke("add", "x", "--right", "open").exception, click.BadParameter)
    assert not (own_home / "keys.json").exists()
    invoke("add", "x")
    assert isinstance(invoke("add", "x").exception, InputError)


def test_list_shows_how_keys_begin_and_in_which_state_they_are() -> None:
    secret = invoke("add", "team").stdout.strip()
    invoke("add", "soon", "--expires", "2d")
    invoke("add", "off")
    invoke("disable", "off")
    text = invoke("list").stdout
    assert secret not in text
    assert secret[:7] in text
    listed = shown("list")
    assert [(entry["name"], entry["state"]) for entry in listed["keys"]] == [
        ("team", "valid"),
        ("soon", "ends soon"),
        ("off", "off"),
    ]
    assert all("sha256" not in entry for entry in listed["keys"])


def test_list_of_no_keys_says_how_to_make_one() -> None:
    result = invoke("list")
    assert result.stdout == ""
    assert "vecmill key add NAME" in result.stderr


def test_remove_and_disable_by_name_or_id(own_home: Path) -> None:
    one, two = shown("add", "one"), shown("add", "two")
    assert shown("disable", one["id"])["state"] == "off"
    assert shown("disable", "one", "--undo")["state"] == "valid"
    assert "1 key left" in invoke("remove", "one").stderr
    assert [each.id for each in KeyFile(own_home / "keys.json").read()] == [two["id"]]
    assert isinstance(invoke("remove", "one").exception, UnknownNameError)


def test_another_file_can_be_named(tmp_path: Path, own_home: Path) -> None:
    path = tmp_path / "sub" / "k.json"
    assert shown("add", "x", "--keys-file", str(path))["name"] == "x"
    assert shown("list", "--keys-file", str(path))["path"] == str(path)
    assert not (own_home / "keys.json").exists()


def test_names_cannot_break_the_table() -> None:
    assert isinstance(invoke("add", "a\x1b[31mb").exception, InputError)


def test_rights_offered_are_those_there_are() -> None:
    add = key.commands["add"]
    choice = next(p.type for p in add.params if p.name == "rights")
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == [right.value for right in GIVEN]


def test_the_plural_is_understood_and_the_help_says_what_the_list_says() -> None:
    context = click.Context(cli)
    assert cli.get_command(context, "keys") is key
    assert key.help is not None
    assert key.help.splitlines()[0] == COMMANDS["key"][1]
