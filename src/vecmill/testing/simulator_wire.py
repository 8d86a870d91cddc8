"""What the simulated provider says, in each vendor's words, and how it reads what it is asked.

Doors: "openai", "azure" (deployments in the path), "azure_v1" and "github".
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import orjson
from aiohttp import web

from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator_faults import retry_hint
from vecmill.testing.simulator_ledger import Visit
from vecmill.testing.simulator_limits import Refused
from vecmill.testing.simulator_model import Problem

SERVER_ERROR = Problem(
    500, "The server had an error while processing your request. Sorry about that!", "server_error"
)
OVERLOADED = Problem(503, "The engine is currently overloaded, please try again later", "server_error")
TOO_LARGE = Problem(413, "The request body is too large.", code="content_too_large")
NOT_FOUND = Problem(404, "Resource not found", code="404")
BAD_GATEWAY = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>502</body>\r\n</html>\r\n"

_BAD_JSON = Problem(
    400,
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
    "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
)
_ARGUMENTS = frozenset({"input", "model", "encoding_format", "dimensions", "user"})
_CREATED = 1_705_948_997  # of every model; the same each time one asks


def check_request(scenario: Scenario, door: str, request: web.Request, size: int) -> Problem | None:
    """Check everything but the body's content: address, key, size."""
    if door == "azure" and "api-version" not in request.query:
        return NOT_FOUND
    return check_key(scenario, door, request.headers) or (
        TOO_LARGE if size > scenario.max_request_bytes else None
    )


def given_key(headers: Mapping[str, str]) -> str:
    """Return the key a request brings, "" without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else headers.get("api-key", "")


def check_key(scenario: Scenario, door: str, headers: Mapping[str, str]) -> Problem | None:
    """Say what is wrong with a request's key, or None."""
    if "api-key" in headers and not door.startswith("azure"):
        return _no_key(door)
    given = given_key(headers)
    if not given:
        return _no_key(door)
    if not any(hmac.compare_digest(given.encode(), key.encode()) for key in scenario.keys):
        return wrong_key(door, headers)
    return None


def _no_key(door: str) -> Problem:
    if door != "openai":
        return wrong_key(door, {})
    return Problem(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization header using "
        "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
    )


def wrong_key(door: str, headers: Mapping[str, str]) -> Problem:
    """Refuse a key as the vendor does; the message shows it masked."""
    if door.startswith("azure"):
        return Problem(
            401,
            "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a "
            "valid key for an active subscription and use a correct regional API endpoint for your resource.",
            code="401",
        )
    if door == "github":
        return Problem(401, "Bad credentials", code="unauthorized")
    return Problem(
        401,
        f"Incorrect API key provided: {_masked(given_key(headers))}. You can find your API key at "
        f"https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def _masked(key: str) -> str:
    return "****" if len(key) < 16 else f"{key[:4]}{'*' * (len(key) - 8)}{key[-4:]}"


def parse(raw: bytes) -> dict[str, Any] | Problem:
    """Read a body: a JSON object of known arguments."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _BAD_JSON
    if not isinstance(body, dict):
        return _BAD_JSON
    for name in body:
        if name not in _ARGUMENTS:
            return Problem(400, f"Unrecognized request argument supplied: {name}")
    if not isinstance(body.get("user", ""), str):
        return Problem(400, "Invalid type for 'user': expected a string.", param="user", code="invalid_type")
    return body


def model_name(scenario: Scenario, door: str, given: object) -> str | Problem:
    """Return the scenario's model a request means."""
    if not isinstance(given, str) or not given:
        return Problem(400, "you must provide a model parameter")
    if door.startswith("azure"):
        name = scenario.deployments.get(given, given)
        return name if name in scenario.models else _no_deployment()
    if door == "github":
        publisher, _, name = given.partition("/")
        known = bool(publisher) and name in scenario.models
        return name if known else Problem(400, f"Unknown model: {given}", code="unknown_model")
    return given if given in scenario.models else unknown_model(given)


def unknown_model(name: str) -> Problem:
    """Say that there is no such model."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return Problem(404, message, code="model_not_found")


def _no_deployment() -> Problem:
    return Problem(
        404,
        "The API deployment for this resource does not exist. If you created the deployment within the last "
        "5 minutes, please wait a moment and try again.",
        code="DeploymentNotFound",
    )


def shown_model(name: str) -> dict[str, Any]:
    """Return a model's entry of `/v1/models`."""
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "simulated"}


def limited(door: str, refused: Refused, name: str, hint: str, now: float) -> tuple[dict[str, str], Problem]:
    """Refuse what a limit does not let pass: (headers, problem)."""
    if refused.what == "day":
        return quota(door, refused.wait, refused.limit)
    kind = "tokens" if refused.what == "tokens" else "requests"
    unit = "tokens per min (TPM)" if kind == "tokens" else "requests per min (RPM)"
    where = f"for {name} in organization org-simulated on {unit}: Limit {refused.limit}"
    if math.isinf(refused.wait):
        message = f"Request too large {where}, Requested {refused.asked}. The input must be reduced."
        return {}, Problem(429, message, kind, None, "rate_limit_exceeded")
    headers, sentence = retry_hint(hint, refused.wait, now)
    if door == "openai":
        message = f"Rate limit reached {where}, Used {refused.used}, Requested {refused.asked}.{sentence}"
        return headers, Problem(429, message, kind, None, "rate_limit_exceeded")
    return _vendor_429(door, headers, sentence)


def scripted_429(door: str, kind: str, seconds: float, now: float) -> tuple[dict[str, str], Problem]:
    """Refuse a request because a fault says so: (headers, problem). "rate_200" has status 200."""
    headers, sentence = retry_hint(kind, seconds, now)
    status = 200 if kind == "rate_200" else 429
    if door == "openai" or status == 200:
        message = f"Rate limit reached for requests.{sentence}"
        return headers, Problem(status, message, "requests", None, "rate_limit_exceeded")
    return _vendor_429(door, headers, sentence)


def _vendor_429(door: str, headers: dict[str, str], sentence: str) -> tuple[dict[str, str], Problem]:
    if door == "github":
        headers["x-ratelimit-type"] = "UserByModelByMinute"
        message = f"Rate limit exceeded for UserByModelByMinute.{sentence}"
        return headers, Problem(429, message, code="RateLimitReached")
    message = (
        f"Requests to the Embeddings_Create Operation under Azure OpenAI API have exceeded call rate limit "
        f"of your current OpenAI S0 pricing tier.{sentence} Please go here: https://aka.ms/oai/quotaincrease "
        f"if you would like to further increase the default rate limit."
    )
    return headers, Problem(429, message, code="429")


def quota(door: str, seconds: float, limit: int = 0) -> tuple[dict[str, str], Problem]:
    """Refuse everything for the rest of the day: (headers, problem). OpenAI does not say until when."""
    if door == "openai":
        message = (
            "You exceeded your current quota, please check your plan and billing details. For more "
            "information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
        )
        return {}, Problem(429, message, "insufficient_quota", None, "insufficient_quota")
    whole = math.ceil(seconds)
    headers = {"retry-after": str(whole)}
    if door == "github":
        headers |= {"x-ratelimit-type": "UserByModelByDay", "x-ratelimit-timeremaining": str(whole)}
        message = (
            f"Rate limit of {limit} per 86400s exceeded for UserByModelByDay. Please wait {whole} seconds "
            f"before retrying."
        )
        return headers, Problem(429, message, code="RateLimitReached")
    message = f"The quota of the day is exhausted. Please retry after {whole} seconds."
    return headers, Problem(429, message, code="429")


def written(problem: Problem, door: str) -> bytes:
    """Return a refusal's body."""
    return orjson.dumps(problem.azure_body() if door == "azure" else problem.body())


def common_headers(now: float) -> dict[str, str]:
    """Return what every answer has; its date is the simulator's, not the machine's."""
    return {"Content-Type": "application/json", "Date": _date(int(now))}


def visit_headers(visit: Visit, now: float) -> dict[str, str]:
    """Return what every answer to a request for embeddings has."""
    found = common_headers(now)
    found["x-request-id"] = f"req_{visit.number:032x}"
    found["openai-processing-ms"] = str(int((now - visit.moment) * 1000))
    if visit.door.startswith("azure"):
        found["apim-request-id"] = f"{visit.number:032x}"
    return found


@lru_cache(maxsize=4)
def _date(now: int) -> str:
    return formatdate(now, usegmt=True)


def port(request: web.Request) -> int:
    """Return the port a request came in by."""
    transport = request.transport
    return 0 if transport is None else int(transport.get_extra_info("sockname")[1])
