"""What state the server and its models are in: OpenVINO Model Server's routes, and those of orchestrators."""

from __future__ import annotations

import msgspec

from vecmill.server.call import Answer, Call
from vecmill.server.errors import Refusal, unavailable, unknown_model
from vecmill.server.served import VersionState

OK = "OK"
FAILED = "UNKNOWN"
"""The code OpenVINO Model Server gives a version that could not be loaded."""


class VersionStatus(msgspec.Struct, kw_only=True):
    """How a version is; both "OK" where all is well."""

    error_code: str
    error_message: str


class ModelVersion(msgspec.Struct, kw_only=True):
    """A version of a model: START, LOADING, AVAILABLE, UNLOADING or END."""

    version: str
    state: str
    status: VersionStatus


class ModelStatus(msgspec.Struct, kw_only=True):
    """Every known version of a model, by number."""

    model_version_status: list[ModelVersion]


class Health(msgspec.Struct, kw_only=True):
    """What health routes answer where all is well."""

    status: str


_LIVE = Answer(200, msgspec.json.encode(Health(status="live")))
_READY = Answer(200, msgspec.json.encode(Health(status="ready")))


async def config(call: Call) -> Answer:
    """Answer `GET /v1/config`: every model with its versions, as OpenVINO Model Server does."""
    return Answer(200, _status(call))


async def reload(call: Call) -> Answer:
    """Answer `POST /v1/config/reload`: look for new versions now. 201: something changed; 200: nothing."""
    changed = await call.server.models.reload()
    return Answer(201 if changed else 200, _status(call))


async def live(call: Call) -> Answer:  # noqa: ARG001 - a handler's signature
    """Answer whether the process answers at all; it needs no key and says nothing else."""
    return _LIVE


async def ready(call: Call) -> Answer:
    """Answer whether requests should be sent here: not while models load, fail, or the server stops."""
    server = call.server
    if server.draining:
        raise unavailable("the server is stopping", "shutting_down", seconds=1.0)
    if why := server.models.trouble():
        raise _not_ready(why)
    return _READY


async def model_ready(call: Call) -> Answer:
    """Answer whether one model answers requests."""
    name = call.parts["model"]
    why = call.server.models.model_trouble(name)
    if why is None:
        raise unknown_model(name)
    if why:
        raise _not_ready(why)
    return _READY


def _not_ready(why: str) -> Refusal:
    return unavailable(why, "not_ready", seconds=1.0)


def _status(call: Call) -> bytes:
    found = {
        name: ModelStatus(model_version_status=[_version(state) for state in states])
        for name, states in call.server.models.states().items()
    }
    return msgspec.json.encode(found)


def _version(state: VersionState) -> ModelVersion:
    status = VersionStatus(
        error_code=FAILED if state.error else OK, error_message=state.error if state.error else OK
    )
    return ModelVersion(version=state.version, state=str(state.state), status=status)
