"""Before the server listens, and how it ends before it was ready."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError
from vecmill.server import run
from vecmill.server.app import create_app
from vecmill.server.options import Limits, Options


def test_a_certificate_that_cannot_be_used_is_told_before_anything_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    app = create_app(
        Options(models=(), tls_cert=tmp_path / "cert.pem"), settings=Settings(tmp_path, tmp_path)
    )

    def bound(*_: object, **__: object) -> Any:
        raise AssertionError("it was bound")

    monkeypatch.setattr(run, "listen", bound)
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        run.serve(app, log_level=None)
    with pytest.raises(ConfigError, match=r"cert\.pem"), run.served_in_thread(app):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "after", "warned"),
    [
        (256, 4096, 1536, False),
        (256, 1000, 1000, True),
        (1536, 1536, 1536, False),
        (256, -1, 1536, False),
        (-1, -1, -1, False),
    ],
)
def test_open_files_are_raised_to_what_connections_need_else_told(
    soft: int,
    hard: int,
    after: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import resource

    now = [(soft, hard)]
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: now.__setitem__(0, pair))
    with caplog.at_level(logging.WARNING):
        run._allow_files(Limits(max_connections=1024))
    assert now[0] == (after, hard)
    assert len(caplog.records) == warned


class Listener:
    """As much of a listener as the loading of models needs; `notices` is what ends were announced with."""

    origin = "http://127.0.0.1:1"

    def __init__(self, folder: Path, **options: Any) -> None:
        self.app = create_app(Options(models=(), **options), settings=Settings(folder, folder))
        self.notices: list[float] = []

    async def open(self) -> None: ...

    async def drain(self, *, notice: float) -> None:
        self.notices.append(notice)
        await self.app.server.close()


class Signals:
    """A signal that a test sends."""

    by_hand = False
    first: asyncio.Event

    def __init__(self) -> None:
        Signals.first = asyncio.Event()


@pytest.mark.asyncio
async def test_an_end_before_the_server_was_ready_is_not_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice is for balancers, and none sends requests here yet."""
    monkeypatch.setattr(run, "_Signals", Signals)
    monkeypatch.setattr(run, "gc", Mock())

    def stop(*_: object) -> None:
        Signals.first.set()

    early = Listener(tmp_path)
    await run._until_a_signal(early, stop)  # type: ignore[arg-type]  # as much as it uses
    late = Listener(tmp_path)
    await run._until_a_signal(late, None, stop)  # type: ignore[arg-type]  # as much as it uses
    assert (early.notices, late.notices) == ([0.0], [5.0])


@pytest.mark.asyncio
async def test_it_says_ready_only_when_the_models_of_the_repository_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "_Signals", Signals)
    monkeypatch.setattr(run, "gc", Mock())
    bad = tmp_path / "models" / "bad" / "1"
    bad.mkdir(parents=True)
    (bad / "config.json").write_text("{}")
    listener = Listener(tmp_path, repository=tmp_path / "models", poll_seconds=0.01)
    models = listener.app.server.models
    ready: list[str] = []

    async def serve() -> None:
        with caplog.at_level(logging.INFO):
            await run._until_a_signal(
                listener,  # type: ignore[arg-type]  # as much as it uses
                None,
                lambda: ready.append(models.trouble()),
            )

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(30):
        while "no version that can be served" not in models.trouble():
            await asyncio.sleep(0.005)
        assert ready == []
        assert not [one for one in caplog.records if one.message == "ready"]
        shutil.rmtree(bad.parent)
        while not ready:
            await asyncio.sleep(0.005)
    Signals.first.set()
    await serving
    assert ready == [""]
    assert [one.message for one in caplog.records].count("ready") == 1
