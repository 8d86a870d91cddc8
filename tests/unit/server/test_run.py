"""Before the server listens, and how it ends before it was ready."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

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


def test_an_end_before_the_server_was_ready_is_not_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice is for balancers, and none sends requests here yet."""
    notices: list[float] = []

    class Signals:
        by_hand = False

        def __init__(self) -> None:
            self.first = asyncio.Event()
            self.first.set()

    class Listener:
        origin = "http://127.0.0.1:1"
        app = create_app(Options(models=()), settings=Settings(tmp_path, tmp_path))

        async def open(self) -> None: ...

        async def drain(self, *, notice: float) -> None:
            notices.append(notice)

    async def never(self: object) -> None:
        await asyncio.Event().wait()

    async def at_once(self: object) -> None: ...

    monkeypatch.setattr(run, "_Signals", Signals)
    server = type(Listener.app.server)
    monkeypatch.setattr(server, "start", never)
    asyncio.run(run._until_a_signal(Listener(), None))  # type: ignore[arg-type]  # as much as it uses
    monkeypatch.setattr(server, "start", at_once)
    asyncio.run(run._until_a_signal(Listener(), None))  # type: ignore[arg-type]  # as much as it uses
    assert notices == [0.0, 5.0]
