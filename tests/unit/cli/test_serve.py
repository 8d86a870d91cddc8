"""`vecmill serve`: what its flags mean, and what it refuses before it listens."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from vecmill.cli import serve as module
from vecmill.cli.key import key
from vecmill.cli.serve import directions, serve, source_of, start_of
from vecmill.compat.ovms import Start
from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, InputError, MissingExtraError, UnknownNameError
from vecmill.server.options import Limits, ModelSource, Options

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is tested


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VECMILL_HOME", "VECMILL_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vecmill_home"


@pytest.fixture
def loaded() -> list[Callable[[], None]]:
    """What the server would call once its models are loaded."""
    return []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, loaded: list[Callable[[], None]]) -> list[Options]:
    """Options the server would run with."""
    found: list[Options] = []

    def run(app: Any, *, on_start: Any, on_ready: Any, log_level: str) -> None:
        found.append(app.server.options)
        on_start("http://127.0.0.1:8000")
        loaded.append(on_ready)

    monkeypatch.setattr("vecmill.server.run.serve", run)
    return found


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(serve, arguments, standalone_mode=False)


def options_of(started: list[Options], *arguments: str) -> Options:
    result = invoke(*arguments)
    if result.exception is not None:
        raise result.exception
    return started[-1]


def test_without_options_the_built_in_model_is_served_to_this_machine(started: list[Options]) -> None:
    options = options_of(started)
    assert options == Options()
    assert options.models == (ModelSource("minilm", "minilm"),)
    assert options.host == "127.0.0.1"


def test_every_option_reaches_the_server(started: list[Options], tmp_path: Path) -> None:
    options = options_of(
        started,
        *("--model", "a=minilm", "--port", "9", "--poll-seconds", "3", "--memory", "2GiB", "--device", "CPU"),
        *("--precision", "float32", "--pooling", "cls", "--no-normalize", "--streams", "2"),
        *("--max-tokens", "99", "--long-text", "truncate", "--token-ids", "own", "--cache"),
        *("--max-usd", "4", "--strict", "--allow-truncated-dimensions", "--no-docs", "--no-metrics"),
        *("--require-keys", "--keys-file", "k.json", "--allowed-host", "x", "--allowed-host", "y"),
        *("--allowed-origin", "https://o", "--tls-cert", "c", "--tls-key", "d", "--oidc-issuer", "https://i"),
        *("--oidc-audience", "me", "--oidc-jwks-url", "https://j", "--repository", str(tmp_path)),
        *("--limit", "queue_seconds=0.5", "--limit", "max-inputs=7"),
    )
    source = ModelSource("a", "minilm", "cls", False, 2, "CPU", "float32", 99, "truncate")
    assert options == Options(
        port=9,
        models=(source,),
        repository=tmp_path,
        common=replace(source, name="", spec=""),
        poll_seconds=3,
        memory_bytes=2 << 30,
        token_ids="own",  # noqa: S106 - no password
        cache=True,
        max_usd=4,
        strict=True,
        allow_truncated_dimensions=True,
        keys_file=Path("k.json"),
        require_keys=True,
        oidc_issuer="https://i",
        oidc_audience="me",
        oidc_jwks_url="https://j",
        allowed_hosts=("x", "y"),
        allowed_origins=("https://o",),
        tls_cert=Path("c"),
        tls_key=Path("d"),
        docs=False,
        metrics=False,
        limits=Limits(queue_seconds=0.5, max_inputs=7),
    )


def test_options_are_read_from_the_environment(
    started: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECMILL_SERVE_PORT", "8123")
    monkeypatch.setenv("VECMILL_SERVE_MODELS", "a=minilm b=minilm")
    monkeypatch.setenv("VECMILL_SERVE_STRICT", "true")
    options = options_of(started)
    assert (options.port, options.strict) == (8123, True)
    assert [source.name for source in options.models] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "name", "spec"),
    [
        ("minilm", "minilm", "minilm"),
        ("text=minilm", "text", "minilm"),
        ("org/model=minilm", "org/model", "minilm"),
        ("azure:reviews", "reviews", "azure:reviews"),
        ("openai:text-embedding-3-small", "text-embedding-3-small", "openai:text-embedding-3-small"),
        ("github:openai/text-embedding-3-small", "openai/text-embedding-3-small", None),
        ("./some/bge-small", "bge-small", "./some/bge-small"),
        ("./odd=name", None, None),
        ("m=./odd=name", "m", "./odd=name"),
    ],
)
def test_a_model_is_called_as_said_or_as_it_is_called(given: str, name: str | None, spec: str | None) -> None:
    if name is None:
        with pytest.raises(InputError, match="cannot be called 'odd=name'"):
            source_of(given)
        return
    assert source_of(given) == ModelSource(name, given if spec is None else spec)


def test_an_existing_folder_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "models" / "bge").mkdir(parents=True)
    assert source_of("models/bge") == ModelSource("bge", "models/bge")


def test_upstreams_take_no_options_of_local_models(started: list[Options]) -> None:
    options = options_of(started, "--upstream", "azure:reviews", "--pooling", "cls", "--model", "minilm")
    assert options.models == (
        ModelSource("minilm", "minilm", pooling="cls"),
        ModelSource("reviews", "azure:reviews"),
    )


def test_two_models_of_one_name_are_refused(started: list[Options]) -> None:
    with pytest.raises(InputError, match="two models are called minilm"):
        options_of(started, "--model", "minilm", "--upstream", "minilm=azure:x")


# Who may ask


def test_an_address_others_reach_needs_a_key(started: list[Options]) -> None:
    with pytest.raises(ConfigError, match=r"vecmill key add.*--insecure-no-keys"):
        options_of(started, "--host", EVERYWHERE)
    assert not started


def test_with_a_key_it_is_closed(started: list[Options], home: Path) -> None:
    added = CliRunner().invoke(key, ["add", "somebody"], standalone_mode=False)
    assert added.exception is None, added.output
    assert options_of(started, "--host", EVERYWHERE).require_keys


def test_an_issuer_of_tokens_is_enough(started: list[Options]) -> None:
    given = ("--oidc-issuer", "https://login.example", "--oidc-audience", "me")
    assert options_of(started, "--host", EVERYWHERE, *given).require_keys


def test_openness_has_to_be_said(started: list[Options]) -> None:
    options = options_of(started, "--host", EVERYWHERE, "--insecure-no-keys")
    assert options.insecure_no_keys
    assert not options.require_keys
    with pytest.raises(InputError, match="exclude each other"):
        options_of(started, "--require-keys", "--insecure-no-keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_needs_no_key(started: list[Options], host: str) -> None:
    assert not options_of(started, "--host", host).require_keys


# Limits


@pytest.mark.parametrize(
    ("limit", "error", "match"),
    [
        ("colour=3", UnknownNameError, "unknown limit 'colour'"),
        ("max_inputs=1.5", InputError, "max_inputs is a whole number above 0"),
        ("max_inputs", InputError, "whole number"),
        ("queue_seconds=0", InputError, "queue_seconds is a number above 0"),
        ("queue_seconds=nan", InputError, "above 0"),
        ("queue_seconds=inf", InputError, "above 0"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    started: list[Options], limit: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        options_of(started, "--limit", limit)


def test_limits_that_may_be_none_are_numbers_too(started: list[Options]) -> None:
    assert options_of(started, "--limit", "key_requests_per_minute=60").limits.key_requests_per_minute == 60


def test_an_unknown_limit_lists_them_all(started: list[Options]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        options_of(started, "--limit", "queue_second=1")
    assert all(entry.name in str(caught.value) for entry in fields(Limits))


def test_a_wrong_size_is_a_usage_error() -> None:
    result = invoke("--memory", "much")
    assert isinstance(result.exception, click.BadParameter)


@pytest.mark.parametrize(
    ("size", "told"),
    [("4", "'4' is 4 bytes, in which no model fits: did you mean 4GiB?"), ("4KB", "500MB or 5GiB would do")],
)
def test_a_size_without_its_unit_is_a_usage_error(size: str, told: str) -> None:
    result = invoke("--memory", size)
    assert isinstance(result.exception, click.BadParameter)
    assert told in result.exception.message


# What it says


def test_it_says_what_is_served_where_and_whether_a_key_is_asked_for() -> None:
    options = Options(models=(ModelSource("a", "a"), ModelSource("b", "b")), repository=Path("models"))
    first, second = directions(options, "http://127.0.0.1:8000")
    assert first == "serving a, b, every model of models at http://127.0.0.1:8000/v1"
    assert "core" in second
    assert "no key is asked for while none exists" in second
    assert "a key is asked for" in directions(Options(require_keys=True), "x")[1]
    assert "no key is asked for;" in directions(Options(insecure_no_keys=True), "x")[1]


def test_it_says_that_it_serves_only_once_its_models_are_loaded(
    started: list[Options],
    loaded: list[Callable[[], None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = invoke("--model", "a=minilm").stderr
    assert "loading a; http://127.0.0.1:8000 listens" in said
    assert "serving" not in said
    loaded[0]()
    assert "serving a at http://127.0.0.1:8000/v1" in capsys.readouterr().err


# OpenVINO Model Server's flags


def test_openvino_model_servers_command_line_is_understood(started: list[Options], tmp_path: Path) -> None:
    folders = runpy.run_path(str(Path(__file__).parents[1] / "models" / "local" / "ovms_folders.py"))
    folders["older"](tmp_path / "org" / "m")
    path = folders["config"](tmp_path / "config.json", {"org/m": "org/m"})
    options = options_of(
        started,
        *("--port", "9000", "--rest_port", "8000", "--config_path", str(path), "--log_level", "DEBUG"),
    )
    assert options.port == 8000
    assert [source.name for source in options.models] == ["org/m"]


def test_its_flags_are_not_shown_in_the_help() -> None:
    result = CliRunner().invoke(serve, ["--help"])
    assert "--rest_port" not in result.output
    assert "--repository" in result.output


def test_its_port_is_grpcs_only_beside_a_rest_port(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, cache_dir=tmp_path)

    def start(*arguments: str) -> Start:
        with serve.make_context("serve", list(arguments)):
            given = click.get_current_context().params
            return start_of(given, settings, port_given=module._was_given("port"))

    assert start("--port", "9000").options.port == 9000
    both = start("--port", "9000", "--rest_port", "8000")
    assert both.options.port == 8000
    assert any("9000" in note for note in both.notes)
    assert not any("gRPC" in note for note in start("--rest_port", "8000").notes)


def test_its_models_and_ours_exclude_each_other(started: list[Options]) -> None:
    with pytest.raises(InputError, match="--config_path says what is served"):
        options_of(started, "--config_path", "c.json", "--model", "minilm")


def test_without_its_packages_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmill.core.extras.installed", lambda name: name != "msgspec")
    error = invoke().exception
    assert isinstance(error, MissingExtraError)
    assert "vecmill[serve]" in str(error)
