"""A local model talks to nobody and writes nowhere but into our own folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SRC = Path(__file__).parents[4] / "src"

WATCHED = """
import sys
seen = []
def watch(event, args):
    processes = ("subprocess.", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.system")
    if event.startswith(("socket.", *processes)):
        seen.append(event)
sys.addaudithook(watch)
import asyncio, json
from vecmill.core.config import load_settings
from vecmill.core.types import InputType
from vecmill.models.local.provider import load
provider = load("all-MiniLM-L6-v2", settings=load_settings())
encoded = provider.encode(["the mill turns"], input_type=InputType.DOCUMENT)
loop = asyncio.new_event_loop()
own = len(seen)  # the event loop itself opens a pair of sockets to wake itself
reply = loop.run_until_complete(provider.embed(encoded))
modules = [name for name in ("openvino_telemetry", "torch", "requests", "urllib3") if sys.modules.get(name)]
print(json.dumps({"seen": seen[own:], "early": seen[:own], "modules": modules, "shape": reply.vectors.shape}))
"""


def run(tmp_path: Path, code: str) -> dict[str, Any]:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **kept,
            "HOME": str(home),
            "USERPROFILE": str(home),
            "TMPDIR": str(tmp_path / "home"),
            "VECMILL_HOME": str(tmp_path / "state"),
            "VECMILL_CACHE_DIR": str(cache),
            "PYTHONPATH": str(SRC),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["stderr"] = done.stderr
    return found


def test_no_socket_is_opened_and_nothing_written_outside(tmp_path: Path) -> None:
    found = run(tmp_path, WATCHED)
    assert found["shape"] == [1, 384]
    assert found["seen"] == []
    assert all(event in ("socket.__new__", "socket.bind", "socket.getsockname") for event in found["early"])
    assert len([event for event in found["early"] if event == "socket.__new__"]) <= 2
    assert found["modules"] == []
    assert found["stderr"] == ""
    assert list((tmp_path / "home").rglob("*")) == []
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"cache"}


def test_opening_a_model_loads_no_inference_library(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        "import sys, json\n"
        "from vecmill.core.config import load_settings\n"
        "from vecmill.models.local.provider import load\n"
        "load('all-MiniLM-L6-v2', settings=load_settings())\n"
        "print(json.dumps({'loaded': 'openvino' in sys.modules}))",
    )
    assert found["loaded"] is False
