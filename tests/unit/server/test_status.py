"""Status, reload, liveness and readiness: what orchestrators and OpenVINO Model Server's clients ask for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from vecmill.core.config import Settings
from vecmill.server.access import Right
from vecmill.server.app import App, create_app
from vecmill.server.options import ModelSource, Options
from vecmill.server.routes.table import ROUTES

MODELS = Path(__file__).parents[2] / "data" / "models"

pytestmark = pytest.mark.asyncio


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vecmill.server.repository.QUIET_SECONDS", 0.0)
    shutil.copytree(MODELS / "bert-mean", tmp_path / "models" / "org" / "m" / "1")
    return tmp_path / "models"


@pytest.fixture
def app(root: Path, tmp_path: Path) -> App:
    options = Options(models=(ModelSource("own", "minilm"),), repository=root, poll_seconds=0)
    return create_app(options, settings=Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache"))


def client(app: App) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def started(app: App) -> None:
    await app.server.start()
    while app.server.models.trouble():
        await asyncio.sleep(0.01)


def available(version: str) -> dict[str, Any]:
    status = {"error_code": "OK", "error_message": "OK"}
    return {"version": version, "state": "AVAILABLE", "status": status}


async def test_the_status_has_the_shape_of_openvino_model_server(app: App) -> None:
    await started(app)
    async with client(app) as asking:
        found = (await asking.get("/v1/config")).json()
    assert found == {
        "org/m": {"model_version_status": [available("1")]},
        "own": {"model_version_status": [available("1")]},
    }
    await app.server.close()


async def test_reload_says_201_when_something_changed_and_200_when_not(app: App, root: Path) -> None:
    await started(app)
    async with client(app) as asking:
        assert (await asking.post("/v1/config/reload")).status_code == 200
        shutil.copytree(MODELS / "bert-prompts", root / "org" / "m" / "2")
        reply = await asking.post("/v1/config/reload")
        assert reply.status_code == 201
        assert reply.json()["org/m"]["model_version_status"][-1] == available("2")
        (root / "org" / "m" / "3").mkdir()
        (root / "org" / "m" / "3" / "config.json").write_text("{")
        reply = await asking.post("/v1/config/reload")
        assert reply.status_code == 200
        bad = reply.json()["org/m"]["model_version_status"][-1]
        assert (bad["version"], bad["state"], bad["status"]["error_code"]) == ("3", "LOADING", "UNKNOWN")
        assert "holds no weights" in bad["status"]["error_message"]
    await app.server.close()


async def test_before_its_models_are_there_it_is_live_and_not_ready(app: App) -> None:
    async with client(app) as asking:
        for path in ("/v2/health/live", "/healthz"):
            assert (await asking.get(path)).status_code == 200
        for path in ("/v2/health/ready", "/readyz"):
            reply = await asking.get(path)
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "not_ready"
            assert "loaded" in reply.json()["error"]["message"]
        await started(app)
        assert (await asking.get("/readyz")).json() == {"status": "ready"}
        app.server.draining = True
        assert (await asking.get("/readyz")).json()["error"]["code"] == "shutting_down"
        assert (await asking.get("/healthz")).status_code == 200
    await app.server.close()


async def test_a_dead_engine_is_not_ready_however_alive_the_process_is(app: App) -> None:
    await started(app)
    async with app.server.models.lease("own") as served:
        served.provider._engine.close()  # type: ignore[attr-defined]  # what a crash leaves behind

        def gone(*_: Any, **__: Any) -> Any:
            raise RuntimeError("device lost")

        served.provider._engine.run = gone  # type: ignore[attr-defined]
    async with client(app) as asking:
        body = {"model": "own", "input": "a"}
        assert (await asking.post("/v1/embeddings", json=body)).status_code == 500
        reply = await asking.get("/v2/health/ready")
        assert reply.status_code == 503
        assert reply.json()["error"]["message"] == "model own does not compute: RuntimeError"
        assert (await asking.get("/v2/models/own/ready")).status_code == 503
        assert (await asking.get("/v2/models/org/m/ready")).status_code == 200
        assert (await asking.get("/v2/models/nobody/ready")).status_code == 404
        assert (await asking.get("/v2/health/live")).status_code == 200
    await app.server.close()


async def test_only_liveness_is_open_and_only_administrators_reload() -> None:
    rights = {route.name: route.right for route in ROUTES}
    assert rights["live"] is Right.OPEN
    assert rights["reload"] is Right.ADMIN
    assert {rights[name] for name in ("config", "ready", "model_ready")} == {Right.READ}
    assert [name for name, right in rights.items() if right is Right.OPEN] == ["live"]
