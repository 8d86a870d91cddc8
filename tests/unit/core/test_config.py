"""Settings come from argument, environment, file, default; what does not fit is said with its place."""

from __future__ import annotations

import pickle
import tomllib
import traceback
from dataclasses import fields
from pathlib import Path

import pytest

from vecmill.core.config import Profile, Settings, load_settings, project_file
from vecmill.core.errors import ConfigError, InputError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vecmill.toml"


def test_the_first_of_argument_environment_file_and_default_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (load_settings().threads, load_settings().origins["threads"]) == (0, "default")
    file.write_text("threads = 2\n")
    assert (load_settings().threads, load_settings().origins["threads"]) == (2, "vecmill.toml")
    monkeypatch.setenv("VECMILL_THREADS", "3")
    assert (load_settings().threads, load_settings().origins["threads"]) == (3, "VECMILL_THREADS")
    assert (load_settings(threads=4).threads, load_settings(threads=4).origins["threads"]) == (4, "argument")


def test_the_file_in_home_is_read_after_the_one_here(file: Path, own_home: Path) -> None:
    (own_home / "vecmill.toml").write_text('threads = 5\nmodel = "there"\n')
    file.write_text('model = "here"\n')
    assert (load_settings().model, load_settings().threads) == ("here", 5)


def test_an_unknown_key_is_refused_and_the_known_ones_listed(file: Path) -> None:
    file.write_text('modle = "minilm"\n')
    with pytest.raises(ConfigError, match=r"vecmill\.toml: 'modle' is no setting; known: home, .*model"):
        load_settings()


def test_profiles_and_aliases_are_tables(file: Path) -> None:
    file.write_text('threads = 1\n[aliases]\na = "b"\n[profiles.work]\nkey = "env:X"\n')
    assert load_settings().threads == 1
    file.write_text('aliases = "b"\n')
    with pytest.raises(ConfigError, match="'aliases' is no setting"):
        load_settings()


@pytest.mark.parametrize(
    "line",
    [
        "threads = true",
        "threads = 1.5",
        "threads = -1",
        "model = 3",
        "home = 1",
        'threads = "two"',
        "confirm_above_usd = nan",
        "confirm_above_usd = [1]",
    ],
)
def test_a_value_of_another_kind_is_refused_naming_file_and_value(
    file: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECMILL_HOME")
    file.write_text(line + "\n")
    name = line.partition(" = ")[0]
    with pytest.raises(ConfigError, match=rf"^{name} = .* from vecmill\.toml is not a"):
        load_settings()


def test_paths_given_as_strings_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Settings(home=str(tmp_path / "a"), cache_dir="~/b")  # type: ignore[arg-type]  # on purpose
    assert (made.home, made.cache_dir) == (tmp_path / "a", tmp_path / "b")


# Profiles.

ALL = """
[profiles.work]
provider = "azure"
model = "text-embedding-3-small"
deployment = "rev"
base_url = "https://mill.openai.azure.com"
key = "env:TEAM_KEY"
auth = "key"
api_version = "2024-10-21"
organization = "org-1"
project = "proj-1"
headers = { X-Team = "search", X-Pass = "env:PASS" }
allow_http = true
requests_per_minute = 60
tokens_per_minute = 1000
max_concurrency = 4
timeout = 30
max_inputs = 16
max_request_tokens = 8000
max_tokens = 512
dimensions = 1536
mrl = true
normalized = false
document_prefix = "d: "
query_prefix = "q: "
query_model = "rev-query"
usd_per_million_tokens = 0.02
batch_usd_per_million_tokens = 0
user = "team"
"""


def test_a_profile_holds_what_its_table_says(file: Path) -> None:
    file.write_text(ALL)
    made = load_settings().profiles["work"]
    assert (made.name, made.origin, made.project, len(made.digest)) == ("work", str(file), True, 32)
    table = tomllib.loads(ALL)["profiles"]["work"]
    table["project_id"] = table.pop("project")
    assert {name: getattr(made, name) for name in table} == table
    assert table.keys() == {entry.name for entry in fields(Profile)} - {"name", "origin", "project", "digest"}


def test_what_a_profile_does_not_say_is_none_and_its_name_may_be_the_provider_s(file: Path) -> None:
    file.write_text('[profiles.github]\n[profiles.mine]\nmodel = "x"\n')
    profiles = load_settings().profiles
    assert (profiles["github"].provider, profiles["mine"].provider) == ("github", "openai")
    assert (profiles["mine"].key, profiles["mine"].mrl, profiles["mine"].headers) == (None, None, {})


def test_a_profile_or_alias_here_hides_the_one_of_the_user(file: Path, own_home: Path) -> None:
    (own_home / "vecmill.toml").write_text(
        '[profiles.a]\nmodel = "home"\nuser = "me"\n[profiles.b]\nmodel = "home"\n'
        '[aliases]\nx = "h"\ny = "h"\n'
    )
    file.write_text('[profiles.a]\nmodel = "here"\n[aliases]\nx = "p"\n')
    settings = load_settings()
    assert (settings.profiles["a"].model, settings.profiles["a"].user) == ("here", None)
    assert (settings.profiles["b"].model, settings.profiles["b"].project) == ("home", False)
    assert settings.aliases == {"x": "p", "y": "h"}


def test_the_user_s_own_file_is_no_project_s_also_where_one_stands_in_its_folder(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_home)
    (own_home / "vecmill.toml").write_text('[profiles.a]\nmodel = "home"\n')
    assert not load_settings().profiles["a"].project
    assert project_file() is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("modle = 'x'", "unknown key 'modle'; did you mean 'model'"),
        ("requests_per_minute = 0", "requests_per_minute = 0 from .* whole number of at least 1"),
        ("requests_per_minute = true", "is not a whole number"),
        ("timeout = 0", "timeout = 0 .* is not a number above 0"),
        ("timeout = inf", "is not a number above 0"),
        ("mrl = 1", "mrl = 1 .* is not true or false"),
        ("model = 3", "model = 3 .* is not a text"),
        ("provider = 'aws'", "provider = 'aws' .* is not one of openai, azure, github"),
        ("auth = 'oauth'", "is not one of key, entra, none"),
        ("usd_per_million_tokens = -1", "is not a number of at least 0"),
        ("headers = 'hush'", "headers is not a table"),
        ("headers = { X-Team = 3 }", "headers.X-Team is not a text"),
        ("headers = { 'X Team' = 'a' }", "cannot set such a header"),
        ("headers = { authorization = 'env:X' }", "cannot set such a header; for the login write key"),
        ("headers = { X-Team = 'a\\u20ac' }".replace("'", '"'), "a header cannot carry"),
        ('headers = { X-Team = "a\\nB: c" }', "a header cannot carry"),
    ],
)
def test_a_profile_s_mistake_is_said_with_its_place(file: Path, lines: str, said: str) -> None:
    file.write_text(f"[profiles.work]\n{lines}\n")
    with pytest.raises((ConfigError, InputError), match=said) as caught:
        load_settings()
    assert "work" in str(caught.value)
    assert "hush" not in str(caught.value)


PLANTED = "sk-planted-0123456789abcdefghij"


@pytest.mark.parametrize(
    "lines",
    [
        f'key = "{PLANTED}"',
        f'key = ["{PLANTED}"]',
        f'key = "env{PLANTED}"',
        f'headers = {{ X-Api-Key = "{PLANTED}" }}',
        f'headers = {{ X-Team = "{PLANTED}" }}',
        f'headers = {{ X-Team = "Bearer {PLANTED}" }}',
        f'headers = "{PLANTED}"',
    ],
)
def test_a_key_in_the_file_is_refused_and_not_shown(file: Path, lines: str) -> None:
    file.write_text(f"[profiles.work]\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "env:" in str(caught.value) or "not a table" in str(caught.value)
    assert PLANTED not in f"{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize("name", ["a b", "a:b", "a/b", ".a", "~a", ""])
def test_a_profile_s_name_does_not_read_as_a_path_or_provider(file: Path, name: str) -> None:
    file.write_text(f'[profiles."{name}"]\nmodel = "x"\n')
    with pytest.raises(ConfigError, match="cannot be a profile's name"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("0", 0),
        ("500_000", 500_000),
        ('"10 GiB"', 10 * 1024**3),
        ('"1.5gb"', 1_500_000_000),
        ('"3 KiB"', 3072),
        ('"77"', 77),
    ],
)
def test_sizes_may_have_units(file: Path, given: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(f"cache_max_bytes = {given}\n")
    assert load_settings().cache_max_bytes == count
    monkeypatch.setenv("VECMILL_CACHE_MAX_BYTES", given.strip('"'))
    assert load_settings().origins["cache_max_bytes"] == "VECMILL_CACHE_MAX_BYTES"
    assert load_settings().cache_max_bytes == count


@pytest.mark.parametrize("given", ['"ten"', '"10 GiBs"', "-1", "true", "1.5", '"-3 KiB"'])
def test_what_is_no_size_is_refused(file: Path, given: str) -> None:
    file.write_text(f"cache_max_bytes = {given}\n")
    with pytest.raises(ConfigError, match=r'a number of bytes, such as 500_000_000 or "10 GiB"'):
        load_settings()


def test_the_cache_is_on_off_or_auto(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().cache == "auto"
    monkeypatch.setenv("VECMILL_CACHE", "off")
    assert load_settings().cache == "off"
    with pytest.raises(ConfigError, match="cache = 'maybe' from the argument is not one of auto, on, off"):
        load_settings(cache="maybe")


def test_settings_with_profiles_can_be_hashed_and_sent_to_another_process(file: Path) -> None:
    file.write_text(ALL)
    settings = load_settings()
    assert hash(settings) == hash(load_settings())
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301 - just written


@pytest.mark.parametrize(
    "line",
    [
        'key = "env:sk-planted-abcdef0123456789"',
        'key = "env:ghp_planted0123456789abcdef"',
        'key = "env: sk-planted-abcdef0123456789"',
        'headers = {x-token = "env:sk-planted-abcdef0123456789"}',
        'base_url = "https://u:planted@host/v1"',
        'base_url = "https://planted@host/v1"',
        'base_url = "u:planted@host"',
        'base_url = "https://host/v1?api_key=planted"',
        'base_url = "https://host/v1?a=b&SIG=planted"',
    ],
)
def test_a_key_in_the_wrong_place_of_a_profile_is_refused_and_not_shown(file: Path, line: str) -> None:
    """Addresses and names of variables are shown by `config show` and `model list`."""
    file.write_text(f"[profiles.work]\n{line}\n")
    with pytest.raises(ConfigError, match=r"profiles\.work\.") as caught:
        load_settings()
    assert "planted" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "line",
    [
        'key = "env:MY_COMPANY_PRODUCTION_AZURE_OPENAI_KEY_OF_REGION_1"',
        'base_url = "https://host/v1?api-version=2024-10-21"',
        'base_url = "https://host/a@b"',
        'base_url = "mill"',
    ],
)
def test_references_and_addresses_without_keys_are_taken(file: Path, line: str) -> None:
    file.write_text(f"[profiles.work]\n{line}\n")
    assert load_settings().profiles["work"]
