"""Nothing leaves the machine, and nothing is written but what was asked for and our own two folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WATCHED = """
import os, sys

def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        os.write(2, f"WATCHED {event}\\n".encode())
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "urllib.Request"):
        os.write(2, f"WATCHED {event}\\n".encode())
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        os.write(2, f"WROTE {arguments[0]}\\n".encode())

sys.addaudithook(watch)
"""
DEMO = "from vecmill.cli.main import main\nmain()\n"


def watched(code: str, *arguments: str, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return subprocess.run(
        [sys.executable, "-c", WATCHED + code, *arguments],
        cwd=cwd,
        env={**own, "HOME": str(home), "TMPDIR": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_watch_notices_a_connection(tmp_path: Path) -> None:
    code = "import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))\n"
    assert "WATCHED socket.connect" in watched(code, cwd=tmp_path, home=tmp_path / "home").stderr


def test_embedding_and_searching_open_no_socket_and_write_nothing_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = watched(DEMO, "demo", "here", cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("WATCHED")] == []
    allowed = (str(tmp_path), "here", os.environ["VECMILL_HOME"], os.environ["VECMILL_CACHE_DIR"], os.devnull)
    written = [line.removeprefix("WROTE ") for line in lines if line.startswith("WROTE ")]
    assert written
    assert [path for path in written if not path.startswith(allowed) and not path.isdigit()] == []
    assert list(home.rglob("*")) == []
