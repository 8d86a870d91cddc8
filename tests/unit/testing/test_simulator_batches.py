"""The simulated Files and Batches API says what the real ones were seen to say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest

from vecmill.testing.clock import run_virtual
from vecmill.testing.scenarios import TINY_MODELS, Scenario
from vecmill.testing.simulator import Simulator
from vecmill.testing.simulator_batches import BatchFault, BatchRules, BatchService

MODEL = "text-embedding-3-small"
RULES = BatchRules(validating_seconds=20, seconds_per_line=10, finalizing_seconds=5)


def lines(count: int, *, url: str = "/v1/embeddings", texts: int = 2) -> bytes:
    """Return an input file of so many lines."""
    return b"".join(
        orjson.dumps(
            {
                "custom_id": f"line {number}",
                "method": "POST",
                "url": url,
                "body": {"model": MODEL, "input": [f"text {number} {at}" for at in range(texts)]},
            }
        )
        + b"\n"
        for number in range(count)
    )


class Client:
    """Asks the simulator as any HTTP client would."""

    def __init__(self, session: aiohttp.ClientSession, simulator: Simulator, base: str, query: str) -> None:
        self.session, self.simulator, self.base, self.query = session, simulator, base, query

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.simulator.key}"}
        url = f"{self.simulator.azure_url}{self.base}/{path}{'&' if '?' in path else '?'}{self.query}"
        async with self.session.request(method, url, headers=headers, **options) as reply:
            raw = await reply.read()
            return reply.status, orjson.loads(
                raw
            ) if raw and reply.content_type == "application/json" else raw

    async def upload(self, data: bytes) -> dict[str, Any]:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", data, filename="in.jsonl")
        status, reply = await self.ask("POST", "files", data=form)
        assert status == 200, reply
        return dict(reply)

    async def create(self, file_id: str, **changes: Any) -> tuple[int, Any]:
        body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **changes}
        return await self.ask("POST", "batches", json=body)

    async def batch(self, data: bytes, **changes: Any) -> str:
        status, reply = await self.create((await self.upload(data))["id"], **changes)
        assert status == 200, reply
        return str(reply["id"])

    async def show(self, batch_id: str) -> dict[str, Any]:
        return dict((await self.ask("GET", f"batches/{batch_id}"))[1])

    async def content(self, file_id: str) -> list[dict[str, Any]]:
        _, raw = await self.ask("GET", f"files/{file_id}/content")
        return [orjson.loads(line) for line in raw.splitlines()]


def served(
    test: Callable[[Client, BatchService], Awaitable[None]],
    rules: BatchRules = RULES,
    base: str = "/v1",
    query: str = "",
) -> None:
    """Run a test against a simulator, on virtual time."""

    async def run() -> None:
        scenario = Scenario(models=TINY_MODELS)
        async with Simulator(scenario, batch_rules=rules) as simulator:
            connector = aiohttp.TCPConnector(force_close=True)  # connections that are kept tick, for hours
            async with aiohttp.ClientSession(connector=connector) as session:
                assert simulator.batches is not None
                await test(Client(session, simulator, base, query), simulator.batches)

    run_virtual(run())


def test_a_batch_goes_through_its_states_and_answers_every_line_once() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(3), metadata={"job": "a"})
        seen = [(await client.show(batch))["status"]]
        for seconds in (25, 28, 6):
            await asyncio.sleep(seconds)
            seen.append((await client.show(batch))["status"])
        assert seen == ["validating", "in_progress", "finalizing", "completed"]
        shown = await client.show(batch)
        assert shown["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert shown["error_file_id"] is None
        assert shown["metadata"] == {"job": "a"}
        found = await client.content(shown["output_file_id"])
        assert sorted(line["custom_id"] for line in found) == ["line 0", "line 1", "line 2"]
        assert [line["response"]["body"]["data"][1]["index"] for line in found] == [1, 1, 1]
        assert set(service.computed.values()) == {1}
        assert client.simulator.billed_usd == pytest.approx(client.simulator.billed_tokens * 0.01 / 1e6)

    served(test)


def test_the_order_of_the_output_is_not_that_of_the_input() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(20))
        await asyncio.sleep(3600)
        found = await client.content((await client.show(batch))["output_file_id"])
        ids = [line["custom_id"] for line in found]
        assert ids != sorted(ids, key=lambda name: int(name.split()[1]))
        assert len(set(ids)) == 20

    served(test)


def test_an_expired_batch_keeps_the_half_it_finished() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(4))
        await asyncio.sleep(86_000)
        assert (await client.show(batch))["status"] == "in_progress"
        await asyncio.sleep(500)
        shown = await client.show(batch)
        assert shown["status"] == "expired"
        assert len(await client.content(shown["output_file_id"])) == 2
        left = await client.content(shown["error_file_id"])
        assert [line["error"]["code"] for line in left] == ["batch_expired", "batch_expired"]
        assert len(service.computed) == 4  # texts of two lines

    served(test, replace(RULES, faults=(BatchFault("expire"),)))


def test_a_cancelled_batch_keeps_what_was_done_until_then() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(4))
        await asyncio.sleep(45)
        assert (await client.ask("POST", f"batches/{batch}/cancel"))[1]["status"] == "cancelling"
        await asyncio.sleep(60)
        shown = await client.show(batch)
        assert shown["status"] == "cancelled"
        assert len(await client.content(shown["output_file_id"])) == 2
        assert (await client.ask("POST", f"batches/{batch}/cancel"))[0] == 200

    served(test)


def test_a_completed_batch_cannot_be_cancelled() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(1))
        await asyncio.sleep(3600)
        status, reply = await client.ask("POST", f"batches/{batch}/cancel")
        assert status == 409
        assert "Cannot cancel a batch with status 'completed'." in reply["error"]["message"]

    served(test)


def test_a_batch_of_failed_lines_only_has_no_output_file() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(2))
        await asyncio.sleep(3600)
        shown = await client.show(batch)
        assert (shown["status"], shown["output_file_id"]) == ("completed", None)
        assert shown["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
        found = await client.content(shown["error_file_id"])
        assert [line["response"]["status_code"] for line in found] == [429, 429]
        assert not service.computed

    served(test, replace(RULES, faults=(BatchFault("line"),)))


def test_azure_gives_an_empty_error_file_instead_of_none() -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(2, url="/embeddings"), endpoint="/embeddings")
        await asyncio.sleep(3600)
        shown = await client.show(batch)
        assert await client.content(shown["error_file_id"]) == []
        assert len(await client.content(shown["output_file_id"])) == 2

    served(test, base="/openai", query="api-version=2024-10-21")


@pytest.mark.parametrize(
    ("base", "query", "code"), [("/v1", "", "invalid_url"), ("/openai/v1", "", "url_mismatch")]
)
def test_a_line_for_another_address_fails_the_batch(base: str, query: str, code: str) -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(lines(2, url="/v1/completions"))
        await asyncio.sleep(30)
        shown = await client.show(batch)
        assert shown["status"] == "failed"
        assert [(error["code"], error["line"]) for error in shown["errors"]["data"]] == [(code, 1), (code, 2)]

    served(test, base=base, query=query)


@pytest.mark.parametrize(
    ("data", "code", "line"),
    [
        (b"\xef\xbb\xbf" + lines(1), "invalid_json_line", 1),
        (lines(1) + b"{oops\n", "invalid_json_line", 2),
        (lines(1) * 2, "duplicate_custom_id", 2),
        (b"", "empty_file", None),
        (b'{"custom_id":"a","method":"POST","url":"/v1/embeddings"}\n', "missing_required_parameter", 1),
        (lines(4), "too_many_tasks", None),
    ],
)
def test_a_file_that_cannot_be_used_fails_with_the_line(data: bytes, code: str, line: int | None) -> None:
    async def test(client: Client, service: BatchService) -> None:
        batch = await client.batch(data)
        await asyncio.sleep(30)
        error = (await client.show(batch))["errors"]["data"][0]
        assert (error["code"], error["line"]) == (code, line)
        assert not service.computed

    served(test, replace(RULES, max_inputs=7))


def test_a_batch_of_an_unknown_file_is_made_and_fails() -> None:
    async def test(client: Client, service: BatchService) -> None:
        status, made = await client.create("file-nothing")
        assert status == 200
        await asyncio.sleep(30)
        error = (await client.show(made["id"]))["errors"]["data"][0]
        assert (error["code"], error["param"]) == ("invalid_request", "file_id")

    served(test)


def test_enqueued_tokens_are_limited_over_all_batches_until_one_is_done() -> None:
    async def test(client: Client, service: BatchService) -> None:
        first, second = await client.batch(lines(2)), await client.batch(lines(2))
        await asyncio.sleep(30)
        shown = await client.show(second)
        assert shown["errors"]["data"][0]["code"] == "token_limit_exceeded"
        assert "Limit: 30 enqueued tokens" in shown["errors"]["data"][0]["message"]
        await asyncio.sleep(3600)
        assert (await client.show(first))["status"] == "completed"
        third = await client.batch(lines(2))
        await asyncio.sleep(30)
        assert (await client.show(third))["status"] == "in_progress"

    served(test, replace(RULES, enqueued_tokens=30))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/x"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"tags": ["a"]}}, "metadata.tags"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    async def test(client: Client, service: BatchService) -> None:
        status, reply = await client.create("file-1", **changes)
        assert (status, reply["error"]["param"]) == (400, param)

    served(test)


def test_batches_are_listed_newest_first_in_pages() -> None:
    async def test(client: Client, service: BatchService) -> None:
        made = [await client.batch(lines(1)) for _ in range(5)]
        _, page = await client.ask("GET", "batches?limit=2")
        assert ([item["id"] for item in page["data"]], page["has_more"]) == ([made[4], made[3]], True)
        _, page = await client.ask("GET", f"batches?limit=3&after={made[3]}")
        assert ([item["id"] for item in page["data"]], page["has_more"]) == (made[2::-1], False)
        assert (await client.ask("GET", "batches?limit=101"))[0] == 400

    served(test)


def test_a_deleted_file_is_gone() -> None:
    async def test(client: Client, service: BatchService) -> None:
        stored = await client.upload(lines(1))
        assert (await client.ask("GET", "files?purpose=batch"))[1]["data"][0]["id"] == stored["id"]
        status, reply = await client.ask("DELETE", f"files/{stored['id']}")
        assert (status, reply["deleted"]) == (200, True)
        assert (await client.ask("DELETE", f"files/{stored['id']}"))[0] == 404
        assert (await client.ask("GET", f"files/{stored['id']}"))[0] == 404

    served(test)


@pytest.mark.parametrize("path", ["files", "batches", "batches/batch_1"])
def test_nothing_is_shown_without_a_key(path: str) -> None:
    async def test(client: Client, service: BatchService) -> None:
        async with client.session.get(f"{client.simulator.url}/{path}") as reply:
            assert reply.status == 401

    served(test)


def test_azures_classic_door_needs_an_api_version() -> None:
    async def test(client: Client, service: BatchService) -> None:
        assert (await client.ask("GET", "files"))[0] == 404

    served(test, base="/openai")


@pytest.mark.parametrize(("kind", "stored"), [("upload_reset", 0), ("upload_lost", 1)])
def test_an_upload_can_break_before_or_after_it_is_kept(kind: Any, stored: int) -> None:
    async def test(client: Client, service: BatchService) -> None:
        with pytest.raises(aiohttp.ClientError):
            await client.upload(lines(1))
        assert len(service.files) == stored
        await client.upload(lines(1))

    served(test, replace(RULES, faults=(BatchFault(kind, at=0),)))
