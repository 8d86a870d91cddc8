"""The client of the Batch API: one request a call, refusals by kind, Azure's addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from vecmill.core.errors import (
    AuthenticationError,
    BadReplyError,
    InputError,
    ProviderError,
    RefusedError,
    UnavailableError,
)
from vecmill.core.http import Response, Session
from vecmill.models.hosted.batches import BatchClient, BatchModel
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.provider import HostedProvider
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider
from vecmill.testing.scenarios import TINY_MODELS, Scenario
from vecmill.testing.simulator import Simulator
from vecmill.testing.simulator_batches import BatchFault, BatchRules, BatchService

MODEL = "text-embedding-3-small"
RULES = BatchRules(validating_seconds=2, seconds_per_line=1, finalizing_seconds=1)


def connection(simulator: Simulator, *, azure: bool = False, **changes: Any) -> Connection:
    async def login() -> dict[str, str]:
        return {"Authorization": f"Bearer {simulator.key}"}

    base, query = simulator.url, ""
    if azure:
        base, query = f"{simulator.azure_url}/openai", "?api-version=2024-10-21"
    made = Connection(
        provider="azure" if azure else "openai",
        name=f"openai:{MODEL}",
        model=MODEL,
        embeddings_url=f"{base}/embeddings{query}",
        login=login,
        facts=Facts(catalogue_name=MODEL, dimensions=8, mrl=True),
        files_url=f"{base}/files{query}",
        batches_url=f"{base}/batches{query}",
        batch_path="/embeddings" if azure else "/v1/embeddings",
        vouched=True,
    )
    return replace(made, **changes)


def served(
    test: Callable[[BatchClient, BatchService, Simulator], Awaitable[None]],
    rules: BatchRules = RULES,
    *,
    azure: bool = False,
    **changes: Any,
) -> None:
    async def run() -> None:
        async with Simulator(Scenario(models=TINY_MODELS), batch_rules=rules) as simulator:
            session = Session()
            client = BatchClient(connection(simulator, azure=azure, **changes), session)
            try:
                assert simulator.batches is not None
                await test(client, simulator.batches, simulator)
            finally:
                await session.close()

    run_virtual(run())


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """A file of three lines."""
    path = tmp_path / "in.jsonl"
    lines = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": [f"text {number}"]},
        }
        for number in range(3)
    ]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("azure", [False, True])
def test_a_file_becomes_a_batch_becomes_a_file(requests: Path, tmp_path: Path, azure: bool) -> None:
    if azure:
        requests.write_bytes(requests.read_bytes().replace(b"/v1/embeddings", b"/embeddings"))

    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        file_id = await client.upload(requests, filename="mine.jsonl")
        assert service.files[file_id].data == requests.read_bytes()
        assert service.files[file_id].filename == "mine.jsonl"
        assert await client.file_is_ready(file_id)
        made = await client.create(file_id, {"part": "7"})
        assert (made.state, made.has_ended, made.metadata) == ("validating", False, {"part": "7"})
        await asyncio.sleep(10)
        done = await client.status(made.id)
        assert (done.state, done.has_ended, done.total, done.completed, done.failed) == (
            "completed",
            True,
            3,
            3,
            0,
        )
        assert done.output_file is not None
        assert (done.error_file is not None) == azure
        to = tmp_path / "out.jsonl"
        await client.download(done.output_file, to)
        assert len(to.read_bytes().splitlines()) == 3
        await client.delete_file(file_id)
        await client.delete_file(file_id)  # gone already

    served(test, azure=azure)


def test_a_file_is_not_ready_before_the_provider_says_so(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        file_id = await client.upload(requests, filename="a")
        assert not await client.file_is_ready(file_id)
        await asyncio.sleep(61)
        assert await client.file_is_ready(file_id)

    served(test, replace(RULES, processing_seconds=60))


def test_an_uploaded_file_is_found_by_name_and_size(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        size = requests.stat().st_size
        assert await client.find_file("a", size) is None
        file_id = await client.upload(requests, filename="a")
        assert await client.find_file("a", size) == file_id
        assert await client.find_file("a", size + 1) is None
        assert await client.find_file("b", size) is None

    served(test)


def test_a_batch_is_found_by_its_metadata_on_any_page_but_not_a_failed_one(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        file_id = await client.upload(requests, filename="a")
        failed = await client.create("file-missing", {"job": "x", "part": "old"})
        wanted = await client.create(file_id, {"job": "x", "part": "old"})
        for number in range(120):
            await client.create(file_id, {"job": "x", "part": str(number)})
        await asyncio.sleep(5)
        assert (await client.status(failed.id)).state == "failed"
        found = await client.find({"job": "x", "part": "old"})
        assert found is not None
        assert found.id == wanted.id
        assert service.requests["list_batches"] == 2
        assert await client.find({"job": "y"}) is None

    served(test)


def test_older_batches_are_not_looked_at(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        file_id = await client.upload(requests, filename="a")
        for number in range(150):
            await client.create(file_id, {"part": str(number)})
        await asyncio.sleep(100)
        since = simulator.now()
        await client.create(file_id, {"part": "new"})
        assert await client.find({"part": "0"}, since=since) is None
        assert service.requests["list_batches"] == 1

    served(test)


def test_a_cancelled_batch_is_told(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        made = await client.create(await client.upload(requests, filename="a"), {})
        assert (await client.cancel(made.id)).state == "cancelling"
        await asyncio.sleep(61)
        assert (await client.status(made.id)).state == "cancelled"

    served(test)


def test_errors_of_a_failed_batch_have_code_line_and_parameter() -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        made = await client.create("file-none", {})
        await asyncio.sleep(3)
        error = (await client.status(made.id)).errors[0]
        assert (error.code, error.line, error.param) == ("invalid_request", None, "file_id")
        assert "Cannot find file" in error.message

    served(test)


def test_an_unknown_batch_or_file_is_refused_with_404(tmp_path: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        for call in (client.status("batch_x"), client.download("file-x", tmp_path / "x")):
            with pytest.raises(ProviderError) as caught:
                await call
            assert (caught.value.status, caught.value.retryable) == (404, False)
        assert not (tmp_path / "x").exists()

    served(test)


def test_a_wrong_key_is_an_authentication_error_that_does_not_show_it() -> None:
    async def wrong() -> dict[str, str]:
        return {"Authorization": "Bearer sk-planted-0000000000000001"}

    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        with pytest.raises(AuthenticationError) as caught:
            await client.status("batch_x")
        assert "planted" not in str(caught.value)

    served(test, login=wrong)


def test_a_lost_acknowledgement_is_unavailable_and_sent_once(requests: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        file_id = await client.upload(requests, filename="a")
        with pytest.raises(UnavailableError):
            await client.create(file_id, {"part": "1"})
        assert len(service.batches) == 1
        found = await client.find({"part": "1"})
        assert found is not None

    served(test, replace(RULES, faults=(BatchFault("create_lost", at=0),)))


def test_a_download_that_breaks_leaves_no_file(requests: Path, tmp_path: Path) -> None:
    async def test(client: BatchClient, service: BatchService, simulator: Simulator) -> None:
        made = await client.create(await client.upload(requests, filename="a"), {})
        await asyncio.sleep(10)
        output = (await client.status(made.id)).output_file
        assert output is not None
        with pytest.raises(UnavailableError):
            await client.download(output, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    served(test, replace(RULES, faults=(BatchFault("download_reset", at=0),)))


@pytest.mark.parametrize("missing", ["files_url", "batches_url"])
def test_a_connection_without_batches_is_refused_with_the_cure(missing: str) -> None:
    async def login() -> dict[str, str]:
        return {}

    made = Connection("github", "github:openai/x", "openai/x", "http://localhost/embeddings", login)
    made = replace(made, files_url="http://localhost/f", batches_url="http://localhost/b")
    with pytest.raises(InputError, match="github:openai/x has no Batch API"):
        BatchClient(replace(made, **{missing: None}), Session())


def test_a_line_names_the_deployment_even_where_requests_do_not() -> None:
    async def run() -> None:
        async with Simulator(Scenario(models=TINY_MODELS)) as simulator:
            made = connection(simulator, azure=True, model="reviews", sends_model=False)
            model = BatchModel.of(HostedProvider(made, session=Session()))
            body = orjson.loads(model.body(["a", "b"]))
            assert body == {"model": "reviews", "input": ["a", "b"], "encoding_format": "base64"}
            assert orjson.loads(model.body(["a"], variant="reviews-query"))["model"] == "reviews-query"
            assert model.path == "/embeddings"

    run_virtual(run())


def test_a_reply_is_checked_as_an_ordinary_one() -> None:
    async def run() -> None:
        async with Simulator(Scenario(models=TINY_MODELS)) as simulator:
            model = BatchModel.of(HostedProvider(connection(simulator), session=Session()))
            _, good, tokens = simulator.answer(MODEL, ["a", "b"], base64=True)
            assert model.reply(good, 2).tokens == tokens
            assert (model.reply(good, 2).vectors == simulator.vectors(["a", "b"], MODEL)).all()
            for wrong in ({"error": {"message": "no"}}, None, {**good, "data": good["data"][:1]}):
                with pytest.raises(BadReplyError):
                    model.reply(wrong, 2)
            with pytest.raises(RefusedError, match="ada-002"):
                model.reply({**good, "model": "text-embedding-ada-002"}, 2)

    run_virtual(run())


def test_a_provider_of_another_kind_has_no_batches() -> None:
    fake: Any = FakeProvider()
    with pytest.raises(InputError, match="fake:hash has no Batch API"):
        BatchModel.of(fake)


# Replies nobody should give.


def asked(reply: Any, call: Callable[[BatchClient], Awaitable[Any]]) -> Any:
    """Return what a call makes of a reply."""

    class Stub(Session):
        async def request(self, *arguments: Any, **options: Any) -> Response:
            return Response(200, {}, orjson.dumps(reply))

    async def login() -> dict[str, str]:
        return {}

    made = Connection("openai", "openai:m", "m", "https://h/v1/embeddings", login)
    made = replace(made, files_url="https://h/v1/files", batches_url="https://h/v1/batches")

    async def run() -> Any:
        return await call(BatchClient(made, Stub()))

    return asyncio.run(run())


GOOD = {"id": "batch_1", "status": "in_progress"}


@pytest.mark.parametrize("odd", [[], "x", 5, {"data": "x"}, {"data": [None, 3, {"code": 7, "line": "1"}]}])
def test_odd_kinds_in_a_batch_are_left_out(odd: Any) -> None:
    reply = {**GOOD, "errors": odd, "request_counts": odd, "metadata": odd, "created_at": "x"}
    status = asked(reply, lambda client: client.status("batch_1"))
    assert (status.state, status.total, status.completed, status.created) == ("in_progress", 0, 0, None)
    assert {(error.code, error.message, error.line) for error in status.errors} <= {("", "", None)}
    assert isinstance(status.metadata, dict)


def test_odd_numbers_of_lines_are_none() -> None:
    reply = {**GOOD, "request_counts": {"total": "abc", "completed": -1, "failed": 1.5}}
    status = asked(reply, lambda client: client.status("batch_1"))
    assert (status.total, status.completed, status.failed) == (0, 0, 0)


@pytest.mark.parametrize("odd", ["..", ".", "a/b", "a b", "a?b", "x" * 300, 5, ["f"], {"id": "f"}])
@pytest.mark.parametrize("name", ["id", "output_file_id", "error_file_id"])
def test_what_is_no_id_gets_into_no_address(name: str, odd: Any) -> None:
    with pytest.raises(BadReplyError) as caught:
        asked({**GOOD, name: odd}, lambda client: client.status("batch_1"))
    assert caught.value.retryable


def test_a_file_without_an_id_is_a_wrong_reply() -> None:
    with pytest.raises(BadReplyError):
        asked({"data": [{"filename": "f", "bytes": 1}]}, lambda client: client.find_file("f", 1))
    with pytest.raises(BadReplyError):
        asked({"id": ".."}, lambda client: client.find_file("f", 1))


def test_a_file_of_an_odd_status_is_no_crash() -> None:
    assert asked({"id": "f", "status": ["x"]}, lambda client: client.file_is_ready("f"))
