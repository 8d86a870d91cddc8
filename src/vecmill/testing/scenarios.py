"""What a simulated provider is like: its models, limits, latency and faults.

from dataclasses import replace
from vecmill.testing.scenarios import FAULTY

scenario = replace(FAULTY, seed=7)
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vecmill.core.errors import ConfigError, InputError, unknown_name
from vecmill.testing.simulator_faults import RATE_LIMITED, Fault
from vecmill.testing.simulator_limits import METERS

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Model:
    """A model the simulated provider serves.

    Attributes:
        dimensions: Components of its vectors.
        mrl: Whether `dimensions` may be asked for.
        max_tokens: Tokens one text may have.
        usd_per_million_tokens, batch_usd_per_million_tokens: Its prices.
        revision: Another one gives other vectors under the same name, as when a vendor changes a model.
    """

    dimensions: int
    mrl: bool = True
    max_tokens: int = 8192
    usd_per_million_tokens: float = 0.02
    batch_usd_per_million_tokens: float = 0.01
    revision: str = ""


# Source: OpenAI API, Pricing and Embeddings guide, 2026-05.
OPENAI_MODELS: Mapping[str, Model] = {
    "text-embedding-3-small": Model(1536),
    "text-embedding-3-large": Model(3072, True, 8192, 0.13, 0.065),
    "text-embedding-ada-002": Model(1536, False, 8192, 0.10, 0.05),
}

TINY_MODELS: Mapping[str, Model] = {
    "text-embedding-3-small": Model(8),
    "text-embedding-ada-002": Model(8, False, 8192, 0.10, 0.05),
}
"""The same names with 8 components: for tests that look at nothing but the simulator."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes, in seconds.

    Attributes:
        kind: "constant"; "uniform" between `seconds` and `most`; "lognormal" with median `seconds`
            and `sigma`.
        seconds, most, sigma: See `kind`.
        per_token: Added for each token of the request.
    """

    kind: str = "constant"
    seconds: float = 0.0
    most: float = 0.0
    sigma: float = 0.5
    per_token: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in LATENCIES:
            raise unknown_name("kind of latency", self.kind, LATENCIES)


LATENCIES = ("constant", "uniform", "lognormal")
BASE64 = ("accepted", "ignored", "refused")
WORDINGS = ("openai", "limit", "named", "plain")
HINTS = ("all", *(kind for kind in RATE_LIMITED if kind != "rate_200"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a simulated provider is like.

    Attributes:
        models: What it serves, by name. GitHub's door serves them as "publisher/name".
        deployments: Azure's deployments and their models; a model's own name is a deployment too.
        keys: What it lets in; the first is what `Simulator.key` returns.
        requests_per_minute, tokens_per_minute: Limits of each key and model; None: none.
        meaning: Of "per minute": "bucket" (refilled evenly), "window" (of the wall clock) or "sliding".
        requests_per_day: A quota that begins anew at midnight UTC.
        hint: How a 429 of a limit says when to come back: "all", or one of `RATE_LIMITED`.
        rate_headers: Whether answers have `x-ratelimit-*`.
        max_inputs: Texts of one request. wording: how more are refused: "openai", "limit" (other words, with
            the number), "named" (status 413, in yet other words, with the number) or "plain" (without it).
        max_request_tokens: Tokens of one request.
        max_request_bytes: Bytes of one body.
        base64: "accepted"; "ignored": numbers come all the same; "refused": 400.
        poison: A text that contains this is refused, without saying which of the request it was.
        latency: How long an answer takes.
        faults: What goes wrong; the first that applies.
        seed: Of everything drawn at random.
    """

    models: Mapping[str, Model] = field(default_factory=lambda: OPENAI_MODELS)
    deployments: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ("sk-simulated-0123456789",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    meaning: str = "bucket"
    requests_per_day: int | None = None
    hint: str = "all"
    rate_headers: bool = True
    max_inputs: int = 2048
    wording: str = "openai"
    max_request_tokens: int | None = 300_000
    max_request_bytes: int = 64 * 2**20
    base64: str = "accepted"
    poison: str = ""
    latency: Latency = field(default_factory=Latency)
    faults: tuple[Fault, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        named = {"meaning": METERS, "hint": HINTS, "wording": WORDINGS, "base64": BASE64}
        for name, known in named.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        if not self.keys or not self.models:
            raise InputError("a scenario has at least one key and one model")
        for deployment, model in self.deployments.items():
            if model not in self.models:
                raise unknown_name(f"model of deployment {deployment!r}", model, self.models)

    @classmethod
    def from_toml(cls, path: Path | str) -> Scenario:
        """Read a scenario: the attributes above, with tables `[models.NAME]`, `[latency]` and `[[faults]]`.

        Raises:
            UnknownNameError: A key is none of these; the message lists close ones.
            ConfigError: The file cannot be read, or a value is not of its type.
        """
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        values = _checked(cls, table, f"{path}")
        if "models" in table:
            values["models"] = {
                name: _build(Model, entry, f"{path}: models.{name}")
                for name, entry in table["models"].items()
            }
        if "latency" in table:
            values["latency"] = _build(Latency, table["latency"], f"{path}: latency")
        if "faults" in table:
            values["faults"] = tuple(_build(Fault, entry, f"{path}: faults") for entry in table["faults"])
        return cls(**values)


def load(name: str) -> Scenario:
    """Return the scenario of a name, or read the file.

    Raises:
        UnknownNameError: It is neither; the message lists close names.
        ConfigError: The file cannot be read.
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    if Path(name).is_file() or name.endswith(".toml"):
        return Scenario.from_toml(name)
    raise unknown_name("scenario (nor is it a file)", name, SCENARIOS)


def _build(kind: type[R], table: object, where: str) -> R:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is no table")
    values = _checked(kind, table, where)
    required = [f.name for f in fields(kind) if f.default is f.default_factory]  # type: ignore[arg-type]  # a dataclass
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return kind(**values)


def _checked(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a table's values, lists as tuples; unknown keys and values of another type are refused."""
    types = {f.name: str(f.type) for f in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in types:
            raise unknown_name(f"key of {where}:", name, types)
        if not _fits(value, types[name]):
            raise ConfigError(f"{where}: {name} = {value!r} is not {types[name].removesuffix(' | None')}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _fits(value: object, kind: str) -> bool:
    match kind.removesuffix(" | None"):
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "float":
            if not isinstance(value, int | float) or isinstance(value, bool):
                return False
            return math.isfinite(value) and value >= 0
        case "str":
            return isinstance(value, str)
        case "tuple[str, ...]":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "Collection[int]":
            return isinstance(value, list) and all(type(item) is int for item in value)
        case "Mapping[str, str]":
            return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        case "tuple[Fault, ...]":
            return isinstance(value, list)
        case _:  # a table of its own
            return isinstance(value, dict)


PLAIN = Scenario(latency=Latency(seconds=0.05))
RPM_BOUND = Scenario(
    requests_per_minute=3_000,
    tokens_per_minute=10_000_000,
    max_inputs=16,
    latency=Latency("lognormal", 0.2, sigma=0.3),
)
TPM_BOUND = Scenario(
    requests_per_minute=10_000,
    tokens_per_minute=1_000_000,
    latency=Latency("lognormal", 0.2, sigma=0.3, per_token=1e-5),
)
FAULTY = Scenario(latency=Latency("uniform", 0.02, 0.2), faults=(Fault("mix", share=0.3),))
POISONED = Scenario(latency=Latency(seconds=0.05), poison="POISON")
MODEST = Scenario(
    models={"bge-small": Model(384, False, 512, 0.0, 0.0)}, max_inputs=16, wording="plain", base64="refused"
)
GITHUB = Scenario(
    requests_per_minute=15,
    requests_per_day=150,
    meaning="window",
    max_request_tokens=64_000,
    latency=Latency("lognormal", 0.4),
)

SCENARIOS: dict[str, Scenario] = {
    "plain": PLAIN,
    "rpm_bound": RPM_BOUND,
    "tpm_bound": TPM_BOUND,
    "faulty": FAULTY,
    "poisoned": POISONED,
    "modest": MODEST,
    "github": GITHUB,
}
"""By name: no limits and 50 ms; bound by requests, by tokens; 30 % of requests fail; texts with POISON are
refused; a small compatible server without base64 that takes 16 texts; a free tier with a daily quota."""
