"""OpenVINO Model Server's start flags become our options."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from vecmill.compat import ovms
from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, CorruptFileError, InputError, UnknownNameError
from vecmill.server.options import ModelSource, Options

folders = runpy.run_path(str(Path(__file__).parents[1] / "models" / "local" / "ovms_folders.py"))
older, newer, config = (folders[name] for name in ("older", "newer", "config"))
OURS = Options()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_KEY", raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


def understood(settings: Settings, grpc_port: int | None = None, **given: Any) -> ovms.Start:
    return ovms.understand(given, OURS, settings, grpc_port=grpc_port)


def test_without_a_flag_nothing_changes(settings: Settings) -> None:
    start = understood(settings, rest_port=None, metrics_enable=False)
    assert (start.options, start.settings, start.notes) == (OURS, settings, ())


def test_the_demos_command_line_serves_its_config(settings: Settings, tmp_path: Path) -> None:
    older(tmp_path / "Alibaba-NLP" / "gte", options="truncate: true,")
    path = config(tmp_path / "config.json", {"Alibaba-NLP/gte": "Alibaba-NLP/gte"})
    start = understood(settings, grpc_port=9000, config_path=str(path), rest_port="8001")
    folder = str(tmp_path / "Alibaba-NLP" / "gte")
    assert start.options.models == (ModelSource("Alibaba-NLP/gte", folder, streams=2, long_text="truncate"),)
    assert start.options.port == 8001
    assert any("gRPC is not served" in note and "9000" in note for note in start.notes)
    assert any("only this machine" in note for note in start.notes)


def test_flags_that_mean_something_here_are_taken(settings: Settings, tmp_path: Path) -> None:
    newer(tmp_path / "m")
    (tmp_path / "key").write_text("a-key-of-somebody-0123456789\n")
    start = understood(
        settings,
        model_name="m",
        model_path=str(tmp_path / "m"),
        rest_bind_address="0.0.0.0",  # noqa: S104 - what is tested
        file_system_poll_wait_seconds="0",
        log_level="TRACE",
        metrics_enable=True,
        cache_dir=str(tmp_path / "elsewhere"),
        allowed_origins="https://a.example, https://b.example",
        api_key_file=str(tmp_path / "key"),
        target_device="CPU",
        plugin_config='{"NUM_STREAMS": "3", "AFFINITY": "CORE"}',
    )
    assert start.options.models == (ModelSource("m", str(tmp_path / "m"), device="CPU", streams=3),)
    assert start.options.host == "0.0.0.0"  # noqa: S104
    assert start.options.poll_seconds == 0
    assert start.options.allowed_origins == ("https://a.example", "https://b.example")
    assert start.options.key_hashes == (hashlib.sha256(b"a-key-of-somebody-0123456789").digest(),)
    assert start.log_level == "debug"
    assert start.settings.cache_dir == tmp_path / "elsewhere"
    assert start.notes == ("plugin_config.AFFINITY has no meaning here and is left out",)


def test_the_key_of_the_variable_counts_as_that_server_does_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "from-the-variable-0123456789")
    start = understood(settings, rest_port="8000")
    assert start.options.key_hashes == (hashlib.sha256(b"from-the-variable-0123456789").digest(),)
    assert not any("from-the-variable" in note for note in start.notes)
    assert understood(settings).options.key_hashes == ()


def test_a_folder_of_models_is_watched_or_one_of_it_named(settings: Settings, tmp_path: Path) -> None:
    newer(tmp_path / "org" / "m")
    whole = understood(settings, model_repository_path=str(tmp_path))
    assert (whole.options.repository, whole.options.models) == (tmp_path, ())
    on = understood(settings, model_repository_path=str(tmp_path), target_device="GPU")
    assert on.options.common.device == "GPU"
    one = understood(settings, model_repository_path=str(tmp_path), source_model="org/m", task="embeddings")
    assert one.options.models == (ModelSource("org/m", str(tmp_path / "org" / "m")),)
    named = understood(settings, model_repository_path=str(tmp_path), source_model="org/m", model_name="x")
    assert named.options.models[0].name == "x"


def test_what_has_no_meaning_here_is_said_once_each(settings: Settings) -> None:
    start = understood(settings, rest_port="1", rest_bind_address="127.0.0.1", nireq="4", rest_workers="2")
    assert start.notes == (
        "--nireq has no meaning here and is left out",
        "--rest_workers has no meaning here and is left out",
    )


def test_a_policy_of_one_version_serves_that_version(settings: Settings, tmp_path: Path) -> None:
    older(tmp_path / "m", versions=(1, 2, 3))
    given = {"name": "m", "base_path": "m", "model_version_policy": {"specific": {"versions": [1, 2]}}}
    (tmp_path / "config.json").write_text(json.dumps({"model_config_list": [{"config": given}]}))
    start = understood(settings, config_path=str(tmp_path / "config.json"))
    assert start.options.models[0].spec == str(tmp_path / "m" / "embeddings" / "2")
    assert any("version 2 is served and no other" in note for note in start.notes)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"rest_port": "http"}, InputError, "--rest_port http"),
        ({"rest_port": "70000"}, InputError, "up to 65535"),
        ({"log_level": "LOUD"}, UnknownNameError, "log level 'LOUD'"),
        ({"task": "text_generation"}, InputError, "only embeddings"),
        ({"pull": True}, InputError, "--pull"),
        ({"model_path": "x"}, InputError, "needs --model_name"),
        ({"model_name": "x"}, InputError, "needs --model_path"),
        ({"model_name": "x", "model_path": "/nowhere"}, ConfigError, "is no folder"),
        ({"config_path": "/nowhere/config.json"}, ConfigError, "cannot be read"),
        ({"config_path": "c", "model_path": "m"}, InputError, "exclude each other"),
        ({"api_key_file": "/nowhere/key"}, ConfigError, "cannot be read"),
        ({"plugin_config": "{", "model_name": "x", "model_path": "/"}, CorruptFileError, "not JSON"),
    ],
)
def test_flags_that_cannot_be_followed_are_refused(
    settings: Settings, given: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        understood(settings, **given)
