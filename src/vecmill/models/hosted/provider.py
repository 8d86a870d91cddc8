"""The provider of hosted models: one request a call, its reply checked, its refusal explained.

What a model is may be known before (the catalogue, a profile), or is learned from the first reply and kept
beside it: see `learn`. Nothing here retries, waits its turn or caches; that is the embedder's work.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vecmill.core import clock
from vecmill.core.errors import (
    BadReplyError,
    InputError,
    ProviderError,
    RefusedError,
    TextTooLongError,
)
from vecmill.core.http import Response, Session, shared_session
from vecmill.core.space import PROBE_TEXTS, space_id
from vecmill.core.types import InputType, Usage
from vecmill.models.base import Advance, Encoded, Endpoint, ModelInfo, Reply, Span, no_advance
from vecmill.models.hosted import errors, wire
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.known import Options, catalogue_name, know, redeployed, url_of
from vecmill.models.hosted.learned import Learned, plain_name, read_learned, write_learned
from vecmill.models.hosted.tokenizer import HostedTokenizer

_AT_ONCE = 4 * 2**20
"""Bytes of a reply decoded without leaving the event loop: about 10 ms."""


class HostedProvider:
    """A model asked over HTTP. It may be made anywhere; connections are opened by the first request."""

    def __init__(
        self,
        connection: Connection,
        *,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        user: str | None = None,
        send_dimensions: bool = False,
        session: Session | None = None,
        ca_file: Path | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        """Prepare a provider; nothing is asked.

        Args:
            connection: How the model is reached, and what is known of it.
            dimensions: Components wanted; the model is asked for all it has and they are cut afterwards,
                unless nobody knows whether it can be cut. None: all.
            max_tokens: A smaller limit of tokens per text; a larger one where the limit is not known exactly.
            user: Told to the provider as the end user.
            send_dimensions: Let the provider cut instead.
            session: Connections to use; None: this process's shared ones.
            ca_file: Certificates (PEM) trusted beside the system's, for the shared session.
            now: The wall clock, seconds since the epoch.

        Raises:
            InputError: The model does not give so many dimensions or take so many tokens.
        """
        self._connection = connection
        self._options = Options(dimensions, max_tokens, user, send_dimensions)
        self._learned_path = connection.learned_path
        self._learned = read_learned(self._learned_path)
        self._known = know(connection, self._options, self._learned)
        self._pinned = False
        self._now = now
        self._session = shared_session(ca_file) if session is None else session
        self._owns_session = session is None
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself; `dimensions` is 0 until `learn`, where nobody knows them."""
        return self._known.info

    @property
    def endpoint(self) -> Endpoint:
        """Whose limits the requests count against."""
        connection = self._connection
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(connection.embeddings_url))
        return Endpoint(
            id=space_id("endpoint", origin, connection.account, connection.model),
            name=connection.name,
            requests_per_minute=connection.requests_per_minute,
            tokens_per_minute=connection.tokens_per_minute,
            max_concurrency=connection.max_concurrency,
            timeout=connection.timeout,
        )

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        """Add the role's prefix and count tokens: exactly, where `Facts.exact` says so.

        Raises:
            InputError: A text holds half of a surrogate pair; the message gives its position.
        """
        facts = self._known.facts
        variant = (facts.query_model or "") if input_type is InputType.QUERY else ""
        return self._tokenizer.encode(texts, prefix=self._prefix(input_type), variant=variant)

    def split(self, text: str, *, max_tokens: int, input_type: InputType) -> list[Span]:
        """Cut a text into consecutive pieces that each encode to at most `max_tokens` tokens. Linear."""
        return self._tokenizer.split(text, max_tokens=max_tokens, prefix=self._prefix(input_type))

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        """Cut every text to its first tokens that fit."""
        return self._tokenizer.truncate(encoded, max_tokens=max_tokens)

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        """Embed texts by one request. No texts, no request.

        The first request of an endpoint that does not give base64 may be sent twice; later ones never are.

        Raises:
            TextTooLongError: A text has more than `info.max_tokens` tokens.
            RefusedError: The request is refused as it is, or another model answers than the one known.
            ProviderError: The other side failed, in one of the other ways.
            InputError: The provider is closed.
            ConfigError: The address, the key or the certificates cannot be used.
        """
        if self._closed:
            raise InputError(f"{self.info.name} is closed: open the model again")
        self._refuse_long(encoded)
        if not len(encoded):
            return Reply(np.zeros((0, self.info.width), np.float32), Usage())
        reply, _ = await self._ask(encoded, self._known.sent_dimensions, self._width())
        advance(len(encoded), reply.usage.tokens)
        return reply

    async def learn(self) -> Reply | None:
        """Embed the probe's sentences if dimensions or model are not known yet; None where they are.

        After it `info` is complete, its space final, and other processes know too. One request; a second one
        if the model turns out to be one whose smaller `dimensions` must be asked for.

        Raises:
            ProviderError: As `embed`.
            InputError: The model does not give the dimensions asked for.
        """
        if self._known.complete:
            return None
        encoded = self.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)
        reply, parsed = await self._ask(encoded, None, self._known.facts.dimensions)
        width, model = reply.vectors.shape[1], plain_name(parsed.model)
        learned = replace(self._learned, dimensions=width, model=model, normalized=None)
        known = know(self._connection, self._options, learned)  # refuses dimensions it cannot give
        self._learned, self._known = learned, known
        normalized = parsed.normalized
        if known.sent_dimensions is not None:
            again, parsed = await self._ask(encoded, known.sent_dimensions, self._width())
            reply = replace(again, usage=reply.usage + again.usage)
            normalized = normalized and parsed.normalized
        learned = replace(self._learned, normalized=normalized)
        self._learned, self._known = learned, know(self._connection, self._options, learned)
        await asyncio.to_thread(write_learned, self._learned_path, learned)
        return reply

    def remember(
        self,
        *,
        max_inputs: int | None = None,
        max_request_tokens: int | None = None,
        max_request_bytes: int | None = None,
    ) -> None:
        """Keep a smaller limit the endpoint was found to have; `info` says it from now on.

        A larger one than is known changes nothing. Written to disk at once: a few ms.
        """
        self._keep(
            self._learned.limited(
                max_inputs=max_inputs,
                max_request_tokens=max_request_tokens,
                max_request_bytes=max_request_bytes,
            )
        )

    def hasten(self, seconds: float) -> None:
        """Let one request take at most so many seconds from now on, where it may take longer."""
        if seconds < self._connection.timeout:
            self._connection = replace(self._connection, timeout=seconds)

    def varied(self, *, user: str | None = None, deployment: str | None = None) -> HostedProvider:
        """Return this provider with another user or deployment in its requests; connections are shared.

        Another deployment at Azure counts as one of the same model, and each of its replies must say so.
        Elsewhere it is another model's name.
        """
        made = copy.copy(self)
        made._owns_session = False
        made._options = replace(self._options, user=user if user is not None else self._options.user)
        if deployment is not None and deployment != self._connection.model:
            made._connection = redeployed(self._connection, self._known.facts, deployment)
            made._learned_path = made._connection.learned_path
            made._learned = read_learned(made._learned_path)
            made._pinned = made._connection.provider == "azure"
        made._known = know(made._connection, made._options, made._learned)
        return made

    async def close(self) -> None:
        """Let go of the connections, unless others use them. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._owns_session:
            await self._session.close()

    # One request.

    async def _ask(
        self, encoded: Encoded, dimensions: int | None, width: int | None
    ) -> tuple[Reply, wire.Parsed]:
        """Send a request and take its reply; ask again once without base64 where that is refused.

        Args:
            encoded: The texts, at least one.
            dimensions: Sent with them, or None.
            width: Components expected, None where nobody knows.
        """
        requests = 1
        base64 = self._learned.base64 is not False
        login = await self._connection.login()
        try:
            response = await self._post(encoded, dimensions, login, base64=base64)
            if base64 and response.status in (400, 422) and _refuses_base64(response):
                self._keep(replace(self._learned, base64=False))
                requests, base64 = 2, False
                response = await self._post(encoded, dimensions, login, base64=False)
            parsed = await self._parse(response, encoded, login, width)
            if not encoded.variant:
                self._check_model(parsed, response)
        except ProviderError as error:
            error.provider = error.provider or self._connection.provider
            error.model = error.model or self._connection.model
            raise
        if base64 and not parsed.base64:
            self._keep(replace(self._learned, base64=False))
        tokens = int(encoded.tokens.sum()) if parsed.tokens is None else parsed.tokens
        price = self.info.usd_per_million_tokens
        usage = Usage(
            texts=len(encoded),
            tokens=tokens,
            requests=requests,
            usd=None if price is None else tokens * price / 1e6,
        )
        rates, number = wire.read_rates(response.headers), errors.request_id(response)
        return Reply(parsed.vectors, usage, rates, number), parsed

    async def _post(
        self, encoded: Encoded, dimensions: int | None, login: Mapping[str, str], *, base64: bool
    ) -> Response:
        connection = self._connection
        model = encoded.variant or connection.model
        body = wire.encode_body(
            encoded.texts,
            model=model if connection.sends_model else None,
            dimensions=dimensions,
            user=self._options.user,
            base64=base64,
        )
        return await self._session.request(
            "POST",
            connection.embeddings_url if model == connection.model else url_of(connection, model),
            headers={**connection.headers, **login, "Content-Type": "application/json"},
            body=body,
            timeout=connection.timeout,
        )

    async def _parse(
        self, response: Response, encoded: Encoded, login: Mapping[str, str], width: int | None
    ) -> wire.Parsed:
        """Return what a reply says.

        Raises:
            ProviderError: It is a refusal, or does not answer the request.
        """
        refusal = not 200 <= response.status < 300
        try:
            if not refusal:
                if len(response.body) <= _AT_ONCE:
                    return self._decode(response, len(encoded), width)
                return await asyncio.to_thread(self._decode, response, len(encoded), width)
        except _ErrorInsideError:
            refusal = True
        except BadReplyError as error:
            raise BadReplyError(
                f"{self._connection.name}: {error}{self._kept_hint(width)}",
                status=response.status,
                request_id=errors.request_id(response),
                retryable=True,
                code=error.code,
                rates=wire.read_rates(response.headers),
            ) from None
        raise errors.classify(
            self._connection, response, texts=encoded.texts, secrets=login.values(), now=self._now()
        )

    def _decode(self, response: Response, count: int, width: int | None) -> wire.Parsed:
        value = wire.decode_json(response.body)
        if errors.holds_error(value):
            raise _ErrorInsideError
        return wire.decode_reply(value, count=count, width=width, normalized=self._unit_length())

    def _check_model(self, parsed: wire.Parsed, response: Response) -> None:
        """Refuse the vectors of another model than the one that is known.

        Raises:
            RefusedError: The reply names another one, or none where it must name it.
        """
        connection, expected = self._connection, self._known.facts.catalogue_name
        if expected is None or not (connection.vouched or connection.provider == "azure"):
            return  # gateways pass models on under names of their own
        found = catalogue_name(parsed.model)
        if found == expected or (found is None and not self._pinned):
            return
        answered = repr(plain_name(parsed.model) or "") if parsed.model else "none that it names"
        raise RefusedError(
            f"{connection.name} (deployment or model {connection.model!r}) answered with model {answered}, "
            f"not with {expected!r}: their vectors cannot be compared; correct `model` in its profile"
            f"{self._kept_hint(None)}",
            reason="request",
            status=response.status,
            request_id=errors.request_id(response),
            code="wrong_model",
        )

    # What is known.

    @property
    def _tokenizer(self) -> HostedTokenizer:
        return HostedTokenizer(self._known.facts.tokenizer)

    def _prefix(self, input_type: InputType) -> str:
        facts = self._known.facts
        return facts.query_prefix if input_type is InputType.QUERY else facts.document_prefix

    def _width(self) -> int | None:
        return self._known.sent_dimensions or self._known.facts.dimensions

    def _unit_length(self) -> bool:
        """Return whether vectors that are not of unit length are wrong."""
        facts = self._known.facts
        return facts.normalized and (facts.catalogue_name is not None or self._learned.normalized is True)

    def _keep(self, learned: Learned) -> None:
        if learned != self._learned:
            self._learned = learned
            self._known = know(self._connection, self._options, learned)
            write_learned(self._learned_path, learned)

    def _kept_hint(self, width: int | None) -> str:
        learned = self._learned_path is not None and self._learned.dimensions is not None
        stale = learned and self._connection.facts.catalogue_name is None
        if not stale or (width is not None and width != self._learned.dimensions):
            return ""
        return f" (what was learned of it is kept in {self._learned_path}; remove it if the model changed)"

    def _refuse_long(self, encoded: Encoded) -> None:
        long = np.flatnonzero(encoded.tokens > self.info.max_tokens)
        if len(long):
            first = int(long[0])
            raise TextTooLongError(
                f"text {first} has {encoded.tokens[first]} tokens, {self.info.name} takes "
                f"{self.info.max_tokens} "
                f"({len(long)} of {len(encoded)} texts are too long): split or truncate them"
            )


class _ErrorInsideError(Exception):
    """A reply of status 200 is an error."""


def _refuses_base64(response: Response) -> bool:
    problem = errors.read_problem(response.body)
    return problem.names("encoding_format") or "base64" in problem.message.lower()
