"""Many large bodies at once: what a server holds of them, and who is still answered."""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import threading
from pathlib import Path

import pytest

process = runpy.run_path(str(Path(__file__).with_name("server_process.py")))
Process = process["Process"]

MIB = 1 << 20
CLIENTS, SENT, ROOM = 40, 12 * MIB, 64 * MIB


def _resident(pid: int) -> int:
    with Path(f"/proc/{pid}/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _half_a_body(port: int, sent: threading.Semaphore, end: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {16 * MIB}\r\n\r\n"
        with contextlib.suppress(OSError):  # refused while it sends
            client.sendall(head.encode() + b"[" * SENT)
        sent.release()
        end.wait(60)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_bodies_that_never_end_take_bounded_memory_and_a_small_client_is_answered() -> None:
    with Process("--limit", f"max_bodies_bytes={ROOM}", "--limit", "body_idle_seconds=60") as server:
        server.until("ready")
        one = {"model": "minilm", "input": "a small text"}
        large = {"model": "minilm", "input": ["a" * 12_000_000]}  # too large for the model too: 400
        assert server.ask("POST", "/v1/embeddings", one)[0] == 200
        before = _resident(server.running.pid)
        sent, end = threading.Semaphore(0), threading.Event()
        threads = [
            threading.Thread(target=_half_a_body, args=(server.port, sent, end)) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert sent.acquire(timeout=60)
            grown = _resident(server.running.pid) - before
            assert server.ask("POST", "/v1/embeddings", one)[0] == 200
        finally:
            end.set()
            for thread in threads:
                thread.join(60)
        assert grown < 2 * ROOM, f"{grown / MIB:.0f} MiB of {CLIENTS * SENT / MIB:.0f}"
        for _ in range(1000):  # what was held is given back once the connections have ended
            if server.ask("POST", "/v1/embeddings", large)[0] == 400:
                break
        else:
            pytest.fail("the room was not given back")
