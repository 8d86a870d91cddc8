"""A name becomes an address, a login and facts: argument, profile, environment, catalogue."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any, cast

import pytest

from vecmill.core import trust
from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, Error, MissingKeyError
from vecmill.models.hosted import endpoints
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.endpoints import KeyLogin, Sources, key_status
from vecmill.models.hosted.openai import connect

KEY = "sk-planted-0123456789abcdefghij"
SMALL = "text-embedding-3-small"


def opened(name: str = SMALL, **options: Any) -> Connection:
    return connect(name, settings=load_settings(), **options)


def headers(connection: Connection) -> dict[str, str]:
    return dict(asyncio.run(_login(connection)))


async def _login(connection: Connection) -> Any:
    return await connection.login()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def test_a_catalogue_model_at_openai_is_known_and_vouched_for(key: str, own_home: Path) -> None:
    made = opened()
    assert made.embeddings_url == "https://api.openai.com/v1/embeddings"
    assert made.files_url == "https://api.openai.com/v1/files"
    assert made.batches_url == "https://api.openai.com/v1/batches"
    assert (made.name, made.model, made.batch_path) == (f"openai:{SMALL}", SMALL, "/v1/embeddings")
    assert (made.facts.dimensions, made.facts.mrl, made.facts.exact) == (1536, True, True)
    assert (made.facts.usd_per_million_tokens, made.facts.batch_usd_per_million_tokens) == (0.02, 0.01)
    assert made.vouched
    assert made.sends_model
    assert headers(made) == {"Authorization": f"Bearer {KEY}"}
    assert made.learned_path is not None
    assert made.learned_path.parent == own_home / "endpoints"


def test_without_a_key_the_variables_that_would_do_are_named() -> None:
    with pytest.raises(
        MissingKeyError, match=r"openai:text-.* needs a key: set OPENAI_API_KEY, or .*profile"
    ):
        opened()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:11434/v1", "http://localhost:11434/v1/embeddings"),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1/embeddings"),
        ("http://localhost:8000", "http://localhost:8000/v1/embeddings"),
        ("http://localhost:8000/", "http://localhost:8000/v1/embeddings"),
        ("http://localhost:8000/embeddings", "http://localhost:8000/embeddings"),
        (" https://Gateway.example/team/v1 ", "https://gateway.example/team/v1/embeddings"),
        ("https://gateway.example:443/v1", "https://gateway.example/v1/embeddings"),
        ("https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1/embeddings"),
        ("http://[::1]:99/v3", "http://[::1]:99/v3/embeddings"),
        ("http://192.168.1.4/v1", "http://192.168.1.4/v1/embeddings"),
        ("http://ollama:11434/v1", "http://ollama:11434/v1/embeddings"),
    ],
)
def test_base_urls_are_tidied(given: str, url: str, key: str) -> None:
    assert opened(base_url=given).embeddings_url == url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gateway.example/v1", "write it as"),
        ("ftp://gateway.example", "write it as"),
        ("https://", "write it as"),
        ("http://gateway.example/v1", "without encryption"),
        ("http://8.8.8.8/v1", "without encryption"),
        ("http://169.254.169.254/v1", "without encryption"),
        ("https://me:hush@gateway.example/v1", "before '@'"),
        ("https://gateway.example/v1?team=a", "what follows"),
        ("https://gateway.example/v1?api-key=hush", "what follows"),
        ("https://gateway.example/v1#hush", "what follows"),
        ("https://gate way.example", "blanks"),
        ("https://gateway.example\n/v1", "blanks"),
        ("https://gateway.example:99999/v1", "base_url is not a base URL"),
    ],
)
def test_base_urls_that_would_harm_are_refused_without_showing_secrets(
    given: str, said: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        opened(base_url=given)
    assert "hush" not in str(caught.value)


def test_another_server_needs_no_key_and_is_not_vouched_for() -> None:
    made = opened("nomic-embed", base_url="http://localhost:11434/v1")
    assert headers(made) == {}
    assert not made.vouched
    assert made.account == ""
    assert (made.facts.dimensions, made.facts.mrl, made.facts.exact) == (None, None, False)
    assert made.facts.usd_per_million_tokens is None
    assert not opened(base_url="http://localhost:11434/v1").vouched


def test_a_host_that_only_begins_or_ends_like_openai_is_not_openai(key: str) -> None:
    for host in ("api.openai.com.evil.example", "evilapi.openai.com"):
        assert not opened(base_url=f"https://{host}/v1").vouched


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_the_environment_names_another_server(
    variable: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(variable, "https://gateway.example/v1")
    assert opened().embeddings_url == "https://gateway.example/v1/embeddings"
    assert opened(base_url="http://localhost:1/v1").embeddings_url == "http://localhost:1/v1/embeddings"


def test_organization_and_project_are_told_to_openai_and_not_to_others(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    plain = opened()
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    assert opened().headers == {"OpenAI-Organization": "org-1", "OpenAI-Project": "proj-1"}
    assert opened().account != plain.account
    assert opened(base_url="https://gateway.example/v1").headers == {}


def test_a_named_profile_comes_before_the_environment_and_fills_up_from_it(
    own_file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    own_file.write_text(
        '[profiles.team]\nmodel = "text-embedding-3-large"\nbase_url = "https://gateway.example/v1"\n'
        'key = "env:TEAM_KEY"\n[profiles.bare]\nmodel = "text-embedding-3-large"\n'
    )
    monkeypatch.setenv("TEAM_KEY", "team-key-0123456789")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
    team = opened("team")
    assert team.embeddings_url == "https://gateway.example/v1/embeddings"
    assert headers(team) == {"Authorization": "Bearer team-key-0123456789"}
    assert (team.name, team.model) == ("openai:team", "text-embedding-3-large")
    bare = opened("bare")
    assert bare.embeddings_url == "https://elsewhere.example/v1/embeddings"
    assert headers(bare) == {"Authorization": f"Bearer {KEY}"}
    assert opened("team", base_url="http://localhost:1/v1").embeddings_url.startswith("http://localhost:1/")


def test_a_named_profile_s_key_goes_to_no_address_of_the_environment(
    own_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file.write_text(f'[profiles.team]\nmodel = "{SMALL}"\nkey = "env:TEAM_KEY"\n')
    monkeypatch.setenv("TEAM_KEY", "team-key-0123456789")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
    assert opened("team").embeddings_url == "https://api.openai.com/v1/embeddings"
    assert (
        opened("team", base_url="http://localhost:1/v1").embeddings_url == "http://localhost:1/v1/embeddings"
    )


def test_the_environment_s_key_does_not_take_the_place_of_that_of_an_address(
    own_file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    own_file.write_text(
        '[profiles.openai]\nbase_url = "https://gateway.example/v1"\nkey = "env:TEAM_KEY"\n'
        f'[profiles.mine]\nmodel = "{SMALL}"\nkey = "env:MY_KEY"\n'
    )
    monkeypatch.setenv("TEAM_KEY", "team-key-0123456789")
    monkeypatch.setenv("MY_KEY", "my-key-0123456789")
    assert headers(opened()) == {"Authorization": "Bearer team-key-0123456789"}
    assert headers(opened("mine")) == {"Authorization": "Bearer my-key-0123456789"}
    sources = Sources.of("openai", SMALL, load_settings())
    assert key_status(sources) == "TEAM_KEY: set"


def test_the_profile_of_the_provider_s_name_comes_after_the_environment(
    own_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file.write_text(
        '[profiles.openai]\nbase_url = "https://gateway.example/v1"\nkey = "env:TEAM_KEY"\n'
        "requests_per_minute = 60\n"
    )
    monkeypatch.setenv("TEAM_KEY", "team-key-0123456789")
    made = opened()
    assert (made.embeddings_url, made.requests_per_minute) == ("https://gateway.example/v1/embeddings", 60)
    assert headers(made) == {"Authorization": "Bearer team-key-0123456789"}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")
    assert opened().embeddings_url == "https://elsewhere.example/v1/embeddings"
    assert headers(opened()) == {"Authorization": f"Bearer {KEY}"}


def test_a_profile_s_facts_limits_and_headers_come_before_the_catalogue_s(
    own_file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    own_file.write_text(
        "[profiles.mine]\n"
        f'model = "{SMALL}"\nmax_tokens = 512\nmrl = false\nusd_per_million_tokens = 0.5\n'
        "normalized = false\n"
        'document_prefix = "d: "\nquery_prefix = "q: "\nquery_model = "other"\nmax_inputs = 16\n'
        "max_request_tokens = 1000\nrequests_per_minute = 7\ntokens_per_minute = 9\nmax_concurrency = 3\n"
        'timeout = 4.5\nheaders = { X-Team = "search", X-Pass = "env:PASS" }\n'
    )
    monkeypatch.setenv("PASS", "hush-hush-hush-hush")
    made = opened("mine")
    facts = made.facts
    assert (facts.max_tokens, facts.mrl, facts.usd_per_million_tokens, facts.normalized) == (
        512,
        False,
        0.5,
        False,
    )
    assert (facts.document_prefix, facts.query_prefix, facts.query_model) == ("d: ", "q: ", "other")
    assert (facts.max_inputs, facts.max_request_tokens, facts.dimensions) == (16, 1000, 1536)
    assert (made.requests_per_minute, made.tokens_per_minute) == (7, 9)
    assert (made.max_concurrency, made.timeout) == (3, 4.5)
    assert dict(made.headers) == {"X-Team": "search"}
    assert headers(made)["X-Pass"] == "hush-hush-hush-hush"


def test_a_profile_may_send_no_key_at_all(own_file: Path, key: str) -> None:
    own_file.write_text(
        '[profiles.mine]\nmodel = "nomic"\nbase_url = "http://localhost:11434/v1"\nauth = "none"\n'
    )
    assert headers(opened("mine")) == {}


# Trust.

EVIL = f'[profiles.team]\nmodel = "{SMALL}"\nbase_url = "https://evil.example/v1"\n'


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (EVIL, "base_url of profile 'team'"),
        (EVIL + 'key = "env:OTHER_KEY"\n', "base_url of profile 'team'"),
        (f'[profiles.team]\nmodel = "{SMALL}"\nheaders = {{ X-To = "evil" }}\n', "headers of profile 'team'"),
        (f'[profiles.team]\nmodel = "{SMALL}"\nallow_http = true\n', "allow_http of profile 'team'"),
        (f'ca_file = "evil.pem"\n[profiles.team]\nmodel = "{SMALL}"\n', "ca_file"),
        (f'confirm_above_usd = 99\n[profiles.team]\nmodel = "{SMALL}"\n', "confirm_above_usd"),
        (f'[profiles.team]\nmodel = "{SMALL}"\nusd_per_million_tokens = 0\n', "usd_per_million_tokens of"),
        (
            f'[profiles.team]\nmodel = "{SMALL}"\n[profiles.openai]\nbatch_usd_per_million_tokens = 0.0\n',
            "batch_usd_per_million_tokens of profile 'openai'",
        ),
    ],
)
def test_a_project_s_file_does_not_say_where_a_key_goes_unless_it_is_trusted(
    here: Path, lines: str, what: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "other-key-0123456789")
    file = here / "vecmill.toml"
    file.write_text(lines)
    with pytest.raises(ConfigError, match=rf"sets {what}.* not trusted.*`vecmill config trust`"):
        opened("team")
    trust.trust(file)
    assert opened("team").model == SMALL
    file.write_text(lines + "# changed\n")
    with pytest.raises(ConfigError, match="has changed since it was trusted"):
        opened("team")
    trust.trust(file)
    assert trust.distrust(file)
    with pytest.raises(ConfigError, match="is not trusted"):
        opened("team")


def test_a_project_s_file_is_asked_about_after_the_folder_was_left(
    here: Path, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "vecmill.toml").write_text('ca_file = "evil.pem"\n')
    settings = load_settings()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match=r"sets ca_file.* not trusted"):
        connect(SMALL, settings=settings)


@pytest.mark.parametrize("own", ["", "confirm_above_usd = 50"])
def test_a_project_s_file_may_ask_sooner_than_the_user_s(
    here: Path, key: str, own_file: Path, own: str
) -> None:
    own_file.write_text(own)
    (here / "vecmill.toml").write_text(f"confirm_above_usd = {40 if own else 0.5}\n")
    assert opened().model == SMALL


def test_what_the_user_says_is_not_the_project_s(
    here: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "vecmill.toml").write_text('ca_file = "evil.pem"\nconfirm_above_usd = 99\n')
    monkeypatch.setenv("VECMILL_CONFIRM_ABOVE_USD", "99")
    monkeypatch.setenv("VECMILL_CA_FILE", "evil.pem")
    assert opened().model == SMALL
    monkeypatch.delenv("VECMILL_CA_FILE")
    assert connect(SMALL, settings=load_settings(ca_file="own.pem")).model == SMALL


def test_no_secret_is_fetched_for_a_file_that_is_not_trusted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a secret was fetched")

    monkeypatch.setattr(endpoints, "resolve_secret", fetch)
    for more in ('key = "keyring:a/b"', 'headers = { X-Token = "keyring:a/b" }'):
        (here / "vecmill.toml").write_text(f"{EVIL}{more}\n")
        with pytest.raises(ConfigError, match="not trusted"):
            opened("team")


def test_a_project_s_file_cannot_bring_its_own_list_of_trusted_files(here: Path, key: str) -> None:
    file = here / "vecmill.toml"
    file.write_text(EVIL)
    digest = load_settings().profiles["team"].digest
    (here / "trusted.json").write_text(f'{{"{file}": "{digest}"}}')
    file.write_text(f'home = "{here}"\n{EVIL}')
    with pytest.raises(ConfigError, match="not trusted"):
        opened("team")


def test_a_project_s_file_needs_no_trust_where_no_key_is_sent_or_the_address_is_the_vendor_s(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "vecmill.toml").write_text(
        f'[profiles.local]\nmodel = "x"\nbase_url = "http://localhost:1/v1"\n'
        f'[profiles.own]\nmodel = "{SMALL}"\nkey = "env:TEAM_KEY"\n'
    )
    assert headers(opened("local")) == {}
    monkeypatch.setenv("TEAM_KEY", "team-key-0123456789")
    assert opened("own").embeddings_url == "https://api.openai.com/v1/embeddings"


# Secrets.


def test_a_planted_key_shows_up_nowhere(
    key: str, own_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    own_file.write_text(
        f'[profiles.mine]\nmodel = "{SMALL}"\nheaders = {{ X-Pass = "env:OPENAI_API_KEY" }}\n'
    )
    shown = [repr(opened()), str(opened("mine")), repr(load_settings()), str(opened().learned_path)]
    for value in (KEY + "\nsecond", KEY + "\u20ac", KEY + "\x00"):
        with monkeypatch.context() as other:
            if "\x00" in value:  # no variable can hold it
                continue
            other.setenv("OPENAI_API_KEY", value)
            try:
                opened()
            except Error:
                shown.append(traceback.format_exc())
            else:
                pytest.fail("a key that breaks a header was taken")
    assert KEY not in "\n".join([*shown, caplog.text])


def test_accounts_differ_by_key_and_do_not_give_a_short_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = []
    for value in (KEY, KEY + "x", "ollama"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        accounts.append(opened(base_url="http://localhost:1/v1").account)
    assert accounts[0] != accounts[1]
    assert len(accounts[0]) == 12
    assert accounts[2] == ""


def test_a_profile_may_bear_its_model_s_name_but_not_another_s(own_file: Path, key: str) -> None:
    own_file.write_text(f"[profiles.{SMALL}]\nrequests_per_minute = 60\n")
    made = opened()
    assert (made.model, made.requests_per_minute, made.vouched) == (SMALL, 60, True)
    own_file.write_text(f'[profiles.{SMALL}]\nmodel = "text-embedding-3-large"\n')
    with pytest.raises(ConfigError, match="bears another model's name: rename it"):
        opened()
    own_file.write_text("[profiles.mine]\n")
    with pytest.raises(ConfigError, match='does not name its model: write model = "text-embedding-3-small"'):
        opened("mine")


# Names.


def test_a_profile_s_model_that_is_vouched_for_has_its_own_name_which_other_folders_know(
    own_file: Path, key: str
) -> None:
    own_file.write_text(
        f'[profiles.dear]\nmodel = "{SMALL}"\n'
        f'[profiles.gate]\nmodel = "{SMALL}"\nbase_url = "https://gateway.example/v1"\n'
        f'[profiles.odd]\nmodel = "{SMALL}"\nquery_prefix = "query: "\n'
        '[profiles.new]\nmodel = "text-embedding-9"\n'
    )
    assert opened("dear").name == f"openai:{SMALL}"
    assert opened("gate").name == "openai:gate"
    assert opened("odd").name == "openai:odd"  # by its model's name queries would lack the prefix
    assert opened("new").name == "openai:new"


def test_without_a_key_profiles_that_run_the_model_are_named(own_file: Path) -> None:
    own_file.write_text(f'[profiles.dear]\nmodel = "{SMALL}"\nkey = "env:DEAR_KEY"\n')
    with pytest.raises(MissingKeyError, match="of the profiles here dear asks for this model"):
        opened()


def test_a_name_nobody_knows_is_asked_and_the_hint_is_kept_for_the_answer(own_file: Path, key: str) -> None:
    assert opened().unknown_hint == ""
    made = opened("dear")
    assert made.unknown_hint == (
        "'dear' is no profile here: they are looked for in ./vecmill.toml and VECMILL_HOME"
    )
    assert f"did you mean openai:{SMALL}" in opened("text-embedding-3-smal").unknown_hint
    own_file.write_text(
        '[profiles.deer]\nmodel = "text-embedding-3-smal"\n[profiles.own]\nmodel = "brand-new"\n'
    )
    assert "did you mean openai:deer?" in opened("dear").unknown_hint
    assert f"did you mean {SMALL}" in opened("deer").unknown_hint
    assert opened("own").unknown_hint == ""
    assert opened("n" * 100_000).unknown_hint  # long names are compared in part


# A key that is not needed yet.


def test_a_key_may_be_missing_until_a_request_is_made(own_file: Path) -> None:
    own_file.write_text(
        f'[profiles.dear]\nmodel = "{SMALL}"\nkey = "env:NOWHERE"\n'
        f'[profiles.head]\nmodel = "{SMALL}"\nbase_url = "http://localhost:1/v1"\n'
        'headers = { X-Pass = "env:NOWHERE" }\n'
    )
    for name, variable in ((SMALL, "OPENAI_API_KEY"), ("dear", "NOWHERE"), ("head", "NOWHERE")):
        with pytest.raises(MissingKeyError, match=variable):
            opened(name)
        made = opened(name, needs_key=False)
        assert made.facts.dimensions == 1536
        with pytest.raises(MissingKeyError, match=variable):
            headers(made)


# Prices.


def test_a_price_of_a_profile_s_own_voids_the_catalogue_s_batch_price(own_file: Path, key: str) -> None:
    def prices(said: str, general: str = "") -> tuple[float | None, float | None]:
        own_file.write_text(f'[profiles.mine]\nmodel = "{SMALL}"\n{said}\n[profiles.openai]\n{general}\n')
        facts = opened("mine").facts
        return facts.usd_per_million_tokens, facts.batch_usd_per_million_tokens

    usd, batch = "usd_per_million_tokens", "batch_usd_per_million_tokens"
    assert prices("") == (0.02, 0.01)
    assert prices(f"{usd} = 5.0") == (5.0, None)
    assert prices(f"{usd} = 5.0\n{batch} = 3.0") == (5.0, 3.0)
    assert prices(f"{batch} = 3.0") == (0.02, 3.0)
    assert prices(f"{usd} = 5.0", f"{batch} = 3.0") == (5.0, None)
    assert prices("", f"{usd} = 5.0") == (5.0, None)
    assert prices(f"{batch} = 3.0", f"{usd} = 5.0") == (5.0, 3.0)


# Where keys came from.


def test_a_login_says_where_its_key_came_from_as_it_was_written(
    own_file: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_KEY", "sk-reviews-0123456789abcdef")
    own_file.write_text(
        f'[profiles.mine]\nmodel = "{SMALL}"\nkey = "env:REVIEWS_KEY"\n'
        '[profiles.bare]\nmodel = "x"\nbase_url = "http://localhost:1/v1"\nauth = "none"\n'
        '[profiles.head]\nmodel = "x"\nbase_url = "http://localhost:1/v1"\nauth = "none"\n'
        'headers = { X-Pass = "env:REVIEWS_KEY" }\n'
    )

    def origin(name: str) -> str:
        return cast(KeyLogin, opened(name).login).origin

    assert origin(SMALL) == "OPENAI_API_KEY"
    assert origin("mine") == "env:REVIEWS_KEY (key of profile 'mine')"
    assert origin("bare") == ""
    assert origin("head") == "REVIEWS_KEY (header X-Pass)"


# Texts are worth something too.


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("https://evil.example/v1", True),
        ("http://192.168.1.4/v1", True),
        ("http://ollama:11434/v1", True),
        ("https://localhost.evil.example/v1", True),
        ("http://localhost:11434/v1", False),
        ("http://127.0.0.1:11434/v1", False),
        ("http://[::1]:11434/v1", False),
    ],
)
@pytest.mark.parametrize("auth", ['auth = "none"\n', ""])
def test_a_project_s_file_sends_texts_to_no_other_machine_even_without_a_key(
    here: Path, url: str, refused: bool, auth: str
) -> None:
    path = here / "vecmill.toml"
    path.write_text(f'[profiles.team]\nmodel = "x"\nbase_url = "{url}"\n{auth}')
    if not refused:
        assert headers(opened("team")) == {}
        return
    with pytest.raises(ConfigError, match=r"base_url of profile 'team'.*your texts.*vecmill config trust"):
        opened("team")
    trust.trust(path)
    assert headers(opened("team")) == {}
