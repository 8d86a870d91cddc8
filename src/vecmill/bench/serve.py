"""Load a server of embeddings and measure it: `vecmill bench serve`.

It drives whatever speaks OpenAI's `/embeddings` (this package's server, OpenVINO Model Server, infinity,
vLLM, hosted ones) and text-embeddings-inference's `/embed`. Requests are made before the clock runs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from vecmill.bench import serve_texts
from vecmill.bench.report import machine_record
from vecmill.bench.serve_http import Address, Broken, Pool
from vecmill.bench.serve_load import Ask, Outcome, Run, arrivals, closed_loop, open_loop
from vecmill.bench.serve_report import Report
from vecmill.bench.serve_shapes import BACKENDS, OPENAI, TEI, Shape
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import BadReplyError, InputError, ProviderError, UnavailableError
from vecmill.core.secrets import Secret

_DETAIL = 200
"""Characters of a server's message that are shown."""


@dataclass(frozen=True, slots=True)
class Load:
    """How a server is loaded. Times are seconds.

    Attributes:
        api_url: Where requests are posted; None: where such a server listens by default.
        backend: A name of `serve_shapes.BACKENDS`. model: as the server calls it; "" asks it which it has.
        encoding: "base64" or "float".
        dataset, synthetic_length, distinct, limit, column, tokenizer: See `serve_texts.read`.
        batch_size: Documents of a request.
        rate: Requests a second in the open loop; infinite: all at once.
        concurrency: Clients of the closed loop; None: open loop.
        duration: Requests are begun for so long, the documents repeating; None: every document once.
        warmup: Requests sent before, one after the other, and not counted.
        timeout: Of a request. deadline: after which an answer is worth nothing; told to the server.
        connections: Kept at once; a request beyond waits, and its latency counts that.
        seed: Of the times.
        api_key: Sent as a bearer token.
    """

    api_url: str | None = None
    backend: str = OPENAI
    model: str = ""
    encoding: str = "base64"
    dataset: str = serve_texts.SYNTHETIC
    synthetic_length: int = 510
    distinct: bool = False
    limit: int = 1000
    column: str | None = None
    tokenizer: str | None = None
    batch_size: int = 16
    rate: float = math.inf
    concurrency: int | None = None
    duration: float | None = None
    warmup: int = 4
    timeout: float = 120.0
    deadline: float | None = None
    connections: int | None = None
    seed: int = 0
    api_key: Secret | None = None

    def __post_init__(self) -> None:
        small = {"batch_size": self.batch_size, "concurrency": self.concurrency, "limit": self.limit}
        for name, value in {**small, "connections": self.connections}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        for name, seconds in {"timeout": self.timeout, "duration": self.duration}.items():
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0.0):
                raise InputError(f"{name} is {seconds}: it must be a number of seconds above 0")
        if not self.rate > 0.0:
            raise InputError(f"the rate {self.rate} sends nothing: give requests a second above 0, or inf")
        if self.concurrency is not None and math.isfinite(self.rate):
            raise InputError(
                "a rate and a concurrency are both given: in the open loop (a rate) requests leave at their "
                "times, in the closed loop (a concurrency) when the last one was answered; choose one"
            )
        if self.concurrency is None and self.duration is not None and math.isinf(self.rate):
            raise InputError("a duration needs a rate or a concurrency: all at once lasts as long as it does")

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return self.api_url or BACKENDS[self.backend]


def run_serve(
    load: Load,
    *,
    settings: Settings | None = None,
    command: str = "vecmill bench serve",
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005 - reports nothing
) -> Report:
    """Load a server and return what it did.

    Args:
        load: What is sent, where, how fast.
        settings: None reads environment and `vecmill.toml`.
        command: Recorded in the result.
        say: Called with a line of progress now and then.

    Raises:
        InputError: The data, the address or a number is wrong.
        ProviderError: The server cannot be reached, or no request of the warm-up was answered.
    """
    with asyncio.Runner() as runner:
        return runner.run(serve_load(load, settings=settings, command=command, say=say))


async def serve_load(
    load: Load,
    *,
    settings: Settings | None = None,
    command: str = "vecmill bench serve",
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005 - reports nothing
) -> Report:
    """Do what `run_serve` does, on the running loop."""
    settings = settings or load_settings()
    pool = Pool(
        Address.of(load.url),
        _headers(load),
        load.connections or max(load.concurrency or 0, 100),
        load.timeout,
        None if settings.ca_file is None else str(settings.ca_file),
    )
    model = load.model or await _model_of(load, settings)
    data = serve_texts.read(
        load.dataset,
        synthetic_length=load.synthetic_length,
        distinct=load.distinct,
        limit=load.limit,
        column=load.column,
        tokenizer=load.tokenizer,
        model=model,
        settings=settings,
    )
    if repeated := _repeated(load, data):
        say(repeated)
    shape = Shape(load.backend, model, load.encoding)
    pieces = range(0, len(data.texts), load.batch_size)
    groups = [data.texts[at : at + load.batch_size] for at in pieces]
    tokens = [int(data.tokens[at : at + load.batch_size].sum()) for at in pieces]
    requests = [pool.prepare(shape.body(texts)) for texts in groups]
    sizes = [len(texts) for texts in groups]
    ask = asking(pool, shape, requests, sizes)
    try:
        await _warm_up(ask, load, len(requests))
        opened, pool.waited = pool.opened, 0
        say(f"{len(requests)} requests of up to {load.batch_size} texts to {_shown(load.url)}")
        run = await _run(ask, load, len(requests))
    finally:
        await pool.close()
    return Report(
        command,
        _settings(load, model),
        {
            "source": data.source,
            "documents": len(data.texts),
            "different": data.different,
            "tokens": int(data.tokens.sum()),
            "tokenizer": data.tokenizer,
        },
        machine_record(),
        run,
        sizes,
        tokens,
        len(data.texts),
        max(pool.opened, opened),
        pool.waited,
        load.deadline,
        _notes(load, pool, run),
    )


def asking(pool: Pool, shape: Shape, requests: list[bytes], sizes: list[int]) -> Ask:
    """Return what sends one of these prepared requests and says what became of it."""

    async def ask(at: int) -> Outcome:
        try:
            answer = await pool.send(requests[at])
        except Broken as broken:
            return Outcome(broken.why)
        if answer.status != 200:
            return Outcome(answer.status, detail=_detail(answer.body))
        try:
            read = shape.read(answer.body, answer.headers, sizes[at])
        except BadReplyError as error:
            return Outcome("bad_reply", detail=str(error))
        return Outcome(200, read.tokens, read.dimensions)

    return ask


async def _run(ask: Ask, load: Load, requests: int) -> Run:
    if load.concurrency is not None:
        total = None if load.duration is not None else requests
        return await closed_loop(ask, load.concurrency, requests, total=total, duration=load.duration)
    times = arrivals(
        requests if load.duration is None else math.ceil(2 * load.rate * load.duration) + 100,
        load.rate,
        seed=load.seed,
    )
    if load.duration is not None:
        times = times[times < load.duration]
    return await open_loop(ask, times, requests)


async def _warm_up(ask: Ask, load: Load, requests: int) -> None:
    """Send some requests one after the other; they are not counted.

    Raises:
        ProviderError: None of them was answered with vectors.
    """
    found = [await ask(at % requests) for at in range(load.warmup)]
    if found and not any(outcome.good for outcome in found):
        last = found[-1]
        said = f": {last.detail}" if last.detail else ""
        what = f"status {last.status}" if isinstance(last.status, int) else last.status
        advice = "see that the server runs there, and that --api_url, --model and --backend are right"
        raise ProviderError(
            f"{_shown(load.url)} answered none of the first {len(found)} requests ({what}{said}); "
            f"{_ending(load, last.status) or advice}",
            provider=load.backend,
        )


def _ending(load: Load, status: int | str) -> str:
    """Say that the address lacks what such a server's ends with, where that may be why nothing is there."""
    ending = "/embed" if load.backend == TEI else "/embeddings"
    parts = urlsplit(load.url)
    path = parts.path.rstrip("/")
    if status not in (404, 405) or path.endswith(ending):
        return ""
    meant = parts._replace(path=f"{path}{ending}", query="", fragment="").geturl()
    return f"the address does not end with {ending}, where such a server is asked: --api_url {meant}"


async def _model_of(load: Load, settings: Settings) -> str:
    """Ask a server which model it has.

    Raises:
        InputError: It does not say, or has several.
    """
    shape = Shape(load.backend, "", load.encoding)
    if not shape.asks_for_model:
        return ""
    from vecmill.core.http import Session

    parts = urlsplit(load.url)
    base = parts.path.rstrip("/").removesuffix("/embeddings")
    url = parts._replace(path=f"{base}/models", query="").geturl()
    advice = "name it by --model"
    session = Session(ca_file=settings.ca_file)
    try:
        reply = await session.request("GET", url, headers=_headers(load), timeout=load.timeout)
        names = [str(item["id"]) for item in orjson.loads(reply.body)["data"]]
    except UnavailableError as error:
        raise ProviderError(
            f"{_shown(load.url)} cannot be reached: see that the server runs there, and that --api_url is "
            f"right ({error})",
            provider=load.backend,
        ) from error
    except (ProviderError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{_shown(url)} does not say which model there is: {advice}") from error
    finally:
        await session.close()
    if len(names) != 1:
        raise InputError(f"{_shown(url)} lists {', '.join(names[:10]) or 'no model'}: {advice}")
    return names[0]


def _headers(load: Load) -> dict[str, str]:
    headers = {} if load.api_key is None else {"authorization": f"Bearer {load.api_key.reveal()}"}
    if load.deadline is not None:
        headers["x-request-timeout-ms"] = str(max(round(1000 * load.deadline), 1))
    return headers


def _settings(load: Load, model: str) -> dict[str, Any]:
    return {
        "api_url": _shown(load.url),
        "backend": load.backend,
        "model": model,
        "encoding_format": load.encoding,
        "loop": "open" if load.concurrency is None else "closed",
        "request_rate": None if math.isinf(load.rate) else load.rate,
        "concurrency": load.concurrency,
        "batch_size": load.batch_size,
        "duration": load.duration,
        "warmup": load.warmup,
        "timeout": load.timeout,
        "seed": load.seed,
    }


def _repeated(load: Load, data: serve_texts.Texts) -> str:
    """Say that equal texts flatter a server that computes them once; "" where few are, or each is alone."""
    alone = load.batch_size == 1 and load.concurrency == 1
    if alone or 2 * data.different >= len(data.texts):
        return ""
    advice = "--distinct makes them differ" if load.dataset == serve_texts.SYNTHETIC else "take another file"
    return (
        f"note: distinct texts: {data.different} of {len(data.texts)}; a server that keeps vectors, or "
        f"computes equal texts on their way once, looks faster than it is: {advice}"
    )


def _notes(load: Load, pool: Pool, run: Run) -> list[str]:
    statuses = {sample.outcome.status for sample in run.samples}
    if len(statuses) == 1 and (ending := _ending(load, *statuses)):
        return [ending]
    if load.concurrency is None and pool.waited:
        return [
            f"{pool.waited} requests waited for one of {pool.connections} connections, which their latency "
            "counts: --connections allows more"
        ]
    return []


def _detail(body: bytes) -> str:
    """Return what a server said of an error, cut; "" where it is not the known shape."""
    try:
        found = orjson.loads(body)
        error = found.get("error", found)
        message = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        return ""
    plain = "".join(sign if sign.isprintable() else " " for sign in str(message))
    return plain[:_DETAIL]


def _shown(url: str) -> str:
    """Return a URL without its query."""
    return urlsplit(url)._replace(query="", fragment="").geturl()
