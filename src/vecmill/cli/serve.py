"""`vecmill serve`: embedding models behind OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vecmill.cli.output import plain, tell
from vecmill.compat import ovms
from vecmill.core import machine
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import ConfigError, InputError, UnknownNameError
from vecmill.core.extras import require

if TYPE_CHECKING:
    from vecmill.compat.ovms import Start
    from vecmill.server.options import Limits, ModelSource, Options

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*(?:/[A-Za-z0-9][A-Za-z0-9._:-]*)*")
_PREFIXES = ("openai:", "azure:", "github:")


_LEAST_MEMORY = 1 << 20
"""Below this a size of memory lacks its unit."""


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a size, such as 500MB or "5 GiB"."""
    if value is None:
        return None
    try:
        found = load_settings(cache_max_bytes=value).cache_max_bytes
    except ConfigError as error:
        raise click.BadParameter(f"{value!r} is no size; 500MB, 5GiB … would be", ctx, param) from error
    if found is not None and found < _LEAST_MEMORY:
        number = value.strip()
        meant = f": did you mean {number}GiB?" if number.isdigit() and int(number) else ""
        raise click.BadParameter(
            f"{value!r} is {found} bytes, in which no model fits{meant or ', 500MB or 5GiB would do'}",
            ctx,
            param,
        )
    return found


def _foreign(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let the command take OpenVINO Model Server's flags, which its help does not show."""
    for name in (*ovms.VALUES, *ovms.MEANINGLESS):
        command = click.option(f"--{name}", f"ovms_{name}", hidden=True)(command)
    for name in ovms.SWITCHES:
        command = click.option(f"--{name}", f"ovms_{name}", is_flag=True, hidden=True)(command)
    return command


@click.command(context_settings={"auto_envvar_prefix": "VECMILL_SERVE"})
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]SPEC",
    help="Serve this model: minilm, a folder, or a folder of versions. Repeatable. [default: minilm]",
)
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAME=]SPEC",
    help="Stand before this paid model: azure:DEPLOYMENT, openai:MODEL or a profile. Repeatable.",
)
@click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    help="Serve every model of a folder of NAME/VERSION/…, and new versions as they appear.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--require-keys", is_flag=True, help="Refuse requests without a key, also while none exists.")
@click.option(
    "--insecure-no-keys", is_flag=True, help="Let anybody who reaches an address beyond this machine in."
)
@click.option(
    "--keys-file", type=click.Path(path_type=Path), help="Where keys are kept. [default: your home's]"
)
@click.option("--oidc-issuer", metavar="URL", help="Believe bearer tokens of this issuer.")
@click.option("--oidc-audience", help="The audience such tokens must have.")
@click.option("--oidc-jwks-url", metavar="URL", help="Where the issuer's keys are.")
@click.option("--allowed-host", multiple=True, help="Answer this value of Host. Repeatable.")
@click.option("--allowed-origin", multiple=True, help="Let pages of this origin ask. Repeatable.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate (PEM) to serve https with.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key (PEM).")
@click.option(
    "--poll-seconds", default=1.0, show_default=True, help="Look for new versions; 0: on reload only."
)
@click.option(
    "--memory", callback=_size, metavar="SIZE", help="What models of the repository may take together."
)
@click.option("--device", help="Where local models run. [default: CPU]")
@click.option("--precision", help="float32 or int8, of local models. [default: the model's own]")
@click.option("--pooling", help="Pool token vectors like this instead of as the model says.")
@click.option(
    "--normalize/--no-normalize", default=None, help="Unit length, or not. [default: the model's own]"
)
@click.option("--streams", type=click.IntRange(min=1), help="Texts computed side by side. [default: cores]")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Tokens of one text. [default: the model's own]"
)
@click.option(
    "--long-text",
    type=click.Choice(["error", "truncate", "average"]),
    default="error",
    show_default=True,
    help="What happens to a text above that, unless the request says otherwise.",
)
@click.option(
    "--token-ids",
    type=click.Choice(["auto", "own", "cl100k"]),
    default="auto",
    show_default=True,
    help="Whose vocabulary lists of token ids are in.",
)
@click.option(
    "--cache/--no-cache", default=None, help="Keep vectors on disk. [default: those that cost money]"
)
@click.option(
    "--max-usd",
    type=click.FloatRange(min=0),
    help="What each paid model may spend in this run of the server.",
)
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Set a limit; see docs. Repeatable."
)
@click.option("--strict", is_flag=True, help="Refuse unknown fields of a request.")
@click.option("--allow-truncated-dimensions", is_flag=True, help="Cut vectors of any model.")
@click.option("--no-docs", is_flag=True, help="Serve no OpenAPI document.")
@click.option("--no-metrics", is_flag=True, help="Serve no /metrics.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is written to stderr, as JSON lines.",
)
@_foreign
def serve(**given: Any) -> int:
    """Serve models over HTTP as OpenAI does.

    Without a key only this machine is answered; `vecmill key add` makes one. Every option is also read from
    the environment: --port from VECMILL_SERVE_PORT. It stops at Ctrl-C or SIGTERM, after answering what came.

    \b
    vecmill serve
    vecmill serve --model ./bge-small --repository ./models --host 0.0.0.0
    vecmill serve --upstream azure:my-embeddings
    """  # noqa: D301 - the character by which click keeps the lines
    start = start_of(given, load_settings(), port_given=_was_given("port"))
    for package in ("msgspec", "uvicorn", "httptools", "prometheus_client"):
        require(package, extra="serve")
    from vecmill.server.app import create_app
    from vecmill.server.run import serve as run

    app = create_app(start.options, settings=start.settings)
    for note in start.notes:
        tell(note)

    listening: list[str] = []

    def on_start(origin: str) -> None:
        listening.append(origin)
        tell(f"loading {_served(start.options)}; {origin} listens, and answers for them once they are loaded")

    def on_ready() -> None:
        for line in directions(start.options, *listening):
            tell(line)

    run(app, on_start=on_start, on_ready=on_ready, log_level=start.log_level or given["log_level"])
    return 0


def _was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not ParameterSource.DEFAULT


def start_of(given: Mapping[str, Any], settings: Settings, *, port_given: bool = False) -> Start:
    """Return what the flags say, ours and OpenVINO Model Server's.

    Raises:
        InputError: They contradict each other.
        ConfigError: A file is missing, or the address is reachable from elsewhere and nobody said that keys
            are not wanted.
    """
    foreign = {name: given.get(f"ovms_{name}") for name in (*ovms.VALUES, *ovms.SWITCHES, *ovms.MEANINGLESS)}
    naming = [name for name in ovms.NAMING if foreign[name] is not None]
    if naming and (given["models"] or given["upstreams"] or given["repository"]):
        raise InputError(f"--{naming[0]} says what is served: leave --model, --upstream and --repository out")
    grpc_port = given["port"] if port_given and foreign["rest_port"] is not None else None
    start = ovms.understand(foreign, options_of(given), settings, grpc_port=grpc_port)
    closed = _closed(start.options, settings, open_to_all=given["insecure_no_keys"])
    return replace(start, options=closed)


def options_of(given: Mapping[str, Any]) -> Options:
    """Return what our own flags say.

    Raises:
        InputError: They contradict each other.
    """
    from vecmill.server.options import ModelSource, Options

    return Options(
        host=given["host"],
        port=given["port"],
        models=_sources(given),
        repository=given["repository"],
        common=ModelSource("", "", **_said(given)),
        poll_seconds=given["poll_seconds"],
        memory_bytes=given["memory"],
        token_ids=given["token_ids"],
        cache=given["cache"],
        max_usd=given["max_usd"],
        strict=given["strict"],
        allow_truncated_dimensions=given["allow_truncated_dimensions"],
        keys_file=given["keys_file"],
        require_keys=given["require_keys"],
        oidc_issuer=given["oidc_issuer"],
        oidc_audience=given["oidc_audience"],
        oidc_jwks_url=given["oidc_jwks_url"],
        allowed_hosts=given["allowed_host"],
        allowed_origins=given["allowed_origin"],
        tls_cert=given["tls_cert"],
        tls_key=given["tls_key"],
        docs=not given["no_docs"],
        metrics=not given["no_metrics"],
        limits=_limits(given["limits"]),
    )


def source_of(given: str, **more: Any) -> ModelSource:
    """Return the model "[NAME=]SPEC" stands for; without a name it has the model's or folder's own."""
    from vecmill.server.options import ModelSource

    name, equals, spec = given.partition("=")
    if not equals or given.startswith((".", "/", "~")):
        spec = given
        name = next((spec.removeprefix(p) for p in _PREFIXES if spec.startswith(p)), spec)
        if spec.startswith((".", "/", "~")) or Path(spec).is_dir():
            name = Path(spec).expanduser().resolve().name
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a served model cannot be called {plain(name)!r}: give it a name of letters, digits, '.', '_', "
            f"'-', ':' and '/', as in --model NAME={plain(spec) or 'SPEC'}"
        )
    return ModelSource(name, spec, **more)


def directions(options: Options, origin: str) -> list[str]:
    """Return what is served where, for the terminal."""
    if options.insecure_no_keys:
        keys = "no key is asked for"
    elif options.require_keys or options.key_hashes or options.oidc_issuer:
        keys = "a key is asked for"
    else:
        keys = "no key is asked for while none exists (vecmill key add)"
    cores = machine.usable_cores()
    return [
        f"serving {_served(options)} at {origin}/v1",
        f"  {cores} core{'s' if cores != 1 else ''}; {keys}; Ctrl-C stops",
    ]


def _served(options: Options) -> str:
    served = [source.name for source in options.models]
    if options.repository is not None:
        served.append(f"every model of {options.repository}")
    return ", ".join(served)


def _sources(given: Mapping[str, Any]) -> tuple[ModelSource, ...]:
    said = _said(given)
    sources = [source_of(spec, **said) for spec in given["models"]]
    sources += [source_of(spec, long_text=said["long_text"]) for spec in given["upstreams"]]
    if not sources and given["repository"] is None:
        sources = [source_of("minilm", **said)]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name}: name one of them, as in --model OTHER=SPEC")
    return tuple(sources)


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flags say of every local model."""
    names = ("pooling", "normalize", "streams", "device", "precision", "max_tokens", "long_text")
    return {name: given[name] for name in names}


def _closed(options: Options, settings: Settings, *, open_to_all: bool) -> Options:
    """Require keys at an address others reach, unless it was said that none are wanted."""
    if open_to_all:
        if options.require_keys:
            raise InputError("--require-keys and --insecure-no-keys exclude each other")
        return replace(options, insecure_no_keys=True)
    from vecmill.server.hosts import is_loopback

    if is_loopback(options.host):
        return options
    keys = options.keys_file or settings.home / "keys.json"
    if not keys.is_file() and options.oidc_issuer is None and not options.key_hashes:
        raise ConfigError(
            f"{options.host} is reachable from other machines and there is no key at {keys}: make one with "
            "`vecmill key add NAME`, name an issuer of tokens (--oidc-issuer), or let everybody in with "
            "--insecure-no-keys"
        )
    return replace(options, require_keys=True)


def _limits(given: tuple[str, ...]) -> Limits:
    from vecmill.server.options import Limits

    known = {entry.name: str(entry.type) for entry in fields(Limits)}
    values: dict[str, int | float] = {}
    for text in given:
        name, _, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise UnknownNameError(
                f"unknown limit {plain(name)!r}; the limits are {', '.join(sorted(known))}"
            )
        try:
            number = float(value) if known[name] == "float" else int(value)
        except ValueError:
            number = -1
        if not 0 < number < float("inf"):
            kind = "number" if known[name] == "float" else "whole number"
            raise InputError(f"--limit {plain(text)}: {name} is a {kind} above 0")
        values[name] = number
    return replace(Limits(), **values)  # type: ignore[arg-type]  # each is checked against its field above
