"""Virtual time jumps when nothing else is to be done, and only then."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import threading

import aiohttp
import pytest
from aiohttp import web

from vecmill.testing import clock
from vecmill.testing.clock import START, VirtualLoop, run_virtual


def test_hours_pass_in_a_moment() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(1000):
            await asyncio.sleep(3600)
        return loop.time(), loop.now()

    assert run_virtual(main()) == (3_600_000.0, START + 3_600_000.0)


def test_wall_clock_begins_where_told() -> None:
    async def main() -> float:
        await asyncio.sleep(5)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.now()

    assert run_virtual(main(), start=1_000.0) == 1_005.0


def test_timers_fire_in_their_order_at_their_moment() -> None:
    seen: list[tuple[float, float]] = []

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(*(wait(seconds) for seconds in (7.25, 0.001, 86_400 * 3, 60, 0.5, 59.999)))

    run_virtual(main())
    assert [wanted for wanted, _ in seen] == [0.001, 0.5, 7.25, 59.999, 60, 86_400 * 3]
    assert [moment for _, moment in seen] == pytest.approx([wanted for wanted, _ in seen], abs=1e-9)


def test_timeouts_are_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 600.0


def work() -> None:
    """Take some real time, without the interpreter's lock."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)


def test_work_in_a_thread_holds_the_time() -> None:
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        timer = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.to_thread(work)
        after_work = loop.time()
        await timer
        return after_work, loop.time()

    assert run_virtual(main()) == (0.0, 3600.0)


def test_what_arrives_in_the_moment_before_a_jump_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_GRACE_MOST", 60.0)

    async def main() -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            timer = asyncio.create_task(asyncio.sleep(60_000))
            thread = threading.Thread(target=lambda: (work(), theirs.sendall(b"here")))
            thread.start()  # not through the loop: nothing holds the time but the moment of grace
            received = await loop.sock_recv(ours, 10)
            thread.join()
            timer.cancel()
        return received, loop.time()

    assert run_virtual(main()) == (b"here", 0.0)


def test_a_failed_thread_lets_time_go_on() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def main() -> float:
        with pytest.raises(ValueError, match="no"):
            await asyncio.to_thread(fail)
        await asyncio.sleep(10)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 10.0


def test_without_a_timer_the_loop_waits_for_other_threads() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(future.set_result, "here"))
        thread.start()
        result = await future
        thread.join()
        return result

    assert run_virtual(main()) == "here"


def test_what_is_left_behind_is_cancelled() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("cancelled")

    async def main() -> None:
        asyncio.create_task(forever())  # noqa: RUF006 - left behind on purpose
        await asyncio.sleep(1)

    run_virtual(main())
    assert ended == ["cancelled"]


async def _conversation() -> list[tuple[str, float]]:
    """Ask a slow server twice, once patiently and once not; tell what happened when."""
    loop = asyncio.get_running_loop()
    log: list[tuple[str, float]] = []

    async def slow(request: web.Request) -> web.Response:
        log.append(("asked", loop.time()))
        await asyncio.sleep(30)
        return web.Response(body=b"x" * 300_000)

    app = web.Application()
    app.router.add_get("/", slow)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        for total in (60, 20):
            timeout = aiohttp.ClientTimeout(total=total)
            try:
                async with session.get(f"http://127.0.0.1:{port}/", timeout=timeout) as reply:
                    log.append((f"{len(await reply.read())} bytes", loop.time()))
            except TimeoutError:
                log.append(("timeout", loop.time()))
    await runner.cleanup()
    return log


def test_http_over_loopback_runs_on_virtual_time_the_same_every_time() -> None:
    wanted = [("asked", 0.0), ("300000 bytes", 30.0), ("asked", 30.0), ("timeout", 50.0)]
    runs = [run_virtual(_conversation()) for _ in range(50)]
    gc.collect()  # a connection left open would warn here
    assert runs == [wanted] * 50
